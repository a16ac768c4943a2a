"""Fits: nothing at first, then only the right weights, and pictures that follow the style."""

import copy

import pytest
import torch
from torch import nn

from pseudo_labels.stylemamba import fitting
from pseudo_labels.stylemamba.config import FitConfig, FusionConfig, LossConfig, MambaConfig
from pseudo_labels.stylemamba.encoders import StyleTarget
from pseudo_labels.stylemamba.fitting import (
    centre_square,
    converged,
    fit,
    new_fusion,
    stacked,
    style_loss,
    turn,
    update,
)
from pseudo_labels.stylemamba.measures import ssim
from pseudo_labels.stylemamba.objective import Objective, Parts
from regionroute.errors import UserError


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before, after):
    """The first part of the names of what changed."""
    return {name for name in before if not torch.equal(before[name], after[name])}


class Start:
    """The first steps by hand, with everything in reach."""

    def __init__(self, parts, pictures, config):
        self.objective = Objective(parts, config.loss)
        self.source = self.objective.source(pictures)
        target = parts.encoder.target("woodcut")
        self.style = torch.cat([target.embedding, target.direction(self.source.embeddings)[0]])
        self.direction = target.direction(self.source.embeddings)
        self.fusion = new_fusion(parts, self.style[None], config, 0)
        self.previous = None

    def result(self):
        latents = self.fusion(self.source.latents, self.style.expand(2, -1))
        return self.objective(
            latents, self.source, self.direction, torch.Generator().manual_seed(0),
            previous=self.source.embeddings,
        )  # fmt: skip


@pytest.fixture
def start(parts, pictures, tiny):
    loss = tiny.loss.model_copy(update={"patch_clip": 1.0, "crops": 2})
    return Start(parts, pictures, tiny.model_copy(update={"loss": loss}))


def test_at_the_start_nothing_is_edited_and_everything_is_finite(start):
    result = start.result()
    assert torch.equal(result.pictures, start.source.pictures)
    assert set(result.terms) == {
        "directional", "second_order", "masked", "patch_clip", "content", "tv",
    }  # fmt: skip
    for name in ("directional", "second_order", "masked"):
        assert result.terms[name].item() == pytest.approx(1, abs=1e-5)
    assert result.terms["content"].item() == 0
    result.total.backward()
    grads = [p.grad for p in start.fusion.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert start.fusion.leave.weight.grad.abs().max() > 0


def test_the_output_moves_first_then_all_and_frozen_networks_never(start):
    parts = start.objective.parts
    networks = (parts.codec, parts.encoder.model, parts.vgg)
    frozen = [state(network) for network in networks]
    optimizer = torch.optim.Adam(start.fusion.parameters(), lr=1e-3)
    states = [state(start.fusion)]
    for step in (1, 2):
        update(start.fusion, optimizer, start.result().total, 1.0, step)
        states.append(state(start.fusion))
    assert moved(states[0], states[1]) == {"leave.weight", "leave.bias"}
    second = moved(states[1], states[2])
    for block in (0, 1):
        assert f"blocks.{block}.modulation.weight" in second
        for name in ("A_log", "D", "step.weight", "select.weight", "conv.weight", "leave.weight"):
            assert f"blocks.{block}.mixer.{name}" in second
    for network, before in zip(networks, frozen, strict=True):
        assert not moved(before, state(network))
        assert all(p.grad is None for p in network.parameters())


def test_a_loss_that_is_not_finite_ends_the_fit(start):
    optimizer = torch.optim.Adam(start.fusion.parameters())
    with pytest.raises(UserError, match="the loss of step 7 is nan: lower the learning rate"):
        update(start.fusion, optimizer, torch.tensor(float("nan")), 1.0, 7)


class RedEncoder:
    """Linear: mean colours. The style is more red."""

    width = 3
    facts = {"name": "red", "weights": "none", "random": False}  # noqa: RUF012

    def embed(self, images):
        return images.mean((2, 3))

    def target(self, style):
        return StyleTarget(style, torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3))

    def summarise(self, vectors):
        return vectors


