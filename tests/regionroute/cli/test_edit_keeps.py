"""What an edit keeps: transparency, colour profile, EXIF on request, and everybody's files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from regionroute.cli.main import main
from regionroute.data.manifest import load_manifest
from regionroute.editing.batch import manifest_rows, read_rows
from regionroute.editing.outputs import Destination, check_destination
from regionroute.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
LABELME = json.dumps({"version": "5.2.1", "shapes": [], "imagePath": "dog.png"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abc":
        Image.fromarray(NOISE).save(tmp_path / f"{name}.png")
    return tmp_path


def row(**changes: str) -> dict[str, str]:
    return {"image": "a.png", "object": "dog", "style": "lines", "out": "out.png"} | changes


def rows(folder: Path, *values: dict[str, str], name: str = "rows.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    return folder / name


def test_transparency_profile_and_exif_survive_an_edit(
    folder: Path, tiny_base: Path, tiny_experts: Path
) -> None:
    alpha = np.full((32, 48), 255, np.uint8)
    alpha[:10] = 0
    alpha[10:12] = 51
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    Image.fromarray(np.dstack([NOISE, alpha])).save(
        folder / "cut.png", icc_profile=profile, exif=exif
    )
    mask = np.zeros((32, 48), np.uint8)
    mask[20:30, 10:40] = 1
    Image.fromarray(mask).save(folder / "mask.png")
    model = ["--base", str(tiny_base), "--experts", str(tiny_experts), "--steps", "1"]
    words = ["--object", "dog", "--style", "lines", "--region-map", str(folder / "mask.png")]
    for number, options in enumerate(([], ["--keep-exif"])):
        out = folder / f"out{number}.png"
        command = ["edit", str(folder / "cut.png"), *words, "--out", str(out), *model, *options]
        assert main([*command, "--lock-background"]) == 0
        edited = Image.open(out)
        pixels = np.asarray(edited)
        assert edited.mode == "RGBA"
        assert edited.info["icc_profile"] == profile
        assert (edited.getexif().get(0x010F) == "a maker") == bool(options)
        assert np.array_equal(pixels[..., 3], alpha)
        assert np.array_equal(pixels[mask == 0][:, :3], NOISE[mask == 0])
        assert not np.array_equal(pixels[mask == 1][:, :3], NOISE[mask == 1])
    batch = rows(folder, row(image="cut.png", out="batch.png"))
    assert main(["edit", "--batch", str(batch), *model]) == 0
    edited = Image.open(folder / "batch.png")
    assert (edited.mode, edited.info["icc_profile"]) == ("RGBA", profile)


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_an_output_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"give a file name such as out\.png"):
        check_destination(Destination(Path(name)), [])


def test_a_stranger_s_json_is_not_overwritten(folder: Path) -> None:
    (folder / "dog.json").write_text(LABELME)
    for name in ("dog.png", "a.png"):
        with pytest.raises(UserError, match=r"dog\.json: .*not the settings of an image|overwrite"):
            check_destination(Destination(folder / name), [folder / "a.png"])
    jobs = read_rows(rows(folder, row(out="dog.png"), row()))
    assert len(jobs.jobs) == 1
    assert "not the settings of an image" in jobs.problems[0]
    assert (folder / "dog.json").read_text() == LABELME
    (folder / "dog.json").write_text(json.dumps({"prompt": "x", "versions": {"regionroute": "1"}}))
    check_destination(Destination(folder / "dog.png"), [folder / "a.png"])  # an edit made again


def test_a_pipe_in_the_place_of_an_output_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "out.json")
    with pytest.raises(UserError, match=r"out\.json: this is a device, pipe or socket"):
        check_destination(Destination(folder / "out.png"), [folder / "a.png"])


@pytest.mark.parametrize(
    "options",
    [
        ["--region-map", "{f}/b.png", "--out", "{f}/b.png"],
        ["--region-map", "{f}/b.png", "--out", "{f}/o.png", "--map", "{f}/b.png"],
        ["--region-map", "{f}/b.png", "--out", "{f}/o.png", "--side-by-side", "{f}/link.png"],
        ["--style-image", "{f}/b.png", "--out", "{f}/b.png"],
        ["--map-from", "{f}/o.json", "--style", "lines", "--out", "{f}/o.png"],
    ],
)
def test_no_input_of_a_request_is_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    (folder / "link.png").symlink_to(folder / "b.png")
    (folder / "o.json").write_text(json.dumps({"prompt": "x", "versions": {"regionroute": "1"}}))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    style = [] if "--style-image" in options or "--style" in options else ["--style", "lines"]
    arguments = [option.format(f=folder) for option in options]
    code = main(["edit", str(folder / "a.png"), "--object", "dog", *style, *arguments])
    assert code == 2
    assert "would overwrite the input" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "later",
    [
        row(image="b.png", out="c2.png"),
        row(image="./sub/../b.png", out="c2.png"),
        {"image": "c.png", "object": "dog", "style_image": "b.png", "out": "c2.png"},
    ],
)
def test_no_row_edits_the_edit_of_another(folder: Path, later: dict[str, str]) -> None:
    (folder / "sub").mkdir()
    for order in ([row(out="b.png"), later], [later, row(out="b.png")]):
        with pytest.raises(UserError, match=r"rows\.jsonl:\d: .*b\.png: this would overwrite"):
            read_rows(rows(folder, *order))


def test_a_batch_does_not_overwrite_its_own_file(folder: Path) -> None:
    jobs = read_rows(rows(folder, row(out="rows.png"), name="rows.json"))
    assert "not the settings of an image" in jobs.problems[0]


def test_a_manifest_s_images_are_not_overwritten(tiny_manifest: Path) -> None:
    root = tiny_manifest
    names = {path.name for path in root.iterdir()}
    samples = load_manifest(root).samples
    sample = samples[1]
    text = (root / "manifest.jsonl").read_text()
    stem = Path(samples[0].target).stem
    (root / "manifest.jsonl").write_text(text.replace(f'"id": "{sample.id}"', f'"id": "{stem}"'))
    with pytest.raises(UserError, match=f"{stem}.png: this would overwrite the input"):
        manifest_rows(root, sample.split, root, 0)
    assert {path.name for path in root.iterdir()} == names


def test_impossible_names_cost_one_row(folder: Path) -> None:
    (folder / "circle.png").symlink_to(folder / "circle.png")
    jobs = read_rows(
        rows(
            folder,
            row(out="a\0b.png"),
            row(out="circle.png"),
            row(image="circle.png", out="o1.png"),
            row(image="x\0.png", out="o2.png"),
            row(out="good.png"),
        )
    )
    assert [job.destination.image.name for job in jobs.jobs][-1] == "good.png"
    assert len(jobs.problems) >= 2
    assert all("\0" not in problem for problem in jobs.problems)
