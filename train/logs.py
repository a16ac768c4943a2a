"""What a run tells: one progress bar, TensorBoard, a row of losses a step, facts in run.json."""

from __future__ import annotations

import json
import platform
import time
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from regionroute.io import write_json, write_jsonl

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOSSES_FILE = "losses.jsonl"
ROUTER_FILE = "router.jsonl"
FACTS_FILE = "run.json"
# Where TensorBoard shows the numbers of a row; the rest are scores of the maps.
GROUPS = {
    "loss": ("flow", "focus", "cover", "total", "balance"),
    "optim": ("lr", "grad_norm"),
    "router": ("entropy", "overlap_within", "overlap_between"),
}
LIBRARIES = ("regionroute", "torch", "diffusers", "transformers", "deepspeed", "safetensors")


class Reporter:
    """Writes a run's logs; on all processes but the first it does nothing.

    Args:
        output: the run's folder.
        start: steps done before; later rows of an interrupted run are taken back.
        steps: at which the run ends.
        samples: in a step.
        log_every: steps between two TensorBoard rows.
        main: whether this process writes.

    Attributes:
        latest: the means of the newest TensorBoard row; empty before the first.
    """

    def __init__(
        self, output: Path, *, start: int, steps: int, samples: int, log_every: int, main: bool
    ) -> None:
        self.output, self.samples, self.log_every, self.main = output, samples, log_every, main
        self.first, self.last = start, steps
        self._window: dict[str, list[float]] = defaultdict(list)
        self._since = time.perf_counter()
        self._bar: tqdm[Any] | None = None
        self._writer: SummaryWriter | None = None
        self.latest: dict[str, float] = {}
        if main:
            from torch.utils.tensorboard import SummaryWriter

            rewind(output / LOSSES_FILE, start)
            if (output / ROUTER_FILE).exists():
                rewind(output / ROUTER_FILE, start)
            self._rows = (output / LOSSES_FILE).open("a", encoding="utf-8")
            self._writer = SummaryWriter(str(output / "tb"), purge_step=start + 1)

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
        """Writes the means since the last time to TensorBoard; returns what the bar shows."""
        assert self._writer is not None
        now = time.perf_counter()
        speed = self.samples * len(self._window["flow"]) / max(now - self._since, 1e-9)
        means = {name: sum(values) / len(values) for name, values in self._window.items()}
        means["lr"] = self._window["lr"][-1]
        self.latest = means
        for name, value in means.items():
            self._writer.add_scalar(_tag(name), value, step)
        self._writer.add_scalar("speed/samples_per_second", speed, step)
        self._window.clear()
        self._since = now
        return _shown(means) | {"samples/s": f"{speed:.1f}"}

    def router(self, step: int, layers: Sequence[str], histogram: Tensor, entropy: Tensor) -> None:
        """Records how a learned router used the experts in each layer.

        Args:
            step: counted from 1.
            layers: L names.
            histogram: share of the choices by layer and expert, [L,E].
            entropy: by layer, [L] in [0,1].
        """
        if self._writer is None:
            return
        shares = {
            layer: [round(x, 4) for x in row]
            for layer, row in zip(layers, histogram.tolist(), strict=True)
        }
        entropies = dict(zip(layers, entropy.tolist(), strict=True))
        with (self.output / ROUTER_FILE).open("a", encoding="utf-8") as file:
            line = {"step": step, "entropy": entropies, "experts": shares}
            file.write(json.dumps(line) + "\n")
        for layer, value in entropies.items():
            self._writer.add_scalar(f"router_entropy/{layer}", value, step)
        # A row a layer, a column an expert, white: used by all.
        self.picture("router/experts", histogram.expand(3, -1, -1), step)

    def picture(self, name: str, image: Tensor, step: int) -> None:
        """Adds a picture [3,H,W] in [0,1] to TensorBoard."""
        if self._writer is not None:
            self._writer.add_image(name, image, step)

    def note(self, sentence: str) -> None:
        """Prints a line above the bar."""
        if self.main:
            tqdm.write(sentence)

    def close(self) -> None:
        """Closes the files and leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._writer is not None:
            self._writer.close()
            self._rows.close()


def _shown(row: dict[str, float]) -> dict[str, str]:
    """The numbers worth a place beside the bar."""
    return {name: f"{row[name]:.3f}" for name in ("flow", "focus", "cover", "iou") if name in row}


def _tag(name: str) -> str:
    for group, names in GROUPS.items():
        if name in names:
            return f"{group}/{name}"
    return f"map/{name}"


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
    versions = {name: version(name) for name in LIBRARIES}
    write_json(output / FACTS_FILE, {**facts, "machine": machine, "versions": versions})
