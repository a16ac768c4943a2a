import math

import pytest
import torch

from pseudo_labels.stylegallery.config import EnergyConfig
from pseudo_labels.stylegallery.energy import (
    Anchors,
    AttentionEnergy,
    ReferenceBank,
    pair_regions,
    region_cells,
    regional_style_loss,
)
from pseudo_labels.stylegallery.matching import Match
from pseudo_labels.stylegallery.models.attention import (
    Recorded,
    recording,
    region_attention,
    self_attention_layers,
)


def matched(*pairs):
    return [Match(c, r, s, 0, 0, 0, 0) for c, (r, s) in enumerate(pairs, start=1)]


@pytest.fixture
def halves():
    """Labels [8, 8]: left 1, right 2."""
    labels = torch.ones(8, 8, dtype=torch.int64)
    labels[:, 4:] = 2
    return labels


@pytest.fixture
def latents():
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def build(model, latents, labels, config=None, pairs=((0, 2), (1, 1)), **options):
    regions = (matched(*pairs), labels, [labels] * (len(latents) - 1))
    config = config or EnergyConfig()
    return AttentionEnergy(model, latents[:1], latents[1:], regions, config, **options)


def test_layers_are_counted_in_the_order_of_execution(model, latents):
    layers = self_attention_layers(model.unet)
    assert len(layers) == 16
    order = []
    hooks = [
        layer.register_forward_hook(lambda module, i, o: order.append(module)) for layer in layers
    ]
    model.unet(latents, 1, encoder_hidden_states=model.text.expand(3, -1, -1))
    for hook in hooks:
        hook.remove()
    assert all(a is b for a, b in zip(order, layers, strict=True))


def test_recording_changes_nothing_and_is_undone(model, latents):
    layers = self_attention_layers(model.unet)
    before = [layer.processor for layer in layers]
    text = model.text.expand(3, -1, -1)
    with torch.no_grad():
        plain = model.unet(latents, 7, encoder_hidden_states=text).sample
        outputs = []
        hook = layers[-1].register_forward_pre_hook(lambda module, given: outputs.append(given[0]))
        model.unet(latents, 7, encoder_hidden_states=text)
        with recording(layers[-6:]) as record:
            model.unet(latents, 7, encoder_hidden_states=text)
        hook.remove()
        # The last recorded layer got the very input it gets without recording.
        assert torch.equal(*outputs)
        assert torch.equal(model.unet(latents, 7, encoder_hidden_states=text).sample, plain)
    assert [layer.processor for layer in layers] == before
    assert [q.shape[2] for q in record.queries] == [16, 16, 16, 64, 64, 64]
    assert len(record.outputs) == 6


def test_recording_is_undone_after_an_error(model, latents):
    layers = self_attention_layers(model.unet)
    before = [layer.processor for layer in layers]
    with pytest.raises(RuntimeError), recording(layers):
        model.unet(latents[:, :3], 7, encoder_hidden_states=model.text)
    assert [layer.processor for layer in layers] == before


def test_a_masked_target_is_the_dense_softmax_over_its_region():
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 1, 2, 20, 8, generator=generator, dtype=torch.float64)
    inside = torch.tensor([1, 4, 5, 11])
    logits = 1.5 * query @ key.mT / math.sqrt(8)
    outside = torch.ones(20, dtype=torch.bool)
    outside[inside] = False
    dense = logits.masked_fill(outside, -torch.inf).softmax(-1) @ value
    found = region_attention(query, key[:, :, inside], value[:, :, inside], 1.5)
    assert torch.allclose(found, dense)


def test_zeroed_keys_of_the_published_code_keep_some_weight():
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 1, 2, 20, 8, generator=generator, dtype=torch.float64)
    inside = torch.tensor([1, 4, 5, 11])
    mask = torch.zeros(20, 1, dtype=torch.float64)
    mask[inside] = 1
    published = (1.5 * query @ (key * mask).mT / math.sqrt(8)).softmax(-1) @ (value * mask)
    gathered = key[:, :, inside], value[:, :, inside]
    found = region_attention(query, *gathered, 1.5, "multiply", 20)
    assert torch.allclose(found, published)
    assert found.norm() < 0.8 * region_attention(query, *gathered, 1.5).norm()


@pytest.mark.parametrize(("masking", "moves"), [("exclude", False), ("multiply", True)])
def test_targets_and_what_lies_outside_their_region(masking, moves, halves):
    """Only the published masking lets the number of cells outside matter; pixels never do."""
    generator = torch.Generator().manual_seed(2)
    query, key, value = torch.randn(3, 1, 2, 64, 8, generator=generator)
    inside = region_cells(halves, 2, 64)
    total = 64

    def target(keys, values, cells):
        return region_attention(
            query, keys[:, :, inside], values[:, :, inside], 1.5, masking, cells
        )

    usual = target(key, value, total)
    changed_key, changed_value = key.clone(), value.clone()
    outside = region_cells(halves, 1, 64)
    changed_key[:, :, outside] = 9
    changed_value[:, :, outside] = -9
    assert torch.equal(target(changed_key, changed_value, total), usual)
    exact = region_attention(query, key[:, :, inside], value[:, :, inside], 1.5)
    assert torch.allclose(usual, exact) is not moves


