import dataclasses

import pytest
import torch

from regionroute.adapters import adapter_layers, adapter_parameters, inject
from regionroute.attention import AttentionPlan
from regionroute.config.run import load_config
from regionroute.diffusion.flow import add_noise
from regionroute.models.loading import load_base
from train import step as step_module
from train.step import Batch, measured, pixel_weights, recorder_of, training_step


@pytest.fixture
def backbone(tiny_base):
    backbone = load_base(str(tiny_base))
    generator = torch.Generator().manual_seed(0)
    inject(backbone.transformer, "regionroute", 3, 2, 2.0, generator=generator)
    for layer in adapter_layers(backbone.transformer).values():  # zero B would hide A's gradient
        layer.lora_B.data.normal_(0, 0.05, generator=generator)
    backbone.transformer.train()
    return backbone


def make_batch(backbone, experts=(0, 2), seed=0):
    count, generator = len(experts), torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    states, pooled = backbone.encode_prompts(["make the dog in pixel-art style"] * count)
    masks = torch.zeros(count, 1, 8, 8)
    for row in range(count):
        masks[row, 0, 1 : 4 + row, 2:6] = 1
    return Batch(
        ids=tuple(f"sample-{i}" for i in range(count)),
        target=noise(count, 4, 16, 16),
        context=noise(count, 4, 16, 16),
        noise=noise(count, 4, 16, 16),
        sigma=torch.rand(count, generator=generator),
        prompt_embeds=states,
        pooled=pooled,
        expert_ids=torch.tensor(experts),
        plan=AttentionPlan(
            token_index=torch.full((count, 1, 1), 4),
            masks=masks,
            valid=torch.ones(count, 1, dtype=torch.bool),
            text_len=states.shape[1],
            image_len=64,
        ),
        inside=masks.repeat_interleave(2, -1).repeat_interleave(2, -2),
    )


def part(batch, rows):
    """Some samples of a batch, in the order given."""
    plan = batch.plan
    values = {
        name: value[rows] for name, value in vars(batch).items() if isinstance(value, torch.Tensor)
    }
    plan = AttentionPlan(
        plan.token_index[rows], plan.masks[rows], plan.valid[rows], plan.text_len, plan.image_len
    )
    return Batch(ids=tuple(batch.ids[row] for row in rows), plan=plan, **values)


def gradients(backbone, batch, config, **options):
    backbone.transformer.zero_grad()
    with training_step(backbone.transformer, batch, config, **options) as losses:
        losses.total.mean().backward()
    return [p.grad.clone() for p in adapter_parameters(backbone.transformer)], losses


def test_total_is_the_weighted_sum_and_flow_the_plain_error(backbone, monkeypatch):
    batch = make_batch(backbone)
    config = load_config(None, ["supervision.focus=0.3", "supervision.cover=0.7"])
    seen = {}
    original = step_module.predict_velocity

    def watch(transformer, noisy, *others):
        seen["noisy"], seen["velocity"] = noisy, original(transformer, noisy, *others)
        return seen["velocity"]

    monkeypatch.setattr(step_module, "predict_velocity", watch)
    with training_step(backbone.transformer, batch, config, measure=True) as losses:
        pass
    assert torch.equal(seen["noisy"], add_noise(batch.target, batch.noise, batch.sigma))
    error = (seen["velocity"] - (batch.noise - batch.target)).square().mean((1, 2, 3))
    torch.testing.assert_close(losses.flow, error)
    expected = losses.flow + 0.3 * losses.focus + 0.7 * losses.cover
    torch.testing.assert_close(losses.total, expected)
    assert losses.focus.gt(0).all()
    assert losses.cover.gt(0).all()
    assert losses.rows().shape == (2, 8)
    assert not losses.rows().requires_grad


def test_losses_of_a_sample_do_not_depend_on_its_neighbours(backbone):
    batch, config = make_batch(backbone, (0, 2, 0)), load_config(None, ["flow.mask_weight=5"])
    with training_step(backbone.transformer, batch, config) as whole:
        pass
    order = [2, 0, 1]
    with training_step(backbone.transformer, part(batch, order), config) as permuted:
        pass
    torch.testing.assert_close(permuted.total, whole.total[order])
    with training_step(backbone.transformer, part(batch, [1]), config) as alone:
        pass
    torch.testing.assert_close(alone.total, whole.total[1:2])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_active_experts_get_gradients_and_the_base_none(backbone, checkpointing):
    if checkpointing:
        backbone.transformer.enable_gradient_checkpointing()
    config = load_config(None)
    found, _ = gradients(backbone, make_batch(backbone), config)
    for gradient in found:  # [E,...]: experts 0 and 2 were used, 1 was not
        assert gradient[0].abs().sum() > 0
        assert gradient[1].abs().sum() == 0
        assert gradient[2].abs().sum() > 0
    adapters = {id(p) for p in adapter_parameters(backbone.transformer)}
    others = [p for p in backbone.transformer.parameters() if id(p) not in adapters]
    for network in (backbone.vae, backbone.text_encoder, backbone.text_encoder_2):
        others += list(network.parameters())
    assert all(p.grad is None and not p.requires_grad for p in others)


