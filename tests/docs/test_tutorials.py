"""The tutorials run as they are printed, in order, in one folder each.

A block is skipped only where the page says why in a comment before it: ``<!-- not run: … -->``.
Training is shortened to two steps.
"""

import re
import shlex
from pathlib import Path

import pytest

from regionroute.cli.main import main
from regionroute.cli.tour.demo import write_photos

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?^```(bash|python)\n(.*?)^```", re.S | re.M)
FAST = ["edit", "score", "style-images"]
SLOW = ["two-styles", "own-data", "klein", "restyle"]
ELSEWHERE = ["teach"]  # twenty minutes; tests/regionroute/cli/tour/test_teach.py runs its stages
SHORTER = (r"train\.steps=\d+", "train.steps=2")


def run_page(name: str) -> int:
    """Runs the blocks of a page in the working folder; returns their number."""
    names: dict[str, object] = {}
    run = 0
    for skipped, language, text in BLOCK.findall((TUTORIALS / f"{name}.md").read_text()):
        if skipped:
            continue
        run += 1
        if language == "python":
            exec(compile(text, f"{name}.md", "exec"), names)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(*SHORTER, line), comments=True)
            if words and words[:2] != ["pip", "install"]:
                assert words[0] == "regionroute", line
                assert main(words[1:]) == 0, line
    return run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of a reader: photo.jpg, and labelled photos."""
    pytest.importorskip("skimage.data")
    write_photos(tmp_path / "photos")
    from PIL import Image

    with Image.open(tmp_path / "photos" / "chelsea.png") as photo:
        photo.convert("RGB").save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_tutorial_is_tested():
    pages = {path.stem for path in TUTORIALS.glob("*.md")} - {"index"}
    assert pages == {*FAST, *SLOW, *ELSEWHERE}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FAST)
def test_fast_tutorial_runs(name, folder):
    assert run_page(name) >= 3
    if name == "edit":
        from PIL import Image, ImageChops

        pair = [Image.open(file).convert("RGB") for file in ("out.png", "python.png")]
        assert ImageChops.difference(*pair).getbbox() is None  # the page says: the same pixels
        assert {file.name for file in folder.glob("*.png")} >= {"map.png", "compare.png"}
    if name == "score":
        assert (folder / "out" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SLOW)
def test_slow_tutorial_runs(name, folder):
    assert run_page(name) >= 1