def test_the_energy_vanishes_where_style_and_content_are_one(model, latents):
    labels = torch.ones(8, 8, dtype=torch.int64)
    same = latents[:1].repeat(2, 1, 1, 1)
    config = EnergyConfig(temperature=1.0)
    energy = build(model, same, labels, config, pairs=((0, 1),))
    value = energy.value(same[:1], 400, energy.anchors(400))
    assert value.total.item() == pytest.approx(0, abs=3e-5)
    other = energy.value(latents[1:2], 400, energy.anchors(400))
    assert other.style > 1e-3
    assert other.content > 1e-3
    assert other.total.item() == pytest.approx((other.style + 0.26 * other.content).item())


def test_the_energy_is_the_formula(model, latents, halves):
    """Against the whole matrices with −∞ masks, layer by layer and region by region."""
    energy = build(model, latents, halves)
    text = model.text.expand(3, -1, -1)
    with torch.no_grad():
        with recording(self_attention_layers(model.unet)[-6:]) as all_three:
            model.unet(latents, 300, encoder_hidden_states=text)
        with recording(self_attention_layers(model.unet)[-6:]) as made:
            model.unet(latents[2:], 300, encoder_hidden_states=text[:1])
        value = energy.value(latents[2:], 300, energy.anchors(300))
    style = content = 0.0
    for layer in range(6):
        query, output = made.queries[layer], made.outputs[layer]
        side = math.isqrt(query.shape[2])
        left = (torch.arange(side) < side // 2).repeat(side)
        content += (query - all_three.queries[layer][:1]).abs().mean()
        for inside, reference, region in ((left, 1, ~left), (~left, 2, left)):
            key, values = (x[layer][reference] for x in (all_three.keys, all_three.values))
            logits = 1.5 * query @ key.mT / math.sqrt(query.shape[-1])
            target = logits.masked_fill(~region, -torch.inf).softmax(-1) @ values
            style += (inside[:, None] * (output - target)).abs().mean()
    assert value.style.item() == pytest.approx(style.item(), rel=1e-4)
    assert value.content.item() == pytest.approx(content.item(), rel=1e-4)


def test_gradients_go_to_the_latents_alone(model, latents, halves):
    energy = build(model, latents, halves)
    anchors = energy.anchors(300)
    assert not any(item.requires_grad for item in (*anchors.keys, *anchors.values))
    z = latents[:1].clone().requires_grad_()
    energy.value(z, 300, anchors).total.backward()
    assert z.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model.unet.parameters())


def test_outside_the_matched_regions_outputs_get_no_gradient(halves):
    generator = torch.Generator().manual_seed(3)
    query, key, value, output = torch.randn(4, 1, 2, 64, 8, generator=generator)
    output.requires_grad_()
    query.requires_grad_()
    record = Recorded([query], [key], [value], [output])
    pairs = pair_regions(matched((0, 1), (0, 2)), halves, [halves], 64, styled=[2])
    loss = regional_style_loss(record, Anchors([query], [key], [value]), [pairs], EnergyConfig())
    loss.backward()
    right = region_cells(halves, 2, 64)
    left = region_cells(halves, 1, 64)
    assert (output.grad[:, :, left] == 0).all()
    assert (output.grad[:, :, right] != 0).all()
    assert query.grad is None  # targets are constants


def test_references_that_no_region_reads_are_not_looked_at(model, latents, halves):
    energy = build(model, latents, halves, pairs=((1, 1), (1, 2)))
    anchors = energy.anchors(300)
    assert all(len(keys) == 1 for keys in anchors.keys)
    both = build(model, latents, halves, pairs=((1, 1), (0, 2)))
    usual = both.anchors(300)
    assert torch.allclose(anchors.keys[-1][0], usual.keys[-1][1], atol=1e-5)


def test_the_bank_gives_what_was_put_in(model, latents, halves):
    bank = ReferenceBank(10**9)
    names = ["a", "b"]
    first = build(model, latents, halves, bank=bank, names=names).anchors(300)
    assert bank.size > 0
    full = bank.size
    other = torch.cat([latents[:1] + 1, latents[1:]])
    energy = build(model, other, halves, bank=bank, names=names)
    passes = []
    hook = model.unet.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    again = energy.anchors(300)
    hook.remove()
    assert passes == [1]  # the new content only
    assert all(torch.equal(a, b) for a, b in zip(first.keys, again.keys, strict=True))
    assert bank.size == full
    small = ReferenceBank(10)
    build(model, latents, halves, bank=small, names=names).anchors(300)
    assert small.size == 0


def test_a_region_too_small_for_a_grid_keeps_a_cell():
    labels = torch.ones(8, 8, dtype=torch.int64)
    labels[3, 3] = 2
    assert region_cells(labels, 2, 64).tolist() == [27]
    assert region_cells(labels, 2, 16).tolist() == [5]
    pairs = pair_regions(matched((0, 2), (0, 2)), labels, [labels], 16)
    assert len(pairs) == 1  # both regions read the same keys
    assert len(pairs[0].cells) == 16


def test_more_layers_than_there_are(model, latents, halves):
    with pytest.raises(ValueError, match="the model has 16"):
        build(model, latents, halves, EnergyConfig(layers=17))
