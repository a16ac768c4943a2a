"""Manifest rows: what is written can be read, what is wrong is refused by file and line."""

import dataclasses
import json
import os

import pytest
import torch
from PIL import Image

from regionroute.data.manifest import (
    EditSample,
    Manifest,
    Region,
    StyleSpec,
    load_manifest,
    manifest_file,
    mask_box,
    write_manifest,
)
from regionroute.errors import UserError

ROW = {
    "schema": 1,
    "id": "a",
    "context": "a.context.png",
    "target": "pictures/a.target.png",
    "regions": [{"object": "dog", "style": "line-art", "mask": "a.mask.png", "box": [0, 1, 2, 3]}],
    "prompt": "make the dog in line-art style, keep other area unchanged",
}
REGION = Region("dog", "line-art", "a.mask.png", (0, 1, 2, 3))
SAMPLE = EditSample("a", "a.context.png", "pictures/a.target.png", (REGION,), ROW["prompt"])


def _write_rows(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def _region(**changes):
    return {**ROW, "regions": [{**ROW["regions"][0], **changes}]}


def test_a_row_by_hand(tmp_path):
    _write_rows(tmp_path, ROW)
    assert load_manifest(tmp_path).samples == [SAMPLE]


def test_every_field_survives_the_disk(tmp_path):
    full = EditSample(
        id="photo 1-ä",
        context="in/a.png",
        target="out/a.png",
        regions=(
            Region("dog", "line-art", "m0.png", (0, 1, 2, 3), 0.5, (9, 12), (16, 24)),
            dataclasses.replace(REGION, object="cup"),
        ),
        prompt="make the dog in line-art style",
        split="val",
        flags=("touching", "small"),
        provenance={"seed": 3, "source": {"licence": "CC-BY"}},
    )
    whole = EditSample("whole", "a.png", "b.png", (), "make the image in line-art style")
    write_manifest(tmp_path / "new", [full, whole])
    manifest = load_manifest(tmp_path / "new" / "manifest.jsonl")
    assert manifest.samples == [full, whole]
    assert manifest.root == tmp_path / "new"
    first = json.loads((tmp_path / "new" / "manifest.jsonl").read_text().split("\n")[0])
    assert first["schema"] == 1
    assert hash(full) == hash(manifest.samples[0])


def test_the_file_or_its_folder(tmp_path):
    assert manifest_file(tmp_path) == tmp_path / "manifest.jsonl"
    assert manifest_file(tmp_path / "other.jsonl") == tmp_path / "other.jsonl"


def test_style_words():
    assert StyleSpec("pixel-art").words == "pixel-art"
    assert StyleSpec("pixel-art", "8-bit").words == "8-bit"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({**ROW, "contxt": 1}, "unknown key 'contxt', the nearest known one is 'context'"),
        (_region(stile="x"), "unknown key 'regions.0.stile', the nearest known one is 'style'"),
        ({k: v for k, v in ROW.items() if k != "prompt"}, "key 'prompt' is missing"),
        (_region(box=[0, 1, 2]), "regions.0.box"),
        (_region(box=["a", 1, 2, 3]), "regions.0.box.0: input should be a valid integer.* 'a'"),
        ({**ROW, "prompt": 5}, "prompt: input should be a valid string, not 5"),
        ({k: v for k, v in ROW.items() if k != "schema"}, "no schema version"),
        ({**ROW, "schema": 2}, "schema version 2 .* reads 1, update regionroute"),
        ({**ROW, "schema": "x"}, "schema version 'x' .* rebuild the manifest"),
        ("{not json", "not JSON"),
        ("[1, 2]", "must be a JSON object"),
        ({**ROW, "id": "first"}, "id 'first' was used on line 1 already"),
        ({**ROW, "id": "../a"}, "cannot be a file name"),
        ({**ROW, "id": ""}, "cannot be a file name"),
        ({**ROW, "id": ".a"}, "cannot be a file name"),
        ({**ROW, "context": "/etc/passwd"}, "'/etc/passwd' is refused: it must be relative"),
        ({**ROW, "context": "C:/a.png"}, "must be relative"),
        ({**ROW, "target": "../a.png"}, "must stay inside"),
        ({**ROW, "target": "a/../../b.png"}, "must stay inside"),
        ({**ROW, "target": "a\\b.png"}, "forward slashes"),
        ({**ROW, "target": ""}, "names no file"),
        (_region(mask="../mask.png"), "'../mask.png' is refused: it must stay inside"),
    ],
)
def test_bad_rows_are_refused_by_file_and_line(tmp_path, row, told):
    _write_rows(tmp_path, {**ROW, "id": "first"}, "", row)
    with pytest.raises(UserError, match=rf"manifest\.jsonl:3: .*{told}") as caught:
        load_manifest(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_manifest(tmp_path):
    with pytest.raises(UserError, match="no such manifest"):
        load_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"id": "a"}, "id 'a' is used twice"),
        ({"id": "x/y"}, "cannot be a file name"),
        ({"id": "b", "context": "/a.png"}, "must be relative"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        write_manifest(tmp_path, [SAMPLE, dataclasses.replace(SAMPLE, **changes)])
    assert list(tmp_path.iterdir()) == []


def test_links_out_of_the_folder_are_refused(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    Image.new("RGB", (4, 4)).save(folder / "mine.png")
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    os.symlink(tmp_path, folder / "up")
    os.symlink(folder / "mine.png", folder / "inner.png")
    manifest = Manifest(folder, [])
    for relative in ("link.png", "up/secret.png"):
        with pytest.raises(UserError, match="leaves the manifest's folder through a link"):
            manifest.path(relative)
        with pytest.raises(UserError, match="through a link"):
            manifest.context(dataclasses.replace(SAMPLE, context=relative))
    with pytest.raises(UserError, match="must stay inside"):
        manifest.path("../secret.png")
    assert manifest.path("inner.png") == folder / "inner.png"


def test_pictures_and_masks(tiny_manifest):
    manifest = load_manifest(tiny_manifest)
    sample = manifest.samples[0]
    context, target, masks = (
        manifest.context(sample),
        manifest.target(sample),
        manifest.masks(sample),
    )
    assert context.shape == target.shape == (3, 64, 64)
    assert masks.shape == (1, 1, 64, 64)
    assert torch.equal((context != target).any(0), masks[0, 0] > 0)
    assert mask_box(masks[0]) == sample.regions[0].box
    assert manifest.masks(dataclasses.replace(sample, regions=())).shape == (0, 1, 64, 64)


@pytest.mark.parametrize(
    ("kind", "told"), [("target", "the target is 8x4"), ("mask", "mask is 8x4")]
)
def test_other_sizes_are_refused(tiny_manifest, kind, told):
    Image.new("RGB", (8, 4)).save(tiny_manifest / f"0.{kind}.png")
    manifest = load_manifest(tiny_manifest)
    read = manifest.target if kind == "target" else manifest.masks
    with pytest.raises(UserError, match=told):
        read(manifest.samples[0])


def test_mask_box():
    mask = torch.zeros(1, 5, 7)
    with pytest.raises(ValueError, match="empty"):
        mask_box(mask)
    mask[0, 1, 2] = mask[0, 3, 4] = 1
    assert mask_box(mask) == (1, 2, 4, 5)
