"""The edit command: what it writes, many rows with one model, and a sentence for each mistake."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regionroute import pipeline
from regionroute.cli import edit_arguments as edit_command
from regionroute.cli import main as cli
from regionroute.config.sites import MapChoice
from regionroute.data.images import open_image, read_image
from regionroute.editing import batch
from regionroute.editing.editor import Editor
from regionroute.editing.outputs import enlarge_map, overlay, side_by_side
from regionroute.errors import UserError
from regionroute.models.loading import load_base

Run = Callable[..., int]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return draw(tmp_path / "photo.png", 30, 50)


def draw(path: Path, height: int, width: int, seed: int = 0) -> Path:
    """A picture of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def run(tiny_base: Path, tiny_experts: Path) -> Run:
    """``regionroute edit`` with the tiny base, its experts and one step unless told otherwise."""

    def call(*arguments: object, **options: object) -> int:
        defaults: dict[str, object] = {"base": tiny_base, "experts": tiny_experts, "steps": 1}
        flags = [
            part
            for key, value in (defaults | options).items()
            if value is not None
            for part in ("--" + key.replace("_", "-"), *([] if value is True else [str(value)]))
        ]
        return cli.main(["edit", *map(str, arguments), *flags])

    return call


def write_rows(path: Path, *rows: dict[str, Any] | str) -> Path:
    """A batch file; a text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines))
    return path


def row(**changes: Any) -> dict[str, Any]:
    """A good batch row for the photo, changed; None leaves a key out."""
    values = {"image": "photo.png", "object": "dog", "style": "lines", "out": "edits/a.png"}
    return {key: value for key, value in (values | changes).items() if value is not None}


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the bases that are loaded from now on."""
    loads: list[str] = []

    def load(spec: str, *arguments: Any) -> Any:
        loads.append(spec)
        return load_base(spec, *arguments)

    monkeypatch.setattr(pipeline, "load_base", load)
    return loads


# What it writes


def test_one_picture_with_everything(run: Run, photo: Path, tiny_experts: Path) -> None:
    folder = photo.parent / "new" / "folder"
    code = run(
        photo, object="dog", style="lines", out=folder / "out.png", map=folder / "map.png",
        side_by_side=folder / "cmp.png", seed=3, guidance=2.0,
    )  # fmt: skip
    assert code == 0
    edited = Image.open(folder / "out.png")
    assert edited.size == (50, 30)
    assert edited.mode == "RGB"
    settings = json.loads((folder / "out.json").read_text())
    assert json.loads(edited.text["parameters"]) == settings
    assert settings.pop("versions").keys() == {"regionroute", "torch", "diffusers"}
    assert settings == {
        "image": str(photo),
        "prompt": "make the dog in line-art style, keep other area unchanged",
        "object": "dog",
        "style": "lines",
        "base": settings["base"],
        "experts": str(tiny_experts),
        "steps": 1,
        "guidance": 2.0,
        "mode": "plain",
        "lock_background": False,
        "strength": 1.0,
        "instance": "all",
        "refine_crop": False,
        "sparse": False,
        "force": False,
        "sparse_quality": "balanced",
        "seed": 3,
        "size": [30, 50],
        "model_size": [24, 40],
        "map": {"file": "map.png", "grid": [6, 10], **MapChoice().settings()},
    }
    with Image.open(folder / "map.png") as picture:
        assert (picture.mode, picture.size) == ("L", (50, 30))
        assert len(set(np.asarray(picture).ravel())) > 2
    with Image.open(folder / "cmp.png") as picture:
        assert picture.width > 3 * 256
    assert not list(folder.glob(".*"))  # no temporary files


def test_the_settings_make_the_same_picture_again(run: Run, photo: Path) -> None:
    outs = [photo.with_name(f"{name}.png") for name in "abc"]
    for out, seed in zip(outs, (5, 5, 6), strict=True):
        assert run(photo, object="dog", style="lines", out=out, seed=seed) == 0
    same, again, other = (read_image(out) for out in outs)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_a_marked_prompt_needs_no_object_and_style(run: Run, photo: Path) -> None:
    out = photo.with_name("out.png")
    assert run(photo, prompt="turn the [Dog] into a {line-art} picture", out=out) == 0
    settings = json.loads(out.with_suffix(".json").read_text())
    assert settings["prompt"] == "turn the Dog into a line-art picture"
    assert (settings["object"], settings["style"]) == ("Dog", "lines")


