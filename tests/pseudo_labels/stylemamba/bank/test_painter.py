"""The bank's network: sizes, styles that blend, styles that do not mix."""

import pytest
import torch

from pseudo_labels.stylemamba.bank.painter import PainterConfig, StylePainter


@pytest.fixture(scope="module")
def painter():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return StylePainter(3, PainterConfig()).eval()


def images(count=1, height=40, width=48):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (8, 70)])
def test_any_size_comes_back(painter, size):
    out = painter.paint(images(2, *size), torch.tensor([1.0, 0, 0]))
    assert out.shape == (2, 3, *size)
    assert out.min() >= 0
    assert out.max() <= 1


def test_images_of_a_batch_do_not_see_each_other(painter):
    both = images(2)
    weights = torch.tensor([0.0, 1, 0])
    alone = torch.cat([painter.paint(one[None], weights) for one in both])
    torch.testing.assert_close(painter.paint(both, weights), alone, rtol=1e-4, atol=1e-5)


def test_styles_differ_and_blends_lie_between_codes(painter):
    first, second = (painter.paint(images(), torch.eye(3)[n]) for n in (0, 1))
    assert not torch.allclose(first, second, atol=1e-3)
    half = painter.code(torch.tensor([[0.5, 0.5, 0]]))
    torch.testing.assert_close(half[0], painter.codes[:2].mean(0))


def test_every_parameter_learns():
    painter = StylePainter(2, PainterConfig())
    painter(images(2), painter.codes).square().mean().backward()
    still = [n for n, p in painter.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


def test_the_far_corner_matters():
    # State-space blocks carry what convolutions of this depth cannot see.
    painter = StylePainter(1, PainterConfig())
    image = images(1, 256, 256).requires_grad_()
    painter(image, painter.codes)[..., :8, :8].sum().backward()
    assert image.grad[..., -8:, -8:].abs().max() > 0
