"""Compiled blocks compute what the others compute."""

import shutil
from functools import partialmethod

import pytest
import torch
from diffusers import FluxTransformer2DModel

NO_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=NO_COMPILER)])
def test_compiled_blocks_change_no_loss(runs, monkeypatch, backend, checkpointing):
    """With supervision, gradient shares and validation, which call the blocks in other ways.

    The backend that is not the compiler's own takes the same graphs and needs no C++.
    """
    compiled = partialmethod(FluxTransformer2DModel.compile_repeated_blocks, backend=backend)
    monkeypatch.setattr(FluxTransformer2DModel, "compile_repeated_blocks", compiled)
    rest = ["train.steps=4", f"train.gradient_checkpointing={checkpointing}"]
    rest += ["train.validate_every=2", "supervision.gradient_norms_every=2"]
    assert runs("plain", *rest) == 0
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert runs("compiled", *rest, "train.compile=true") == 0
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
    assert graphs > 0
    assert runs.difference("plain", "compiled") < 1e-4
