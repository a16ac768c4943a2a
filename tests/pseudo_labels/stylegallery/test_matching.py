import math

import pytest
import torch

from pseudo_labels.stylegallery.config import MatchConfig
from pseudo_labels.stylegallery.matching import (
    RegionMatcher,
    RegionSet,
    bounding_circles,
    circle_iou,
    semantic_vectors,
)

MATCHER = RegionMatcher(MatchConfig())


def picture(seed, tokens=True):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.ones(16, 16, dtype=torch.int64)
    labels[:, 9:] = 2
    labels[11:, 4:12] = 3
    mix = torch.randn(8, 16, 16, generator=generator)
    grid = torch.randn(12, 4, 4, generator=generator) if tokens else None
    return RegionSet(mix, labels, grid)


def test_a_picture_is_its_own_best_match():
    content = picture(0)
    matches = MATCHER.match(content, [picture(1), content])
    assert [(m.reference, m.cluster) for m in matches] == [(1, 1), (1, 2), (1, 3)]
    for match in matches:
        assert match.score == pytest.approx(0.25 + 1 + 0.125, abs=1e-5)
        assert match.score == pytest.approx(
            0.25 * match.statistical + match.semantic + 0.125 * match.geometric
        )


def test_the_order_of_references_does_not_matter():
    content, references = picture(0), [picture(seed) for seed in (1, 2, 3)]
    forward = MATCHER.match(content, references)
    backward = MATCHER.match(content, references[::-1])
    for one, other in zip(forward, backward, strict=True):
        assert (one.reference, one.cluster) == (2 - other.reference, other.cluster)
        assert one.score == pytest.approx(other.score)


def test_a_region_within_one_token_has_a_meaning():
    labels = torch.ones(16, 16, dtype=torch.int64)
    labels[0:4, 0:4] = 2
    tokens = torch.randn(12, 4, 4)
    item = RegionSet(torch.randn(8, 16, 16), labels, tokens)
    assert torch.allclose(semantic_vectors(item)[1], tokens[:, 0, 0])
    assert MATCHER.match(item, [item])[1].semantic == pytest.approx(1, abs=1e-5)
    # Tokens count by the share of them that is inside.
    labels[0:4, 4:6] = 2
    expected = (tokens[:, 0, 0] + 0.5 * tokens[:, 0, 1]) / 1.5
    assert torch.allclose(semantic_vectors(item)[1], expected, atol=1e-6)


def test_the_users_choice_wins():
    content, references = picture(0), [picture(1), picture(2)]
    matches = MATCHER.match(content, references, {2: (1, 3), 3: (0, None)})
    assert (matches[1].reference, matches[1].cluster, matches[1].manual) == (1, 3, True)
    assert (matches[2].reference, matches[2].manual) == (0, True)
    assert not matches[0].manual
    with pytest.raises(ValueError, match="region 1"):
        MATCHER.match(content, references, {1: (1, 9)})


def test_without_semantic_tokens_the_rest_decides():
    content = picture(0, tokens=False)
    match = MATCHER.match(content, [picture(1), content])[0]
    assert match.semantic is None
    assert match.score == pytest.approx(0.375, abs=1e-5)


def test_broken_features_are_refused():
    content = picture(0)
    content.mix[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        MATCHER.match(content, [picture(1)])


def test_statistics_are_attention_then_mean_and_variance():
    item = picture(0)
    cells = item.mix.flatten(1).T[item.labels.flatten() == 3]
    mixed = torch.softmax(cells @ cells.T / math.sqrt(8), -1) @ cells
    mean, variance = mixed.mean(0), mixed.var(0, unbiased=False)
    expected = torch.cat([mean / mean.norm(), variance / variance.norm()])
    assert torch.allclose(MATCHER.statistics(item)[2], expected, atol=1e-5)


def test_large_regions_are_thinned_alike_every_time():
    item = picture(0)
    few = RegionMatcher(MatchConfig(points=10))
    assert torch.equal(few.statistics(item), few.statistics(item))
    assert not torch.allclose(few.statistics(item), MATCHER.statistics(item))


def test_the_published_random_transformer_has_a_fixed_seed():
    config = MatchConfig(statistics="random_transformer")
    item = picture(0)
    assert torch.equal(
        RegionMatcher(config).statistics(item), RegionMatcher(config).statistics(item)
    )
    with pytest.raises(ValueError, match="4 heads"):
        RegionMatcher(config).statistics(RegionSet(torch.randn(6, 16, 16), item.labels))


def test_circles():
    labels = torch.ones(9, 9, dtype=torch.int64)
    labels[3:6, 4] = 2
    circles = bounding_circles(labels)
    assert circles[1].tolist() == pytest.approx([4, 4, 1])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 2), (0, 0, 2), 1),
        ((0, 0, 1), (0, 5, 1), 0),
        ((0, 0, 1), (0, 2, 1), 0),
        ((0, 0, 1), (0.5, 0, 3), 1 / 9),
        ((0, 0, 0), (0, 0, 0), 1),
        ((0, 0, 0), (1, 0, 0), 0),
        # Two unit circles a radius apart share 2π/3 − √3/2.
        ((0, 0, 1), (1, 0, 1), (2 * math.pi / 3 - 3**0.5 / 2) / (4 * math.pi / 3 + 3**0.5 / 2)),
    ],
)
def test_overlap_of_circles(a, b, expected):
    one, other = torch.tensor([a]).float(), torch.tensor([b]).float()
    assert circle_iou(one, other).item() == pytest.approx(expected, abs=1e-6)
    assert circle_iou(other, one).item() == pytest.approx(expected, abs=1e-6)