class PixelCodec(nn.Module):
    """Latents are pixels in [-1, 1]."""

    channels, multiple = 3, 1
    facts = {"name": "pixels", "weights": "none", "random": False}  # noqa: RUF012

    def encode(self, images):
        return images * 2 - 1

    def decode(self, latents):
        return (latents / 2 + 0.5).clamp(0, 1)

    def padded(self, images):
        return images


@pytest.fixture(scope="module")
def red_config():
    return MambaConfig(
        fusion=FusionConfig(width=16, blocks=2, states=4),
        loss=LossConfig(masks=1),
        fit=FitConfig(steps=50, size=32, learning_rate=2e-3),
    )


def test_a_toy_fit_raises_red_and_keeps_the_picture(pictures, red_config):
    parts = Parts(PixelCodec(), RedEncoder())
    result = fit([parts.encoder.target("red")], pictures, parts, red_config)
    with torch.no_grad():
        styled = parts.codec.decode(
            result.fusion(parts.codec.encode(pictures), result.descriptions.expand(2, -1))
        )
    change = (styled - pictures).mean((2, 3))
    assert (change[:, 0] > 0.03).all()
    assert (change[:, 0] > 3 * change[:, 1:].abs().amax(1)).all()
    assert ssim(styled, pictures).min() > 0.5
    rows = [row["total"] for row in result.rows]
    assert rows[-1] < 0.5 * rows[0]
    assert "second_order" not in result.rows[0]
    assert "second_order" in result.rows[1]


def test_a_region_keeps_the_style_inside(pictures, red_config):
    parts = Parts(PixelCodec(), RedEncoder())
    region = torch.zeros(2, 1, 32, 32)
    region[..., :16] = 1
    objective = Objective(parts, red_config.loss)
    source = objective.source(pictures, region)
    latents = source.latents.clone().requires_grad_()
    direction = parts.encoder.target("red").direction(source.embeddings)
    terms = objective._style_terms(
        parts.codec.decode(latents),
        objective.embed(parts.codec.decode(latents), source),
        source, direction, torch.Generator().manual_seed(0), source.embeddings,
    )  # fmt: skip
    torch.stack([value.sum() for value in terms.values()]).sum().backward()
    assert latents.grad[..., :16].abs().max() > 0
    assert latents.grad[..., 16:].abs().max() == 0


def test_equal_seeds_give_equal_fits_and_others_do_not(parts, pictures, tiny):
    target = parts.encoder.target("neon")
    fits = [fit([target], pictures, parts, tiny) for _ in range(2)]
    assert not moved(state(fits[0].fusion), state(fits[1].fusion))
    other = tiny.model_copy(update={"fit": tiny.fit.model_copy(update={"seed": 1})})
    assert moved(state(fits[0].fusion), state(fit([target], pictures, parts, other).fusion))


def test_several_styles_share_a_module_and_pairs_take_turns(parts, pictures, tiny):
    targets = [parts.encoder.target(words) for words in ("neon", "woodcut", "chalk")]
    seen = []
    result = fit(targets, pictures, parts, tiny, report=lambda step, row: seen.append((step, row)))
    assert result.descriptions.shape == (3, 64)
    assert [step for step, _ in seen] == [1, 2, 3]
    # Six pairs, four a step: the second step still meets new ones.
    assert ["second_order" in row for _, row in seen] == [False, False, True]


def test_without_vgg_content_is_kept_on_the_latents(parts, pictures, tiny):
    bare = Parts(parts.codec, parts.encoder)
    source = Objective(bare, tiny.loss).source(pictures)
    direction = torch.ones_like(source.embeddings)
    result = Objective(bare, tiny.loss)(
        source.latents + 0.5, source, direction, torch.Generator().manual_seed(0)
    )
    assert result.terms["content"].item() == pytest.approx(0.25, rel=1e-4)


