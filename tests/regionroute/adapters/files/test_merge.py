import pytest
import torch
from torch import nn

from regionroute.adapters import FixedRouter, RouteContext, adapter_layers, inject, merge, routed
from regionroute.errors import UserError


def with_shared(flux):
    inject(flux, "styleexpert", 3, 4, 6.0, shared_rank=2)
    for layer in adapter_layers(flux).values():
        nn.init.normal_(layer.lora_B, std=0.1)
        nn.init.normal_(layer.shared_B, std=0.1)
    return flux


@pytest.mark.parametrize("weights", [[0, 1, 0], [0.6, 0, 0.4], [0, 0, 0]])
def test_a_merged_model_gives_the_same_and_is_plain(flux, inputs, weights):
    plain = {name: type(module) for name, module in flux.named_modules()}
    flux = with_shared(flux)
    context = RouteContext(router=FixedRouter(torch.tensor(weights, dtype=torch.float)))
    with torch.no_grad(), routed(flux, context):
        expected = flux(**inputs)[0]
        merge(flux, weights)
    assert {name: type(module) for name, module in flux.named_modules()} == plain
    with torch.no_grad():
        torch.testing.assert_close(flux(**inputs)[0], expected, rtol=0, atol=1e-5)


def test_bfloat16_is_rounded_once(flux):
    flux = with_shared(flux.bfloat16())
    layer = adapter_layers(flux)["transformer_blocks.0.attn.to_q"]
    before = layer.base.weight.clone()
    update = layer.lora_B[1] @ layer.lora_A[1] + layer.shared_B @ layer.shared_A
    merge(flux, [0, 1, 0])
    weight = flux.transformer_blocks[0].attn.to_q.weight
    torch.testing.assert_close(weight, (before.float() + update * 6 / 4).bfloat16())


def test_a_plain_model_has_nothing_to_merge(adapted):
    merge(adapted, [1, 0, 0])
    with pytest.raises(ValueError, match="no adapted layers"):
        merge(adapted, [1, 0, 0])


def test_what_cannot_be_merged(adapted):
    with pytest.raises(ValueError, match="3 experts need 3 weights"):
        merge(adapted, [1.0])
    layer = next(iter(adapter_layers(adapted).values()))
    layer.base.weight = nn.Parameter(torch.ones(4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match="its weights are quantised"):
        merge(adapted, [1.0, 0, 0])
    assert len(adapter_layers(adapted)) == 14
