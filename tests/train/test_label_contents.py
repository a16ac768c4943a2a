"""The first training start after `regionroute label` reads no image to hash it."""

import pytest

from pseudo_labels.scenes.draw import render_scene
from regionroute.cli.label import main as label
from regionroute.data.images import write_image
from regionroute.data.manifest import load_manifest
from regionroute.data.startup import contents
from regionroute.data.startup.pack import pack
from regionroute.files import file_hash, write_jsonl

SHORT = ["train.steps=2", "train.global_batch=2", "train.log_every=1"]


@pytest.fixture
def pairs(tmp_path):
    """A data set of `regionroute label`: three photos of one or two objects."""
    rows = []
    for index in range(3):
        scene = render_scene(100 + index, 64, count=1 + index % 2)
        write_image(tmp_path / "in" / f"{index}.png", scene.image)
        for word in scene.words():
            write_image(tmp_path / "in" / f"{index}.{word}.png", scene.mask(word))
        masks = [{"word": word, "mask": f"{index}.{word}.png"} for word in scene.words()]
        rows.append({"image": f"{index}.png", "objects": masks})
    write_jsonl(tmp_path / "in" / "labels.jsonl", rows)
    keep = ["--min-structure", "-1", "--min-strength", "0", "--max-alike", "-1"]
    how = ["--styles", "scenes", "--only", "pixel-art,line-art", "--multi", "1", "--workers", "1"]
    given = ["--labels", str(tmp_path / "in" / "labels.jsonl"), "--out", str(tmp_path / "labelled")]
    assert label([*given, *keep, *how]) == 0
    return tmp_path / "labelled"


@pytest.mark.parametrize("packed", [False, True])
def test_the_first_start_hashes_nothing(runs, pairs, tiny_base, tmp_path, monkeypatch, packed):
    copy = tmp_path / "copy"  # without hashes
    for path in [*pairs.rglob("*.png"), pairs / "manifest.jsonl"]:
        (copy / path.relative_to(pairs)).parent.mkdir(exist_ok=True, parents=True)
        (copy / path.relative_to(pairs)).write_bytes(path.read_bytes())
    read = []
    real = contents.read_facts

    def read_facts(path):
        read.append(path)
        return real(path)

    for module in ("train.data.files", "regionroute.data.startup.pack"):
        monkeypatch.setattr(f"{module}.read_facts", read_facts)
    hashed = type(runs)(tiny_base, copy, tmp_path / "hashed")
    assert hashed("run", *SHORT) == 0
    assert len(set(read)) == len(read) > 10
    read.clear()
    if packed:
        pytest.importorskip("pyarrow", reason="pip install 'regionroute[pack]'")
        pack(pairs)
    known = type(runs)(tiny_base, pairs, tmp_path / "known")
    assert known("run", *SHORT) == 0
    assert read == []
    assert losses(known) == losses(hashed)
    assert sorted(keys(known)) == sorted(keys(hashed))


def losses(runs):
    return [row["total"] for row in runs.losses("run")]


def keys(runs):
    """Names of the cache's files, which are hashes of the keys in them."""
    return [path.name for path in (runs.folder / "cache").rglob("*.safetensors")]


def test_labels_are_hashed_when_they_are_made(pairs):
    known = contents.Contents(pairs)
    files = {file for sample in load_manifest(pairs) for file in sample.files}
    assert len(files) > 10
    for file in files:
        assert known.of(pairs / file).content == file_hash(pairs / file)
