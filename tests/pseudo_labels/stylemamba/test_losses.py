"""The losses on vectors and pictures whose values are known."""

import pytest
import torch

from pseudo_labels.stylemamba.losses import (
    content_loss,
    directional_loss,
    hide,
    masked_directional_loss,
    patch_clip_loss,
    random_patches,
    second_order_loss,
    soft_cosine,
    total_variation,
)

E1, E2 = torch.eye(4)[:2]
START = torch.zeros(1, 4)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class TestDirectional:
    @pytest.mark.parametrize(
        ("edit", "expected"), [(1e3 * E1, 0.0), (-1e3 * E1, 2.0), (1e3 * E2, 1.0), (0 * E1, 1.0)]
    )
    def test_known_edits(self, edit, expected):
        loss = directional_loss(START, START + edit, E1)
        torch.testing.assert_close(loss, torch.tensor([expected]), rtol=0, atol=1e-4)

    def test_no_edit_has_a_finite_gradient_along_the_direction(self):
        now = START.clone().requires_grad_()
        directional_loss(START, now, 3 * E1).sum().backward()
        torch.testing.assert_close(now.grad[0], -E1 / 0.01)

    def test_softening_halves_an_edit_of_its_size(self):
        assert soft_cosine(0.3 * E1, E1, 0.3) == pytest.approx(0.5)


class TestSecondOrder:
    """The previous edit went astray, along E2; the target is E1."""

    @pytest.mark.parametrize(("now", "expected"), [(E1, 0.014), (E2, 1.0), (E2 - E1, 1.38)])
    def test_known_steps(self, now, expected):
        loss = second_order_loss(START, START + E2, START + now, E1)
        assert loss.item() == pytest.approx(expected, abs=4e-3)

    def test_it_is_zero_when_nothing_is_left(self):
        done = START + 1e4 * E1
        for step in (0 * E1, E2, -E1):
            assert second_order_loss(START, done, done + step, E1).item() < 1e-5

    def test_no_gradient_to_the_previous_state_and_none_when_aligned(self):
        before, now = (START + E2).requires_grad_(), (START + E1).requires_grad_()
        second_order_loss(START, before, now, E1).sum().backward()
        assert before.grad is None
        assert now.grad.abs().max() > 0
        done = (START + 1e4 * E1).requires_grad_()
        second_order_loss(START, done.detach(), done, E1).sum().backward()
        assert done.grad.abs().max() < 1e-5

    def test_an_exactly_reached_target_is_finite(self):
        now = (START + 2.0 * E1).requires_grad_()
        # Twice as long, softened to length 1 exactly: r = 0.
        loss = second_order_loss(START, START + 2.0 * E1, now, E1 * 2 / 2.01)
        loss.sum().backward()
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert torch.isfinite(now.grad).all()


def mean_colours(images):
    """A linear encoder with places: mean colour of each quarter, [B, 12]."""
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