def test_checkpointing_changes_no_gradient(backbone):
    config, batch = load_config(None, ["supervision.queries=context"]), make_batch(backbone)
    plain, _ = gradients(backbone, batch, config)
    backbone.transformer.enable_gradient_checkpointing()
    recomputed, _ = gradients(backbone, batch, config)
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)


def test_without_supervision_nothing_is_recorded(backbone, monkeypatch):
    batch = make_batch(backbone)
    off = load_config(None, ["supervision.focus=0", "supervision.cover=0"])
    before, _ = gradients(backbone, batch, off, measure=True)

    def fail(*_, **__):
        raise AssertionError("a recorder was made")

    monkeypatch.setattr(step_module, "AttentionRecorder", fail)
    after, losses = gradients(backbone, batch, off)
    assert torch.equal(losses.total, losses.flow)
    assert losses.focus.eq(0).all()
    assert losses.iou.isnan().all()
    for one, other in zip(before, after, strict=True):  # looking changes nothing
        assert torch.equal(one, other)


def test_measuring_changes_no_loss(backbone):
    batch, config = make_batch(backbone), load_config(None)
    plain, losses = gradients(backbone, batch, config)
    measured, scored = gradients(backbone, batch, config, measure=True)
    assert torch.equal(losses.total, scored.total)
    assert all(torch.equal(a, b) for a, b in zip(plain, measured, strict=True))
    assert scored.iou.isfinite().all()
    assert losses.iou.isnan().all()


def test_supervision_moves_the_gradient(backbone):
    batch = make_batch(backbone)
    on, _ = gradients(backbone, batch, load_config(None))
    off, _ = gradients(
        backbone, batch, load_config(None, ["supervision.focus=0", "supervision.cover=0"])
    )
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(on, off, strict=True))


def test_heads_can_be_supervised_by_themselves(backbone):
    batch, found = make_batch(backbone), []
    for layers in ("[double.0]", "[double.0:1]", "[double.0.context:1, single.0:0]"):
        config = load_config(None, [f"supervision.layers={layers}"])
        found.append(gradients(backbone, batch, config))
    focuses = [losses.focus for _, losses in found]
    assert not torch.allclose(focuses[0], focuses[1])
    assert not torch.allclose(focuses[1], focuses[2])
    assert all(any(g.abs().max() > 0 for g in all_of) for all_of, _ in found)


def test_pixel_weights_have_mean_one_and_the_wanted_ratio():
    inside = torch.zeros(2, 1, 4, 4)
    inside[0, :, :2] = 1
    inside[1, :, 0, 0] = 0.5
    weights = pixel_weights(inside, 5.0)
    torch.testing.assert_close(weights.mean((1, 2, 3)), torch.ones(2))
    assert weights[0, 0, 0, 0] / weights[0, 0, 3, 3] == pytest.approx(5)
    assert weights[1, 0, 0, 0] / weights[1, 0, 3, 3] == pytest.approx(3)
    assert torch.equal(pixel_weights(inside, 1.0), torch.ones(2, 1, 4, 4))


def test_measured_of_known_maps():
    masks = torch.zeros(3, 2, 4, 4)
    masks[:, 0, :2] = 1
    masks[1, 1, 2:] = 1
    valid = torch.tensor([[True, False], [True, True], [False, False]])
    plan = AttentionPlan(torch.zeros(3, 2, 1, dtype=torch.long), masks, valid, 1, 16)
    flat, perfect = torch.full((3, 2, 4, 4), 0.2), masks * 0.01
    iou, share = measured({"a": perfect, "b": perfect}, plan)
    torch.testing.assert_close(iou[:2], torch.ones(2))
    torch.testing.assert_close(share[:2], torch.ones(2))
    assert iou[2].isnan()  # no valid object
    _, share = measured({"a": flat}, plan)
    torch.testing.assert_close(share[:2], torch.full((2,), 0.5))


def test_channels_that_no_picture_is_decoded_from_have_no_flow_loss(backbone):
    batch = make_batch(backbone)
    blind = dataclasses.replace(batch, semantic_channels=1)
    other = dataclasses.replace(blind, target=batch.target.clone())
    other.target[:, 3:] = 7.0
    other = dataclasses.replace(other, sigma=torch.ones(2))  # the noisy picture tells nothing
    same = dataclasses.replace(blind, sigma=torch.ones(2))

    with training_step(backbone.transformer, same, load_config(None)) as losses:
        expected = losses.flow
    with training_step(backbone.transformer, other, load_config(None)) as losses:
        assert torch.equal(losses.flow, expected)
    with training_step(backbone.transformer, batch, load_config(None)) as losses:
        assert not torch.equal(losses.flow, expected)


def test_supervision_backend_is_the_recorder_s():
    config = load_config(None, ["supervision.backend=dense"])
    assert recorder_of(config).backend == "dense"
