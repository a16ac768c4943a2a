"""The engine: an edit writes the files of the command; limits, cancelling, names of places."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from regionroute.cli.edit import main as edit_command
from regionroute.data.images import read_soft_mask
from regionroute.errors import UserError
from regionroute.studio.engine import (
    Cancelled,
    Engine,
    check_upload,
    seeds_of,
    strengths_of,
)
from regionroute.studio.jobs import AUTO, NONE, EditJob, JobOptions, Sampling, read_settings
from regionroute.studio.settings import StudioSettings


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_experts: Path) -> Engine:
    """On the tiny base; its experts are offered as "two"."""
    settings = StudioSettings(
        bases=[str(tiny_base)], experts={"two": str(tiny_experts)}, device="cpu", max_objects=2
    )
    return Engine(settings, tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 4), dtype=np.uint8)
    noise[..., 3] = 255
    noise[:8, :, 3] = 0  # transparency is kept, as by the command
    Image.fromarray(noise).save(path)
    return path


def job(photo: Path, **given: Any) -> EditJob:
    """An edit of the photo; what is no part of `EditJob` is one of its options."""
    usual: dict[str, Any] = {"objects": ("cat",), "styles": ("lines",)}
    parts = {key: given.pop(key) for key in ("objects", "styles", "regions") if key in given}
    options = JobOptions.model_validate({"experts": "two", "mode": "routed"} | given)
    return EditJob(photo, options=options, **usual | parts)


def test_the_file_of_an_edit_is_that_of_the_command(
    engine: Engine, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    tiny_base: Path, tiny_experts: Path,
) -> None:  # fmt: skip
    steps: list[tuple[int, int]] = []
    record = engine.run(
        job(photo, seed=3, steps=2), on_step=lambda step, of: steps.append((step, of))
    )
    assert steps == [(1, 2), (2, 2)]
    monkeypatch.chdir(photo.parent)
    out = tmp_path / "out.png"
    given = ["--base", str(tiny_base), "--experts", str(tiny_experts), "--device", "cpu"]
    given += [
        "--object",
        "cat",
        "--style",
        "lines",
        "--seed",
        "3",
        "--steps",
        "2",
        "--mode",
        "routed",
    ]
    assert edit_command([photo.name, *given, "--out", str(out)]) == 0
    assert Image.open(record.image).tobytes() == Image.open(out).tobytes()
    ours, theirs = (json.loads(p.with_suffix(".json").read_text()) for p in (record.image, out))
    assert ours == theirs | {"base": tiny_base.name, "experts": "two"}  # names, not places
    assert record.settings.read_text() == record.image.with_suffix(".json").read_text()


def test_saved_settings_repeat_an_edit_with_its_regions(engine: Engine, photo: Path) -> None:
    half = torch.zeros(48, 64)
    half[:, 32:] = 1
    pairs = {"objects": ("cat", "dog"), "styles": ("lines", "pixel-art")}
    record = engine.run(job(photo, regions=(half, 1 - half), strength=0.5, force=True, **pairs))
    saved = read_settings(record.image)
    assert saved == read_settings(record.settings)
    assert all(map(torch.equal, saved.regions(), (half, 1 - half)))
    assert [read_soft_mask(path, (48, 64))[0].mean() for path in record.regions] == [0.5, 0.5]
    how = {name: getattr(saved, name) for name in Sampling.model_fields}
    again = engine.run(
        job(
            photo, objects=tuple(saved.objects), styles=tuple(saved.styles),
            regions=saved.regions(), **how,
        )
    )  # fmt: skip
    assert again.image.read_bytes() == record.image.read_bytes()
    assert "--region-map region-2.png" in record.command
    assert "--force" in record.command


def test_a_base_is_loaded_once(engine: Engine, photo: Path) -> None:
    first = engine.load("", "two")
    engine.run(job(photo))
    assert engine.load("", "two") is first


def test_edits_of_all_threads_run_on_one(engine: Engine, photo: Path) -> None:
    seen: set[threading.Thread] = set()

    def run(seed: int) -> None:
        given = job(photo, seed=seed, steps=2)
        engine.run(given, on_step=lambda *_: seen.add(threading.current_thread()))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [thread.name for thread in seen] == ["device"]


def test_a_running_edit_is_cancelled_and_only_by_its_session(engine: Engine, photo: Path) -> None:
    assert not engine.cancel("mine")
    started, found = threading.Event(), []

    def run() -> None:
        try:
            engine.run(job(photo, steps=200), "mine", lambda *_: started.set())
        except Cancelled as stop:
            found.append(str(stop))

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(60)
    assert not engine.cancel("yours")
    assert engine.cancel("mine")
    thread.join(60)
    assert found
    assert found[0].startswith("Cancelled after step")
    assert engine.run(job(photo), "mine").image.is_file()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"objects": ()}, "1 to 2 objects"),
        ({"objects": ("a",) * 3, "styles": ("lines",) * 3}, "1 to 2 objects"),
        ({"objects": (" ",)}, "object 1 is empty"),
        ({"styles": ("",)}, "style of 'cat' is empty"),
        ({"styles": ()}, "give one for each"),
        ({"styles": ("pixelart",)}, "pixel-art"),
        ({"steps": 201}, "1 to 200"),
        ({"base": "other"}, "this server offers"),
        ({"experts": "other"}, "this server offers"),
        ({"photo": Path("/missing/photo.png")}, "photo.png"),
    ],
)
def test_what_cannot_be_done_is_said(
    engine: Engine, photo: Path, given: dict[str, Any], problem: str
) -> None:
    source = given.pop("photo", photo)
    with pytest.raises(UserError, match=problem) as caught:
        engine.run(job(source, **given))
    assert str(engine.folder) not in str(caught.value)


def test_errors_name_no_folder_of_this_machine(engine: Engine, tiny_base: Path) -> None:
    text = f"{engine.folder}/{'0f' * 32}/photo.png: damaged; {tiny_base}/x.json: missing"
    assert engine.public(text) == "photo.png: damaged; x.json: missing"


def test_styles_are_known_without_loading(tiny_experts: Path, tmp_path: Path) -> None:
    fresh = Engine(StudioSettings(experts={"two": str(tiny_experts)}), tmp_path)
    assert fresh.styles("", "two") == ["pixel-art", "lines"]
    assert fresh.styles("", NONE) == []
    assert "neon" in fresh.styles("", AUTO)
    assert fresh._pipelines == {}


def test_uploads_are_checked_by_their_header(tmp_path: Path) -> None:
    image = tmp_path / "large.png"
    Image.new("1", (3000, 2000)).save(image)
    limits = StudioSettings(max_pixels=1_000_000)
    with pytest.raises(UserError, match="3000x2000 pixels are too many"):
        check_upload(image, limits)
    assert check_upload(image, StudioSettings()) == (2000, 3000)
    with pytest.raises(UserError, match="larger than"):
        check_upload(image, StudioSettings(max_upload_mb=1e-5))
    image.write_text("text")
    with pytest.raises(UserError, match="cannot be read"):
        check_upload(image, limits)


@pytest.mark.parametrize(
    ("text", "found"), [("0", [0]), ("0, 2;5", [0, 2, 5]), ("3-5", [3, 4, 5]), ("1,1", [1])]
)
def test_seeds_are_read(text: str, found: list[int]) -> None:
    assert seeds_of(text, 5) == found


@pytest.mark.parametrize("text", ["", "a", "1.5", "-1", "0-99999999999", "5-"])
def test_wrong_seeds_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="seeds"):
        seeds_of(text, 5)


def test_strengths_are_read() -> None:
    assert strengths_of("0.5, 1", 3) == [0.5, 1.0]
    for text in ("", "2", "x", "nan"):
        with pytest.raises(UserError, match="strengths"):
            strengths_of(text, 3)
    with pytest.raises(UserError, match="at most"):
        strengths_of("0,0,0,0", 3)