class TestMasks:
    @pytest.mark.parametrize(("grid", "ratio"), [(14, 0.5), (7, 0.3), (4, 0.0)])
    def test_the_ratio_is_exact_and_the_seed_decides(self, grid, ratio):
        masks = random_patches(grid, ratio, 3, (56, 56), seeded())
        assert masks.shape == (3, 1, 56, 56)
        hidden = masks.sum((1, 2, 3)) / (56 / grid) ** 2
        assert hidden.tolist() == [round(ratio * grid * grid)] * 3
        assert torch.equal(masks, random_patches(grid, ratio, 3, (56, 56), seeded()))
        if ratio:
            assert not torch.equal(masks, random_patches(grid, ratio, 3, (56, 56), seeded(1)))
            assert not torch.equal(masks[0], masks[1])

    def test_both_pictures_lose_the_same_pixels_to_the_contents_mean(self):
        x, y = torch.rand(2, 2, 3, 28, 28, generator=seeded())
        masks = random_patches(14, 0.5, 1, (28, 28), seeded())
        seen = []

        def embed(images):
            seen.append(images)
            return mean_colours(images)

        masked_directional_loss(embed, x, y, torch.ones(12), masks)
        before, after = seen
        hidden = masks[0].bool().expand_as(x)
        fill = x.mean((2, 3), keepdim=True).expand_as(x)
        for picture, original in ((before, x), (after, y)):
            assert torch.equal(picture[hidden], fill[hidden])
            assert torch.equal(picture[~hidden], original[~hidden])

    def test_without_a_mask_it_is_the_directional_loss(self):
        x, y = torch.rand(2, 2, 3, 28, 28, generator=seeded())
        direction = torch.randn(12, generator=seeded())
        masks = torch.zeros(3, 1, 28, 28)
        torch.testing.assert_close(
            masked_directional_loss(mean_colours, x, y, direction, masks),
            directional_loss(mean_colours(x), mean_colours(y), direction),
        )

    def test_pixels_that_every_mask_hides_have_no_gradient(self):
        x = torch.rand(1, 3, 28, 28, generator=seeded())
        y = torch.rand(1, 3, 28, 28, generator=seeded(1)).requires_grad_()
        masks = random_patches(14, 0.7, 2, (28, 28), seeded())
        masked_directional_loss(mean_colours, x, y, torch.ones(12), masks).sum().backward()
        always = masks.bool().all(0).expand_as(y)
        assert always.any()
        assert (y.grad[always] == 0).all()
        assert (y.grad[~always] != 0).all()

    def test_hide_takes_a_mask_a_picture(self):
        hidden = torch.zeros(2, 1, 4, 4)
        hidden[1] = 1
        out = hide(torch.ones(2, 3, 4, 4), hidden, torch.zeros(2, 3, 1, 1))
        assert out.mean((1, 2, 3)).tolist() == [1, 0]


class TestContentAndVariation:
    def test_equal_features_cost_nothing_and_layers_add_up(self):
        maps = [torch.rand(2, 3, 4, 4, generator=seeded()), torch.rand(2, 5, 2, 2)]
        assert content_loss(maps, maps).tolist() == [0, 0]
        moved = [maps[0] + 1, maps[1] - 2]
        torch.testing.assert_close(content_loss(maps, moved), torch.tensor([5.0, 5.0]))

    def test_variation_of_a_constant_is_zero_and_of_a_pattern_the_same_at_any_size(self):
        assert total_variation(torch.full((1, 3, 9, 7), 0.3)).item() == 0
        cell = torch.rand(1, 3, 8, 8, generator=seeded())
        small, large = (total_variation(cell.repeat(1, 1, n, n)).item() for n in (8, 32))
        assert small == pytest.approx(large, rel=0.02)
        board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(3, 3).expand(1, 3, 6, 6)
        assert total_variation(board).item() == 2


class TestPatches:
    def loss(self, y, reject, seed=0):
        return patch_clip_loss(
            mean_colours, torch.zeros(1, 3, 24, 24), y, torch.ones(12),
            crops=3, share=0.5, reject=reject, generator=seeded(seed),
        )  # fmt: skip

    def test_well_styled_crops_count_nothing_and_others_do(self):
        styled = torch.ones(1, 3, 24, 24)
        assert self.loss(styled, reject=0.7).item() == 0
        assert self.loss(styled, reject=0.0).item() > 0
        unstyled = torch.zeros(1, 3, 24, 24, requires_grad=True)
        loss = self.loss(unstyled, reject=0.7)
        loss.sum().backward()
        assert loss.item() == 1
        assert unstyled.grad.abs().sum() > 0

    def test_the_seed_decides_the_crops(self):
        y = torch.rand(1, 3, 24, 24, generator=seeded())
        assert self.loss(y, 0.0).item() == self.loss(y, 0.0).item()
        assert self.loss(y, 0.0).item() != self.loss(y, 0.0, seed=1).item()