def test_zero_shot_takes_any_style(run: Run, photo: Path) -> None:
    out = photo.with_name("out.png")
    assert run(photo, object="dog", style="gouache", out=out, experts=None, zero_shot=True) == 0
    assert json.loads(out.with_suffix(".json").read_text())["experts"] is None


def test_experts_in_the_bases_folder_are_the_default(
    run: Run, photo: Path, tiny_base: Path, tiny_experts: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    shutil.copytree(tiny_experts, base / "experts")
    out = photo.with_name("out.png")
    assert run(photo, object="dog", style="lines", out=out, base=base, experts=None) == 0
    assert json.loads(out.with_suffix(".json").read_text())["experts"] == str(base / "experts")


def test_maps_are_enlarged_by_whole_tokens() -> None:
    full = enlarge_map(torch.tensor([[0.0, 1.0]]), 2, 6)
    assert full.tolist() == [[[0, 0, 0, 1, 1, 1]] * 2]


def test_the_overlay_tints_where_the_map_is_high() -> None:
    tinted = overlay(torch.full((3, 1, 2), 0.5), torch.tensor([[[0.0, 1.0]]]))
    assert tinted[:, 0, 0].tolist() == [0.5, 0.5, 0.5]
    assert tinted[0, 0, 1] > 0.8
    assert tinted[2, 0, 1] < 0.3


def test_the_side_by_side_keeps_large_pictures_and_long_labels() -> None:
    panels = {"source": torch.rand(3, 40, 300), "a very long label " * 9: torch.rand(3, 40, 300)}
    joined = side_by_side(panels)
    assert joined.shape[2] == 2 * 300 + 3 * 8
    torch.testing.assert_close(joined[:, 22:62, 8:308], panels["source"], atol=1 / 255, rtol=0)


def test_the_old_name_of_refine_crop_is_an_alias(
    run: Run, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = photo.with_name("out.png")
    options: dict[str, Any] = {"object": "dog", "style": "lines", "out": out, "mode": "routed"}
    for flag, wanted in (("closer", True), ("no_closer", False), ("refine_crop", True)):
        assert run(photo, **options, **{flag: True}) == 0
        assert json.loads(out.with_suffix(".json").read_text())["refine_crop"] is wanted
        note = f"note: --{flag.replace('_', '-')} is now called --"
        assert capsys.readouterr().err.count(note) == (flag != "refine_crop")


# Many images


def test_rows_take_the_experts_for_their_kind_of_style(photo: Path, tmp_path: Path) -> None:
    common = {"image": str(photo), "object": "square"}
    shown = row(**common, style=None, style_image=str(photo), out="a.png")
    rows = write_rows(tmp_path / "rows.jsonl", row(**common, style="line-art", out="b.png"), shown)
    assert cli.main(["edit", "--batch", str(rows), "--base", "nano", "--force"]) == 0
    shown, named = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert shown["nearest_trained_style"]
    assert named["style"] == "line-art"


def test_zero_shot_has_no_style_images(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["edit", str(photo), "--object", "dog", "--style-image", str(photo), "--zero-shot"]
    assert cli.main([*given, "--out", "out.png"]) != 0
    assert "leave --zero-shot out" in capsys.readouterr().err


def test_a_batch_loads_the_model_once_and_equals_single_edits(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = photo.parent
    draw(folder / "sub" / "other.png", 30, 50, seed=1)
    draw(folder / "wide.png", 20, 60, seed=2)
    rows = write_rows(
        folder / "rows.jsonl",
        row(out="a.png", seed=1, id="first", map="a.map.png", side_by_side="a.pair.png"),
        row(image="sub/other.png", object="cup", style="pixel-art", out="b.png", seed=2),
        row(image="wide.png", out="c.png"),
        "",
        row(out="d.png", object=None, style=None, prompt="the [dog] as {line-art}"),
    )
    loads = count_loads(monkeypatch)
    assert run(batch=rows, batch_size=2, seed=9) == 0
    assert len(loads) == 1
    assert run(folder / "sub/other.png", object="cup", style="pixel-art", seed=2,
               out=folder / "alone.png") == 0  # fmt: skip
    difference = read_image(folder / "b.png") - read_image(folder / "alone.png")
    assert difference.abs().max() <= 1 / 255  # a batch may round the last bit differently
    first = json.loads((folder / "a.json").read_text())
    assert (first["id"], first["seed"], first["map"]["file"]) == ("first", 1, "a.map.png")
    assert read_image(folder / "a.pair.png").shape[2] > 2 * read_image(photo).shape[2]
    assert json.loads((folder / "c.json").read_text())["seed"] == 9
    assert read_image(folder / "c.png").shape == (3, 20, 60)
    assert json.loads((folder / "d.json").read_text())["prompt"] == "the dog as line-art"
    assert not (folder / "b.map.png").exists()


def test_rows_of_one_size_share_a_batch(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(photo.with_name("wide.png"), 20, 60)
    rows = write_rows(
        photo.with_name("rows.jsonl"),
        *[row(image=("photo.png", "wide.png")[i % 2], out=f"{i}.png") for i in range(6)],
    )
    sizes: list[int] = []
    original = Editor.edit_batch

    def spy(self: Editor, images: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(len(images))
        return original(self, images, *arguments, **options)

    monkeypatch.setattr(Editor, "edit_batch", spy)
    assert run(batch=rows, batch_size=2) == 0
    assert sizes == [2, 1, 2, 1]
    assert all(photo.with_name(f"{i}.png").is_file() for i in range(6))


BAD_ROWS: list[tuple[dict[str, Any] | str, str]] = [
    ('{"image": "photo.png", ', "this line is not JSON"),
    ("[1, 2]", "must be a JSON object"),
    (row(imagee="x"), "unknown key 'imagee', the nearest known one is 'image'"),
    (row(image="absent.png"), "absent.png: no such image"),
    (row(image="."), "this is a folder"),
    (row(image="corrupt.png"), "cannot be read"),
    (row(image="truncated.png"), "cannot be read"),
    (row(image="thin.png"), "more than 16 times"),
    (row(object=None), "object is missing or empty"),
    (row(style="  "), "style is missing or empty"),
    (row(out=None), "out is missing or empty"),
    (row(out="x.jpg"), "name that ends in .png"),
    (row(out="edits"), "name that ends in .png"),
    (row(out="photo.png/x.png"), "is a file, not a folder"),
    (row(out="./photo.png"), "would overwrite the input"),
    (row(out="folder.png"), "this is a folder"),
    (row(out="m.png", map="m.png"), "the same name"),
    (row(out="good1.png"), "writes the same file"),
    (row(style="oil"), "no expert for style"),
    (row(seed="7"), "seed must be an integer, not '7'"),
    (row(seed=True), "seed must be an integer"),
    (row(seed=-4), "seed -4"),
    (row(prompt="the [cat] as {line-art}"), "mark that pair"),
    (row(prompt="the [dog as {line-art}"), "no partner"),
    (row(object="very " * 30 + "dog"), "beyond the 32 tokens"),
]


def test_bad_rows_do_not_stop_the_others_and_are_listed_with_their_line(
    run: Run, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = photo.parent
    (folder / "corrupt.png").write_bytes(b"not a picture")
    (folder / "truncated.png").write_bytes(photo.read_bytes()[:800])
    draw(folder / "thin.png", 4, 200)
    (folder / "folder.png").mkdir()
    good = row(out="good1.png"), row(out="good2.png")
    bad = [values for values, _ in BAD_ROWS]
    for number, values in enumerate(bad):  # no two rows may write the same file
        if isinstance(values, dict) and values.get("out") == "edits/a.png":
            bad[number] = values | {"out": f"edits/{number}.png"}
    rows = write_rows(folder / "rows.jsonl", good[0], *bad, good[1])
    assert run(batch=rows) == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert "edited 2, skipped 0" in captured.out
    assert f"failed {len(BAD_ROWS)}" in captured.out
    assert len(errors) == len(BAD_ROWS)
    for line, (_, sentence) in enumerate(BAD_ROWS, start=2):
        [error] = [e for e in errors if e.startswith(f"error: {rows}:{line}: ")]
        assert sentence in error
    for name in ("good1", "good2"):
        assert (folder / f"{name}.png").is_file()
        assert (folder / f"{name}.json").is_file()
    assert "Traceback" not in captured.err


def test_nothing_is_loaded_when_no_row_is_good(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = count_loads(monkeypatch)
    assert run(batch=write_rows(photo.with_name("rows.jsonl"), row(out="x.jpg"))) == 1
    assert not loads


def test_skip_existing_does_the_missing_ones_only(
    run: Run, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(photo.with_name("rows.jsonl"), row(out="a.png"), row(out="b.png"))
    photo.with_name("a.png").write_bytes(b"mine")
    assert run(batch=rows, skip_existing=True) == 0
    assert photo.with_name("a.png").read_bytes() == b"mine"
    assert photo.with_name("b.png").is_file()
    assert "edited 1, skipped 1, failed 0" in capsys.readouterr().out


def test_a_manifest_gives_the_folder_that_the_score_reads(
    run: Run, tiny_manifest: Path, tmp_path: Path
) -> None:
    text = (tiny_manifest / "manifest.jsonl").read_text().replace('"line-art"', '"lines"')
    (tiny_manifest / "manifest.jsonl").write_text(text)
    out = tmp_path / "edits"
    assert run(manifest=tiny_manifest, split="train", out_dir=out) == 0
    names = {f"pair-{i}.{end}" for i in range(3) for end in ("png", "json", "map.png")}
    assert {file.name for file in out.iterdir()} == names
    settings = json.loads((out / "pair-2.json").read_text())
    assert (settings["id"], settings["object"], settings["style"]) == ("pair-2", "square", "lines")
    assert settings["map"]["file"] == "pair-2.map.png"
    assert settings["map"]["grid"] == [8, 8]
    seeds = {json.loads((out / f"pair-{i}.json").read_text())["seed"] for i in range(3)}
    assert len(seeds) == 3
    # The same sample keeps its noise in another subset.
    again = tmp_path / "again"
    kept = [line for line in text.splitlines() if '"pair-2"' in line]
    (tiny_manifest / "manifest.jsonl").write_text("\n".join(kept) + "\n")
    assert run(manifest=tiny_manifest / "manifest.jsonl", split="train", out_dir=again) == 0
    torch.testing.assert_close(
        read_image(again / "pair-2.png"), read_image(out / "pair-2.png"), atol=1 / 255, rtol=0
    )


def test_a_manifest_row_with_several_regions_edits_the_first(
    tiny_manifest: Path, tmp_path: Path
) -> None:
    file = tiny_manifest / "manifest.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["regions"] = [rows[0]["regions"][0], {**rows[1]["regions"][0], "mask": "0.mask.png"}]
    rows[1]["regions"] = []
    rows[2]["regions"][0] |= {"object_span": [9, 15], "style_span": [19, 27]}
    file.write_text("".join(json.dumps(r) + "\n" for r in rows[:3]) + "{\n")
    jobs = batch.manifest_rows(file, "train", tmp_path / "edits", seed=0)
    assert [job.request.object for job in jobs.jobs] == ["square", "square"]
    assert jobs.jobs[0].request.prompt is None
    assert jobs.jobs[1].request.prompt.style_spans == ((19, 27),)
    assert len(jobs.problems) == 2
    assert "pair-1: the sample has no region to edit" in jobs.problems[0]
    assert "manifest.jsonl:4" in jobs.problems[1]


@pytest.fixture
def unsure(tiny_base: Path, tmp_path: Path, write_experts: Callable[..., Path]) -> Path:
    """Experts whose edits warn whatever they find."""
    routing = {"branch": "expert", "confidence": 1e6}
    return write_experts(tmp_path / "unsure", load_base(str(tiny_base)), routing=routing)


def test_warnings_of_rows_are_shown_counted_and_kept(
    run: Run, photo: Path, unsure: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    several = row(out="b.png", object="d\x1b[31mog", also=[["cup", "pixel-art"]])
    rows = write_rows(
        photo.with_name("rows.jsonl"), row(out="a.png"), several, row(out="c.png", image="no.png")
    )
    assert run(batch=rows, experts=unsure, mode="routed") == 1
    captured = capsys.readouterr()
    assert captured.out.strip().endswith("edited 2, skipped 0, failed 1, warnings 3")
    warnings = [line for line in captured.err.splitlines() if line.startswith("warning: ")]
    found = [line.partition(" was hardly found in the image")[0] for line in warnings]
    assert found == [
        f'warning: {rows}:1: "dog"',
        f'warning: {rows}:2: "d\\x1b[31mog"',
        f'warning: {rows}:2: "cup"',
    ]
    for name, count in (("a", 1), ("b", 2)):
        kept = json.loads(photo.with_name(f"{name}.json").read_text())["warnings"]
        assert len(kept) == count
        assert "was hardly found" in kept[-1]
    assert not photo.with_name("c.json").exists()


def test_warnings_of_a_manifest_name_the_sample(
    run: Run, tiny_manifest: Path, tmp_path: Path, unsure: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = {"split": "val", "out_dir": tmp_path / "out", "mode": "routed", "experts": unsure}
    file = tiny_manifest / "manifest.jsonl"
    file.write_text(file.read_text().replace('"style": "line-art"', '"style": "lines"'))
    assert run(manifest=tiny_manifest, **options) == 0
    captured = capsys.readouterr()
    assert captured.out.strip().endswith("edited 1, skipped 0, failed 0, warnings 1")
    assert f'warning: {file}: sample pair-3: "circle" was hardly found' in captured.err


def test_rows_say_what_could_not_be_kept_of_their_image(
    run: Run, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = replace(open_image(photo), notes=("the profile is converted",))
    monkeypatch.setattr(batch, "open_image", lambda path: opened)
    rows = write_rows(photo.with_name("rows.jsonl"), row(out="a.png"))
    assert run(batch=rows) == 0
    captured = capsys.readouterr()
    assert f"note: {rows}:1: the profile is converted\n" in captured.err
    assert captured.out.strip().endswith("failed 0, warnings 0")


@pytest.mark.parametrize("wording", ["the dog", " DOG", "a_dog", "Dog-"])
def test_the_template_takes_the_bare_words_of_an_object(
    run: Run, photo: Path, wording: str
) -> None:
    pairs = row(out="b.png", object="cup", also=[[wording, "pixel-art"]])
    marked = row(out="c.png", object=None, style=None, prompt=f"the [{wording}] as {{line-art}}")
    rows = write_rows(
        photo.with_name("rows.jsonl"), row(out="a.png", object=wording), pairs, marked
    )
    assert run(batch=rows, mode="routed") == 0
    a, b, c = (json.loads(photo.with_name(f"{name}.json").read_text()) for name in "abc")
    assert a["prompt"] == "make the dog in line-art style, keep other area unchanged"
    assert a["object"] == wording
    assert b["prompt"][1] == "make the dog in pixel-art style, keep other area unchanged"
    assert b["object"] == ["cup", wording]
    assert c["prompt"] == f"the {wording} as line-art"
    photo.with_name("one").mkdir()
    assert run(photo, object=wording, style="lines", out=photo.with_name("one") / "a.png") == 0
    one = json.loads((photo.with_name("one") / "a.json").read_text())
    assert (one["prompt"], one["object"]) == (a["prompt"], wording)


def test_a_full_disk_stops_the_batch_with_one_sentence(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(photo.with_name("rows.jsonl"), *[row(out=f"{i}.png") for i in range(3)])
    done: list[Path] = []
    original = batch.write_edit

    def write(destination: Any, *arguments: Any, **options: Any) -> None:
        if done:
            raise OSError(28, "No space left on device", str(destination.image))
        done.append(destination.image)
        original(destination, *arguments, **options)

    monkeypatch.setattr(batch, "write_edit", write)
    assert run(batch=rows, batch_size=1) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert read_image(done[0]).shape == (3, 30, 50)


def test_running_out_of_memory_says_what_to_lower(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")

    monkeypatch.setattr(Editor, "edit_batch", fail)
    assert run(photo, object="dog", style="lines", out=photo.with_name("o.png")) == 2
    assert "not enough memory: lower --batch-size" in one_error(capsys)


# Mistakes


def one_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr besides progress bars."""
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line.lower()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "Traceback" not in lines[0]
    return lines[0]


MODEL = "--base {base} --experts {experts}"
GOOD = "{f}/photo.png --object dog --style lines --out {f}/out.png " + MODEL
# Later options override earlier ones, so a mistake is what is added to a good command.
MISTAKES = [
    ("{f}/no.png --object dog --style lines --out {f}/out.png", "no.png: no such image"),
    ("{f}/corrupt.png --object dog --style lines --out {f}/out.png", "cannot be read"),
    ("{f} --object dog --style lines --out {f}/out.png", "this is a folder"),
    ("", "give one of an image, --batch ROWS or --manifest DIR"),
    (GOOD + " --batch {f}/empty.jsonl", "not image and batch together"),
    ("{f}/photo.png --style lines --out {f}/out.png", "--object is missing or empty"),
    (GOOD + " --object ' '", "--object is missing or empty"),
    (GOOD + " --style ''", "--style is missing or empty"),
    ("{f}/photo.png --object dog --style linez --out {f}/out.png", "the nearest is"),
    (GOOD + " --style lines", "as many --style as --object"),
    (GOOD + " --strength 1.5", "between 0 and 1"),
    (GOOD + " --strength 0.5", "needs mode routed"),
    (GOOD + " --mode routed --region-map {f}/none.png", "none.png"),
    (GOOD + " --mode plain --object cup --style lines", "one object at a time"),
    (GOOD + " --steps 0", "--steps 0: must be at least 1"),
    (GOOD + " --steps 5000", "between 1 and 1000"),
    (GOOD + " --steps two", "invalid int value: 'two'"),
    (GOOD + " --guidance nan", "--guidance nan"),
    (GOOD + " --guidance=-1", "--guidance -1.0: must be 0 or more"),
    (GOOD + " --seed=-1", "--seed -1"),
    (GOOD + " --dtype int4", "invalid choice: 'int4'"),
    (GOOD + " --device warp", "device warp: not usable here"),
    (GOOD + " --device cuda:99", "device cuda:99"),
    (GOOD + " --stepz 3", "unrecognized arguments: --stepz 3"),
    (GOOD + " more.png", "unrecognized arguments: more.png"),
    (GOOD + " --split val", "--split cannot be used with a single image"),
    (GOOD + " --skip-existing", "--skip-existing cannot be used with a single image"),
    (GOOD + " --zero-shot", "remove --experts"),
    ("{f}/photo.png --object dog --style lines", "--out is missing"),
    (GOOD + " --out {f}", "ends in .png"),
    (GOOD + " --out {f}/folder.png", "this is a folder"),
    (GOOD + " --out {f}/out.jpg", "ends in .png"),
    (GOOD + " --out {f}/photo.png", "would overwrite the input"),
    (GOOD + " --out {f}/photo.png/out.png", "is a file, not a folder"),
    (GOOD + " --map {f}/out.png", "two of its files have the same name"),
    (GOOD + " --experts {f}/none", "no experts.json here"),
    ("{f}/photo.png --object dog --style lines --out {f}/out.png --base {base}", "without experts"),
    (GOOD + " --base {f}/none", "no such folder"),
    (GOOD + " --base {f}", "no model_index.json"),
    (GOOD + " --base {plain}", "these experts were trained on base"),
    (GOOD + " --prompt 'the [cup] in {{line-art}}'", "mark that pair"),
    (GOOD + " --prompt 'turn it over'", "'dog' is not in it"),
    (GOOD + " --prompt '[dog] in {{line-art'", "no partner"),
    (GOOD + f" --prompt '{'please ' * 9} the [dog] in {{{{line-art}}}}'", "beyond the 32 tokens"),
    ("--batch {f}/none.jsonl", "no such file"),
    ("--batch {f}", "this is a folder"),
    ("--batch {f}/empty.jsonl", "no rows"),
    ("--batch {f}/binary.jsonl", "not UTF-8"),
    ("--batch {f}/empty.jsonl --batch-size 0", "--batch-size 0"),
    ("--batch {f}/empty.jsonl --object x", "--object cannot be used with --batch"),
    ("--manifest {f}", "--out-dir is missing"),
    ("--manifest {f}/none --out-dir {f}/edits", "no such manifest"),
]


@pytest.mark.parametrize(("line", "sentence"), MISTAKES)
def test_each_mistake_is_one_sentence_and_loses_nothing(
    photo: Path,
    tiny_base: Path,
    plain_folder: Path,
    tiny_experts: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
    sentence: str,
) -> None:
    folder = photo.parent
    (folder / "corrupt.png").write_bytes(b"\x89PNG and then nonsense")
    (folder / "empty.jsonl").write_text("\n  \n")
    (folder / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    (folder / "folder.png").mkdir()
    earlier = Path(shutil.copy(photo, folder / "out.png"))  # a result that must survive
    before = photo.read_bytes()
    filled = line.format(f=folder, base=tiny_base, plain=plain_folder, experts=tiny_experts)
    assert cli.main(["edit", *shlex.split(filled)]) == 2
    assert sentence in one_error(capsys)
    assert photo.read_bytes() == earlier.read_bytes() == before
    assert not list(folder.glob(".*"))


def test_a_manifest_without_the_split_names_those_there_are(
    run: Run, tiny_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(manifest=tiny_manifest, out_dir=tmp_path / "edits") == 2
    assert "no sample of split 'test' (there are: train, val)" in one_error(capsys)


# The command itself


def test_help_is_quick_and_needs_no_torch() -> None:
    script = (
        "import sys\n"
        "from regionroute.cli.main import main\n"
        "main(['--help'])\n"
        "try:\n"
        "    main(['edit', '--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "regionroute edit photo.png" in done.stdout
    assert "turn the [dog]" in done.stdout


def test_examples_in_the_help_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"\\\n\s+", "", edit_command.EPILOG)
    examples = [
        line.split("edit ", 1)[1] for line in text.splitlines() if "regionroute edit" in line
    ]
    assert len(examples) == 10
    for example in examples:
        words = re.findall(r'"[^"]*"|\S+', example)
        arguments = edit_command.parser().parse_args([word.strip('"') for word in words])
        for path in (arguments.image, *(arguments.style_image or arguments.region_map or ())):
            if path:
                path.touch()
        edit_command.check_arguments(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png"], "none.png: no such image"),
        (["photo.png", "--style-image", "none.jpg"], "none.jpg: no such image"),
        (["photo.png", "--region-map", "."], "this is a folder"),
        (["photo.png", *["--region-map", "photo.png"] * 2], "2 --region-map for 1 --object"),
        (["photo.png", "--out", "out.jpg"], "out.jpg: images are written as PNG"),
        (["photo.png", "--map", "map.jpg"], "map.jpg: images are written as PNG"),
        (["photo.png", "--side-by-side", "two"], "two: images are written as PNG"),
    ],
)
def test_files_that_cannot_be_are_refused_before_anything_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").touch()
    style = [] if "--style-image" in arguments else ["--style", "neon"]
    given = ["--object", "dog", *style, *([] if "--out" in arguments else ["--out", "out.png"])]
    parsed = edit_command.parser().parse_args([*arguments, *given])
    with pytest.raises(UserError, match=re.escape(message)):
        edit_command.check_arguments(parsed)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_command_lists_its_commands(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"regionroute \d+\.\d+.*\n", capsys.readouterr().out)


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["edti"]) == 2
    assert "did you mean edit?" in one_error(capsys)


@pytest.mark.parametrize("name", ["edit", "check", "doctor", "scenes", "label"])
def test_every_command_teaches_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.count(f"regionroute {name}") > 1  # once in the usage, and in an example
