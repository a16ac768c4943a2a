import pytest
import torch
from torch import nn

from regionroute.adapters import (
    FixedRouter,
    LoRAMoELinear,
    RouteContext,
    blend_route,
    blend_weights,
    parse_blend,
    routed,
)
from regionroute.adapters.files.registry import ExpertEntry, ExpertRegistry
from regionroute.errors import UserError

NAMES = [("pixel-art", "pixel art"), ("line-art", None), ("3 colours", None), ("ink+wash", None)]


@pytest.fixture
def registry():
    experts = [ExpertEntry(style=name, phrase=phrase, file=f"{name}/x") for name, phrase in NAMES]
    return ExpertRegistry(
        base="b", fingerprint="f", rank=4, alpha=4, targets="regionroute", experts=experts
    )


@pytest.mark.parametrize(
    ("text", "blend"),
    [
        ("line-art", {"line-art": 1.0}),
        (" Pixel Art ", {"pixel-art": 1.0}),
        ("0.6 pixel-art + 0.4 line-art", {"pixel-art": 0.6, "line-art": 0.4}),
        (".5*line-art+1.5 × pixel art", {"line-art": 0.5, "pixel-art": 1.5}),
        ("0.5 line-art", {"line-art": 0.5}),
        ("3 colours", {"3 colours": 1.0}),
        ("2e-1 3 colours + 1 line-art", {"3 colours": 0.2, "line-art": 1.0}),
        ("ink+wash", {"ink+wash": 1.0}),
    ],
)
def test_blends(registry, text, blend):
    assert parse_blend(text, registry.name) == blend
    weights = blend_weights(blend, registry)
    assert weights.tolist() == pytest.approx([blend.get(name, 0.0) for name, _ in NAMES])
    assert weights.dtype == torch.float32


def test_routes(registry):
    lone = blend_route([{"line-art": 1.0}, None], registry)
    assert lone.expert_ids.tolist() == [1, -1]
    mixed = blend_route([{"line-art": 1.0}, None, {"line-art": 0.5, "pixel-art": 2.0}], registry)
    layer = LoRAMoELinear(nn.Linear(3, 2), 4, 1, 1.0, shared_rank=1)
    nn.init.normal_(layer.lora_B)
    nn.init.normal_(layer.shared_B)
    h = torch.randn(3, 5, 3)
    with torch.no_grad():
        with routed(layer, mixed):
            out = layer(h)
        assert torch.equal(out[1], layer.base(h)[1])
        with routed(layer, RouteContext(torch.tensor([1, -1, 1]))):
            torch.testing.assert_close(out[:2], layer(h)[:2])
        blend = FixedRouter(torch.tensor([2.0, 0.5, 0, 0]))
        with routed(layer, RouteContext(router=blend)):
            torch.testing.assert_close(out[2], layer(h)[2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing is named"),
        ("pixle-art", 'the nearest is "pixel-art"'),
        ("0.6 pixle-art + 0.4 line-art", 'the nearest is "pixel-art"'),
        ("0.6 pixel-art + line-art", '"line-art" in the blend .* needs a weight and a style'),
        ("pixel-art + line-art", '"pixel-art" in the blend'),
        ("0.6 pixel-art +", '"" in the blend'),
        ("0.6 + 0.4 line-art", '"0.6" in the blend'),
        ("0 pixel-art + 1 line-art", 'weight of "pixel-art" must be above 0, not 0'),
        ("-1 pixel-art", "must be above 0, not -1"),
        ("1e999 pixel-art", "must be above 0, not 1e999"),
        ("1 pixel-art + 1 pixel art", 'names "pixel-art" twice'),
    ],
)
def test_mistakes(registry, text, message):
    with pytest.raises(UserError, match=message):
        parse_blend(text, registry.name)
