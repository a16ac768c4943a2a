"""Compiled blocks compute what the others compute; takes a C++ compiler and minutes."""

import shutil

import pytest
import torch

from train.trainer import Trainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"),
]


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_compiled_blocks_change_no_loss(runs, monkeypatch, checkpointing):
    rest = ["train.steps=4", f"train.gradient_checkpointing={checkpointing}"]
    rest += ["train.validate_every=2", "supervision.shares_every=2"]
    compiled = []
    original = Trainer.run

    def run(self):
        blocks = [*self.model.transformer_blocks, *self.model.single_transformer_blocks]
        compiled.append(sum(block._compiled_call_impl is not None for block in blocks))
        return original(self)

    monkeypatch.setattr(Trainer, "run", run)
    assert runs("plain", *rest) == 0
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert runs("compiled", *rest, "train.compile=true") == 0
    assert compiled[0] == 0 < compiled[1]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before
    assert runs.difference("plain", "compiled") < 1e-4
