"""The stages of a rehearsal: commands of the project, one after another, each measured."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regionroute.errors import UserError
from regionroute.files import read_json, write_json
from regionroute.rehearsal.measure import measured
from regionroute.rehearsal.settings import Settings

GB = 1e9
RESULTS = "stages.json"
STYLE = "pixel-art"
LR = 0.05  # of two steps, after which the expert is to change the image
MARGIN = 1.05  # of the disk that is asked for


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: for ``--stages``.
        what: it does, for the table.
        arguments: of ``python``; made when the stages before have run.
    """

    name: str
    what: str
    arguments: Callable[[Settings], list[str]]


def _work(stage: str) -> Callable[[Settings], list[str]]:
    return lambda settings: ["-m", "regionroute.rehearsal.work", stage, str(settings.folder)]


def _command(*arguments: str) -> list[str]:
    return ["-m", "regionroute.cli", *arguments]


def _pairs(settings: Settings) -> list[str]:
    return _command(
        "scenes", "--out", str(settings.pairs), "--train", "1", "--test", "1", "--only", STYLE,
        "--size", str(settings.shape.resolution), "--seed", str(settings.seed),
    )  # fmt: skip


def training_settings(settings: Settings, steps: int) -> list[str]:
    """Arguments of ``regionroute train`` after its name."""
    config = "klein" if "klein" in settings.name else "kontext"
    chosen: dict[str, Any] = {
        "base.name": settings.base,
        "base.dtype": "bfloat16",
        "base.quantize": settings.quantize or "null",
        "base.max_text_length": settings.shape.text_length,
        "data.manifest": settings.pairs,
        "data.cache": settings.folder / "cache",
        "data.resolution": settings.shape.resolution,
        "data.workers": 0,
        "output": settings.run,
        "seed": settings.seed,
        "optim.name": "adamw",
        "optim.lr": LR,
        "supervision.gradient_norms_every": 0,
        "train.steps": steps,
        "train.global_batch": 1,
        "train.accumulation": 1,
        "train.zero_stage": 0,
        "train.gradient_checkpointing": "true",
        "train.preview_every": 0,
        "train.log_every": 1,
        "train.trackers": "[]",
    }
    return ["--config", config, *(f"{key}={value}" for key, value in chosen.items())]


def _cache(settings: Settings) -> list[str]:
    return _command("train", "--cache-only", *training_settings(settings, 2))


def _train(steps: int) -> Callable[[Settings], list[str]]:
    return lambda settings: _command("train", *training_settings(settings, steps))


def _edit(how: str, *more: str) -> Callable[[Settings], list[str]]:
    def arguments(settings: Settings) -> list[str]:
        sample = settings.sample()
        given = ["edit", str(sample.context), "--object", sample.word, "--style", sample.style]
        given += ["--base", str(settings.base), "--experts", str(settings.run / "experts")]
        given += ["--dtype", "bfloat16", "--device", "cpu", "--steps", str(settings.shape.steps)]
        given += ["--seed", str(settings.seed), "--out", str(settings.edited(how))]
        given += ["--quantize", settings.quantize] if settings.quantize else []
        region = ["--region-map", str(sample.mask)] if how != "plain" else []
        return _command(*given, *more, *region)

    return arguments


def _export(settings: Settings) -> list[str]:
    return _command(
        "experts", "export", str(settings.run / "experts"), "--format", "diffusers",
        "--out", str(settings.exported),
    )  # fmt: skip


STAGES = (
    Stage("start", "import the libraries", _work("start")),
    Stage("write", "write the base with random weights", _work("write")),
    Stage("load", "load it, read every weight", _work("load")),
    Stage("pairs", "draw a training pair and a test image", _pairs),
    Stage("cache", "encode images and prompts", _cache),
    Stage("train", "two supervised steps, experts saved", _train(2)),
    Stage("resume", "a third step from the checkpoint", _train(3)),
    Stage("edit", "edit an image, prompt alone", _edit("plain", "--mode", "plain")),
    Stage("routed", "edit it, routed, dense", _edit("routed", "--mode", "routed", "--no-sparse")),
    Stage("sparse", "edit it, routed, region-sparse", _edit("sparse", "--mode", "routed", "--sparse")),  # noqa: E501
    Stage("export", "export the expert for diffusers", _export),
    Stage("stock", "edit in the stock pipeline with the expert", _work("stock")),
)  # fmt: skip
NAMES = tuple(stage.name for stage in STAGES)


def run_stages(
    settings: Settings, chosen: Sequence[str] | None, say: Callable[[str], None] = print
) -> dict[str, dict[str, Any]]:
    """Runs stages in their order; those that have run are skipped unless they are named.

    Args:
        settings: of the rehearsal, written into its folder.
        chosen: names of stages; None: all.
        say: prints a line.

    Returns:
        Name -> what was measured, of all stages that have run so far.

    Raises:
        UserError: a stage failed; the same command resumes there.
    """
    results = read_results(settings.folder)
    for stage in STAGES:
        if stage.name not in (chosen or NAMES) or (chosen is None and stage.name in results):
            continue
        command = [sys.executable, *stage.arguments(settings)]
        say(f"== {stage.name}: {stage.what}\n$ python {' '.join(command[1:])}")
        log = settings.folder / "logs" / f"{stage.name}.log"
        log.parent.mkdir(exist_ok=True)
        found = measured(command, log)
        if found.status:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise UserError(
                f"stage {stage.name} ended with status {found.status} ({' '.join(last)}), see "
                f"{log}; the same command resumes there"
            )
        say(f"   {found.seconds:.0f} s, {found.peak / GB:.2f} GB")
        results[stage.name] = asdict(found)
        write_json(settings.folder / RESULTS, results)
    return results


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """What was measured so far."""
    file = folder / RESULTS
    return dict(read_json(file)) if file.is_file() else {}


def check_disk(folder: Path, needed: float) -> None:
    """Refuses a rehearsal for which there is no room.

    Args:
        folder: it will be written to.
        needed: bytes, of which what is there already counts.

    Raises:
        UserError: says how much is missing.
    """
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    parent = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(parent).free
    if needed * MARGIN - there > free:
        raise UserError(
            f"{folder}: needs {needed * MARGIN / GB:.1f} GB of disk, {free / GB:.1f} GB are free"
        )


def table(results: dict[str, dict[str, Any]], expected: dict[str, float]) -> Iterator[str]:
    """The measurements as lines of a table.

    Args:
        results: of `run_stages`.
        expected: stage -> bytes, of stages that the plan knows.
    """
    yield f"{'stage':<10}{'time':>9}{'peak':>12}{'own':>12}{'plan':>12}{'off':>8}"
    for stage in STAGES:
        if stage.name not in results:
            continue
        row = results[stage.name]
        own = "" if row["own"] is None else f"{row['own'] / GB:.2f} GB"
        line = f"{stage.name:<10}{row['seconds']:>7.0f} s{row['peak'] / GB:>9.2f} GB{own:>12}"
        if stage.name in expected:
            size = expected[stage.name]
            line += f"{size / GB:>9.2f} GB{row['peak'] / size - 1:>+8.0%}"
        yield line