def test_losses_of_weight_zero_are_not_computed(parts, pictures):
    config = LossConfig(masked=0, second_order=0, content=0, tv=0)
    objective = Objective(parts, config)
    source = objective.source(pictures)
    result = objective(
        source.latents, source, torch.ones_like(source.embeddings), torch.Generator(),
        previous=source.embeddings,
    )  # fmt: skip
    assert set(result.terms) == {"directional"}


def test_neutral_rows_get_no_style_and_must_not_move(parts, pictures, tiny):
    objective = Objective(parts, tiny.loss)
    source = objective.source(pictures)
    latents = (source.latents + 0.1).requires_grad_()
    neutral = torch.tensor([True, False])
    direction = torch.ones_like(source.embeddings)
    args = (latents, source, direction, torch.Generator().manual_seed(0))
    result = objective(*args, neutral=neutral)
    assert result.terms["neutral"].item() == pytest.approx(0.01, rel=1e-3)
    again = copy.deepcopy(direction)
    again[0] = -7
    args = (latents, source, again, torch.Generator().manual_seed(0))
    assert objective(*args, neutral=neutral).total.item() == result.total.item()
    everyone = objective(*args, neutral=torch.tensor([True, True]))
    assert torch.isfinite(everyone.total)
    assert everyone.terms["directional"].item() == 0


def test_turns_reach_every_pair_alike():
    assert turn(1, 2, 4) == [0, 1]
    assert [turn(step, 5, 2) for step in (1, 2, 3)] == [[0, 1], [2, 3], [4, 0]]


def test_middle_squares_of_pictures_and_masks():
    picture = torch.zeros(3, 20, 40)
    picture[:, :, 10:30] = 1
    assert centre_square(picture, 16).min() > 0.99
    mask = (torch.rand(1, 33, 33) > 0.5).float()
    assert set(centre_square(mask, 16).unique().tolist()) <= {0.0, 1.0}
    assert stacked([picture, torch.rand(3, 50, 30)], 16).shape == (2, 3, 16, 16)


def test_losses_have_converged_when_they_no_longer_fall():
    falling = [1 / (1 + step) for step in range(20)]
    assert not converged(falling, 5, 0.01)
    assert converged([*falling, *[0.05] * 10], 5, 0.01)
    assert converged([1.0, 1.0, 2.0, 2.0], 2, 0.01)
    assert not converged([1.0] * 9, 5, 0.01)  # too short to say
    assert not converged([1.0] * 40, 5, 0)


def test_only_style_losses_say_whether_a_fit_still_advances():
    row = {"directional": 0.7, "masked": 0.9, "second_order": 0.6, "content": 20.0, "total": 6.8}
    assert style_loss(row, LossConfig(directional=2, masked=5)) == pytest.approx(5.9)
    assert style_loss({"content": 20.0, "total": 6.0}, LossConfig()) == 6.0


def test_a_fit_stops_by_its_style_losses(parts, pictures, tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(fitting, "converged", lambda losses, *_: seen.append([*losses]))
    rows = fit([parts.encoder.target("woodcut")], pictures, parts, tiny).rows

    assert len(seen) == len(rows)
    assert seen[-1] == [style_loss(row, tiny.loss) for row in rows]
    assert seen[-1] != [row["total"] for row in rows]


def test_the_last_layer_moves_as_far_at_any_width(parts, pictures, tiny):
    # Adam moves each weight by about the learning rate, whatever the gradient.
    moves = []
    for width in (64, 256):
        fusion_config = FusionConfig(width=width, blocks=1, states=2)
        options = tiny.fit.model_copy(update={"steps": 1})
        config = tiny.model_copy(update={"fusion": fusion_config, "fit": options})
        fusion = fit([parts.encoder.target("woodcut")], pictures, parts, config).fusion
        moves.append(float(fusion.leave.weight.detach().abs().sum(1).mean()))
    assert moves[1] == pytest.approx(moves[0], rel=0.1)
