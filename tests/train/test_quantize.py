"""Training on a base in fewer bits."""

import pytest

from regionroute.models.loading import load_base
from train.data.encode import identity

PACKAGES = {"nf4": "bitsandbytes", "fp8": "torchao"}


@pytest.fixture(params=["nf4", "fp8"])
def kind(request):
    pytest.importorskip(PACKAGES[request.param])
    return request.param


def test_a_quantised_base_trains_and_continues(klein_runs, kind):
    rest = [f"base.quantize={kind}", "train.gradient_checkpointing=true", "train.save_every=3"]
    assert klein_runs("whole", *rest) == 0
    assert klein_runs("halves", *rest, "train.steps=3") == 0
    assert klein_runs("halves", *rest) == 0
    assert klein_runs.difference("whole", "halves") == 0
    assert klein_runs("plain") == 0
    assert 0 < klein_runs.difference("plain", "whole") < 0.5
    fused = "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_B.weight"
    assert klein_runs.experts("whole")[fused].abs().max() > 0


def test_its_identity_follows_the_weights(tiny_base, kind):
    one, again = (load_base(str(tiny_base), quantize=kind) for _ in range(2))
    assert identity(one.transformer) == identity(again.transformer)
    assert identity(one.transformer) != identity(load_base(str(tiny_base)).transformer)


def test_zero_3_is_refused(runs, capsys):
    assert runs("run", "base.quantize=nf4", "train.zero_stage=3") == 2
    assert "ZeRO-3 cannot share quantised weights" in capsys.readouterr().err
