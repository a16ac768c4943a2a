"""A built wheel in a fresh environment, outside the clone: edit, training's settings, the demo."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Runs a program of an environment that has the wheel, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, tracked):  # not built in place: build/ would stay behind
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), "."]
    subprocess.run([*pip, *build], cwd=source, check=True)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    bin_folder = folder / "venv" / "bin"
    [site] = (folder / "venv" / "lib").glob("python*/site-packages")
    # The dependencies of this environment; its editable install is no part of them, because
    # .pth files of a folder that a .pth names are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = ["install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, "--python", str(bin_folder / "python"), *install], check=True)
    away = folder / "away"
    away.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PATH"] = f"{bin_folder}{os.pathsep}{environment['PATH']}"

    def run(*command):
        return subprocess.run(
            command, cwd=away, env=environment, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_wheel_outside_the_clone(installed, tmp_path):
    where = installed("python", "-c", "import regionroute.cli.main as m; print(m.__file__)")
    assert str(REPOSITORY) not in where.stdout
    assert "venv" in where.stdout

    printed = installed("regionroute", "train", "--config", "nano_photos", "--print-config")
    assert printed.returncode == 0, printed.stderr
    assert "name: nano-photos" in printed.stdout
    unknown = installed("regionroute", "train", "--config", "nano_fotos")
    assert unknown.returncode == 2
    assert "did you mean nano_photos?" in unknown.stderr

    photo = tmp_path / "photo.png"
    code = f"from skimage import data, io; io.imsave({str(photo)!r}, data.chelsea()[:96, :128])"
    assert installed("python", "-c", code).returncode == 0
    edit = ["regionroute", "edit", str(photo), "--object", "cat", "--style", "starry-night"]
    edited = installed(*edit, "--out", str(tmp_path / "out.png"))
    assert edited.returncode == 0, edited.stderr
    assert (tmp_path / "out.png").is_file()
    assert (tmp_path / "out.json").is_file()

    for command in ("demo", "study", "label", "score"):
        helped = installed("regionroute", command, "--help")
        assert helped.returncode == 0, helped.stderr
        assert f"usage: regionroute {command}" in helped.stdout
    # Everything the demo needs beside weights: its styles, its configuration, the report's page.
    needed = (
        "from pseudo_labels.stylize.registry import load_styles; load_styles('photos');"
        "from regionroute.config.shipped import find_config as find;"
        "assert find('nano_photos').is_file();"
        "import eval.report.html"
    )
    assert installed("python", "-c", needed).returncode == 0
