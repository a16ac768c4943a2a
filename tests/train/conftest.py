"""Runs of the real command on the tiny base; one process unless a test launches more."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from train.run import main

FILE = "pytorch_lora_weights.safetensors"
STEPS = 6
LOSSES = ("flow", "focus", "cover", "total", "grad_norm")


class Runs:
    """Starts training in this process and reads what it wrote."""

    def __init__(self, base, manifest, folder):
        self.folder = folder
        self.common = [
            f"base.name={base}",
            f"data.manifest={manifest}",
            f"data.cache={folder / 'cache'}",
            f"train.steps={STEPS}",
            "train.global_batch=4",
            "train.log_every=2",
            "optim.lr=0.01",
            "supervision.gradient_norms_every=0",  # takes as long as three of the six steps
        ]

    def arguments(self, name, *overrides):
        return [*self.common, f"output={self.folder / name}", *overrides]

    def __call__(self, name, *overrides):
        """Exit code of a run whose output folder is `name`."""
        return main(self.arguments(name, *overrides))

    def output(self, name):
        return Path(self.folder / name)

    def losses(self, name):
        lines = (self.output(name) / "losses.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def difference(self, name, other):
        """The largest difference between the losses of two runs of equal length."""
        rows, others = self.losses(name), self.losses(other)
        assert [row["step"] for row in rows] == [row["step"] for row in others]
        pairs = zip(rows, others, strict=True)
        return max(abs(a[loss] - b[loss]) for a, b in pairs for loss in LOSSES)

    def experts(self, name, style="pixel-art"):
        """Weights of a finished run's expert."""
        return load_file(self.output(name) / "experts" / style / FILE)

    def checkpoints(self, name):
        return sorted(path.name for path in (self.output(name) / "checkpoints").iterdir())


@pytest.fixture
def runs(tiny_base, tiny_manifest, tmp_path):
    return Runs(tiny_base, tiny_manifest, tmp_path)


@pytest.fixture
def klein_runs(tiny_klein, tiny_manifest, tmp_path):
    """As `runs`, on the tiny FLUX.2-klein base."""
    return Runs(tiny_klein, tiny_manifest, tmp_path)
