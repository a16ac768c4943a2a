"""A run's output: one progress bar, trackers, a row of losses per step, facts in run.json."""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from regionroute.files import write_json, write_jsonl
from regionroute.settings_files import versions
from train.engine.output_lock import check_log_is_there
from train.monitor.speed import Speed
from train.monitor.trackers import Tracker

LOSSES_FILE = "losses.jsonl"
SCORES_FILE = "scores.jsonl"
ROUTER_FILE = "router.jsonl"
FACTS_FILE = "run.json"
# Where trackers show the numbers of a row; the rest are scores of the maps.
GROUPS = {
    "loss": ("flow", "focus", "cover", "total", "balance"),
    "optim": ("lr", "grad_norm", "supervision_scale"),
    "router": ("entropy", "overlap_within", "overlap_between"),
}
PREFIXES = {"grad_norm_": "optim", "grad_fraction_": "optim", "val_": "val", "preview_": "preview"}
LIBRARIES = ("regionroute", "torch", "diffusers", "transformers", "deepspeed", "safetensors")


class Reporter:
    """Writes a run's logs; on all processes but the first it does nothing.

    Args:
        output: the run's folder.
        start: steps done before; later rows of an interrupted run are taken back.
        steps: at which the run ends.
        samples: in a step.
        log_every: steps between two rows for the trackers.
        main: whether this process writes.
        trackers: where the numbers go besides the run's own files.
        speed: measures memory and the fraction of the chip's peak.

    Attributes:
        latest: the means of the newest tracked row; empty before the first.
    """

    def __init__(
        self,
        output: Path,
        *,
        start: int,
        steps: int,
        samples: int,
        log_every: int,
        main: bool,
        trackers: Sequence[Tracker] = (),
        speed: Speed | None = None,
    ) -> None:
        self.output, self.samples, self.log_every, self.main = output, samples, log_every, main
        self.first, self.last = start, steps
        self._window: dict[str, list[float]] = defaultdict(list)
        self._since = time.perf_counter()
        self._bar: tqdm[Any] | None = None
        self._trackers = list(trackers)
        self._speed = speed or Speed()
        self._rows: TextIO | None = None
        self.latest: dict[str, float] = {}
        if main:
            rewind(output / LOSSES_FILE, start)
            for name in (ROUTER_FILE, SCORES_FILE):
                if (output / name).exists():
                    rewind(output / name, start)
            self._rows = (output / LOSSES_FILE).open("a", encoding="utf-8")

    def check(self) -> None:
        """Checks the log file that this process writes.

        Raises:
            UserError: it or the output folder was deleted.
        """
        if self._rows is not None:
            check_log_is_there(self.output / LOSSES_FILE)

    def begin(self) -> None:
        """Starts the clock and the bar."""
        self._since = time.perf_counter()
        if self.main:
            self._bar = tqdm(
                initial=self.first, total=self.last, desc="training", unit="step",
                dynamic_ncols=True, smoothing=0.05,
            )  # fmt: skip

    def step(self, step: int, row: dict[str, float]) -> None:
        """Records one optimizer step.

        Args:
            step: counted from 1.
            row: losses, learning rate, gradient norm; map scores where they were measured.
        """
        if self._bar is None:
            return
        assert self._rows is not None
        self._rows.write(json.dumps({"step": step, **row}) + "\n")
        self._rows.flush()
        for name, value in row.items():
            self._window[name].append(value)
        if step % self.log_every == 0 or step == self.last:
            self._bar.set_postfix(self._publish(step), refresh=False)
        elif step == self.first + 1:
            self._bar.set_postfix(_shown(row), refresh=False)
        self._bar.update()

    def _publish(self, step: int) -> dict[str, str]:
        """Gives the means since the last time to the trackers; returns what the bar shows."""
        now = time.perf_counter()
        steps = len(self._window["flow"]) / max(now - self._since, 1e-9)
        means = {name: sum(values) / len(values) for name, values in self._window.items()}
        means["lr"] = self._window["lr"][-1]
        self.latest = means
        measured = self._speed.measure(steps)
        numbers = {_tag(name): value for name, value in means.items()}
        numbers["speed/samples_per_second"] = self.samples * steps
        numbers |= {f"speed/{name}": value for name, value in measured.items()}
        self._track(numbers, step)
        self._window.clear()
        self._since = now
        speed = {"samples/s": f"{self.samples * steps:.1f}"}
        return _shown(means) | speed | self._speed.shown(measured)

    def _track(self, numbers: dict[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.numbers(numbers, step)

    def scores(self, step: int, row: dict[str, float]) -> None:
        """Records what was measured on held-out pairs: in ``scores.jsonl`` and by the trackers.

        Args:
            step: counted from 1.
            row: "val_…" or "preview_…" by name.
        """
        if self._rows is None:
            return
        with (self.output / SCORES_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        self._track({_tag(name): value for name, value in row.items()}, step)

    def router(self, step: int, layers: Sequence[str], histogram: Tensor, entropy: Tensor) -> None:
        """Records how a learned router used the experts in each layer.

        Args:
            step: counted from 1.
            layers: L names.
            histogram: share of the choices by layer and expert, [L,E].
            entropy: by layer, [L] in [0,1].
        """
        if self._rows is None:
            return
        shares = {
            layer: [round(x, 4) for x in row]
            for layer, row in zip(layers, histogram.tolist(), strict=True)
        }
        entropies = dict(zip(layers, entropy.tolist(), strict=True))
        with (self.output / ROUTER_FILE).open("a", encoding="utf-8") as file:
            line = {"step": step, "entropy": entropies, "experts": shares}
            file.write(json.dumps(line) + "\n")
        self._track({f"router_entropy/{layer}": x for layer, x in entropies.items()}, step)
        # A row a layer, a column an expert, white: used by all.
        self.picture("router/experts", histogram.expand(3, -1, -1), step)

    def picture(self, name: str, image: Tensor, step: int) -> None:
        """Gives an image [3,H,W] in [0,1] to the trackers."""
        for tracker in self._trackers:
            tracker.picture(name, image, step)

    def note(self, sentence: str) -> None:
        """Prints a line above the bar."""
        if self.main:
            tqdm.write(sentence)

    def close(self) -> None:
        """Closes the files and leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        while self._trackers:
            self._trackers.pop().close()
        if self._rows is not None:
            self._rows.close()
            self._rows = None


def _shown(row: dict[str, float]) -> dict[str, str]:
    """The numbers worth a place next to the bar."""
    return {name: f"{row[name]:.3f}" for name in ("flow", "focus", "cover", "iou") if name in row}


def _tag(name: str) -> str:
    for group, names in GROUPS.items():
        if name in names:
            return f"{group}/{name}"
    for prefix, group in PREFIXES.items():
        if name.startswith(prefix):
            return f"{group}/{name if group == 'optim' else name.removeprefix(prefix)}"
    return f"map/{name}"


def append_row(path: Path, row: dict[str, object]) -> None:
    """Adds a row to a file of losses that `rewind` has made.

    Raises:
        UserError: the file was deleted since.
    """
    check_log_is_there(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def rewind(path: Path, step: int) -> None:
    """Drops the rows after `step` (and a half-written last one) from a file of losses."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row["step"] <= step:
            kept.append(row)
    write_jsonl(path, kept)


def write_facts(output: Path, facts: dict[str, Any], device: torch.device) -> None:
    """Writes run.json: what the run was, on what it ran, and how fast."""
    machine = {
        "python": platform.python_version(),
        "platform": platform.system(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
    made_with = {"machine": machine, "versions": versions(LIBRARIES)}
    write_json(output / FACTS_FILE, {**facts, **made_with})
