"""A base in fewer bits: it computes nearly the same, takes experts, and trains them."""

import sys

import pytest
import torch
from torch import nn

from regionroute.adapters import RouteContext, adapter_layers, inject, load_experts, merge, routed
from regionroute.diffusion.flow import predict_velocity
from regionroute.errors import UserError
from regionroute.models.loading import load_base

PACKAGES = {"nf4": "bitsandbytes", "fp8": "torchao"}
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.8, 0.3])


@pytest.fixture(params=["nf4", "fp8"])
def kind(request):
    pytest.importorskip(PACKAGES[request.param])
    return request.param


@pytest.fixture(params=["tiny_base", "tiny_klein"])
def folder(request):
    return str(request.getfixturevalue(request.param))


def velocity(base, transformer=None):
    embeds, pooled = base.encode_prompts(["make the dog in pixel-art style", "a cup"])
    return predict_velocity(
        transformer or base.transformer, NOISE, NOISE.flip(0), embeds, pooled, SIGMA, 1.0
    )


def test_the_blocks_are_stored_in_fewer_bits_and_compute_nearly_the_same(folder, kind):
    plain, small = load_base(folder), load_base(folder, quantize=kind)
    assert small.fingerprint == plain.fingerprint
    for name, layer in plain.transformer.named_modules():
        if type(layer) is nn.Linear:
            other = small.transformer.get_submodule(name)
            assert (stored(other) == stored(layer)) == ("transformer_blocks." not in name), name
            assert not any(weight.requires_grad for weight in other.parameters())
    with torch.no_grad():
        wanted, found = velocity(plain), velocity(small)
    error = (found - wanted).norm() / wanted.norm()
    assert 0 < error < {"nf4": 0.2, "fp8": 0.06}[kind]


def stored(layer):
    """Bytes of a layer's weights, without their scales."""
    weight = layer.weight
    weight = getattr(weight, "qdata", weight.data)
    return weight.numel() * weight.element_size()


def test_experts_learn_on_it_as_on_the_plain_base_and_move_with_it(folder, kind):
    gradients = {}
    for quantize in (None, kind):
        base = load_base(folder, quantize=quantize)
        generator = torch.Generator().manual_seed(1)
        inject(base.transformer, "regionroute", 2, 2, 2.0, generator=generator)
        base.transformer.enable_gradient_checkpointing()
        with routed(base.transformer.train(), RouteContext(torch.tensor([0, 1]))):
            velocity(base).square().mean().backward()
        layers = adapter_layers(base.transformer).values()
        gradients[quantize] = torch.cat([layer.lora_B.grad.flatten() for layer in layers])
    cosine = torch.cosine_similarity(gradients[None], gradients[kind], dim=0)
    assert cosine > {"nf4": 0.9, "fp8": 0.99}[kind]


def test_the_same_experts_load_on_both(tiny_base, tiny_experts, kind):
    for quantize in (None, kind):
        base = load_base(str(tiny_base), quantize=quantize)
        load_experts(tiny_experts, base)
        with torch.no_grad(), routed(base.transformer, RouteContext(torch.tensor([0, 1]))):
            assert velocity(base).isfinite().all()


def test_experts_are_not_merged_into_it(tiny_base, tiny_experts, kind):
    base = load_base(str(tiny_base), quantize=kind)
    load_experts(tiny_experts, base)
    with pytest.raises(UserError, match="weights are quantised"):
        merge(base.transformer, [1.0, 0.0])


def test_bfloat16_stays_what_it_computes_in(tiny_klein, kind):
    base = load_base(str(tiny_klein), torch.bfloat16, quantize=kind)
    with torch.no_grad():
        assert velocity(base).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["nf4", "fp8"])
def test_a_missing_package_is_named_with_its_extra(tiny_base, monkeypatch, kind):
    for name in [*sys.modules, PACKAGES[kind]]:
        if name.split(".")[0] == PACKAGES[kind]:
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"{PACKAGES[kind]}: pip install 'regionroute\[{kind}\]"):
        load_base(str(tiny_base), quantize=kind)
