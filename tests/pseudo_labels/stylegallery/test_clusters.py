import pytest
import torch

from pseudo_labels.stylegallery.clusters import (
    absorb_islands,
    cluster_features,
    find_regions,
    merge_alike,
    override,
    paint_masks,
    relabel,
    split_by_depth,
    standardise,
    to_grid,
    two_means,
)
from pseudo_labels.stylegallery.config import ClusterConfig

CONFIG = ClusterConfig()


@pytest.fixture
def blobs():
    """Features [6, 16, 16] of three far groups in three stripes, and their labels."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(16)[:, None].expand(16, 16).div(6, rounding_mode="floor") + 1
    centres = 10 * torch.randn(3, 6, generator=generator)
    features = centres[truth - 1].permute(2, 0, 1)
    return features + 0.1 * torch.randn(6, 16, 16, generator=generator), truth


def test_three_groups_are_found(blobs):
    features, truth = blobs
    labels = cluster_features(features, CONFIG, seed=1)
    assert torch.equal(labels, truth)  # numbered by first appearance, so equal and not permuted
    assert torch.equal(labels, cluster_features(features, CONFIG, seed=1))
    assert torch.equal(labels, cluster_features(features, CONFIG, seed=2))


def test_constant_channels_do_no_harm(blobs):
    features, truth = blobs
    features = torch.cat([features, torch.ones(2, 16, 16)])
    assert torch.isfinite(standardise(features)).all()
    assert torch.equal(cluster_features(features, CONFIG), truth)


def test_a_uniform_picture_is_one_region():
    assert (cluster_features(torch.ones(4, 8, 8), CONFIG) == 1).all()


def test_two_kinds_of_cells_are_two_regions():
    features = torch.zeros(4, 8, 8)
    features[:, :, 4:] = 1
    assert cluster_features(features, CONFIG).unique().tolist() == [1, 2]


def test_a_chain_is_merged_by_single_linkage_only():
    labels = torch.arange(1, 4)[:, None].expand(3, 5)
    latent = (0.8 * torch.arange(3.0))[None, :, None].expand(1, 3, 5)
    assert merge_alike(labels, latent, 0.85).unique().tolist() == [1]
    complete = merge_alike(labels, latent, 0.85, "complete")
    assert complete.unique().tolist() == [1, 2]
    assert complete[0, 0] == complete[1, 0] != complete[2, 0]
    assert merge_alike(labels, latent, 0.79).unique().tolist() == [1, 2, 3]


def test_a_gap_in_depth_keeps_regions_apart():
    labels = torch.arange(1, 3)[:, None].expand(2, 5)
    latent = torch.zeros(1, 2, 5)
    depth = torch.tensor([0.0, 0.3])[:, None].expand(2, 5)
    assert merge_alike(labels, latent, 0.35, depth=depth, gap=0.3).max() == 2
    assert merge_alike(labels, latent, 0.35, depth=depth, gap=0.31).max() == 1


@pytest.mark.parametrize(("span", "regions"), [(0.8, 2), (0.7, 1)])
def test_depth_splits_from_three_quarters(span, regions):
    depth = torch.zeros(8, 8)
    depth[:, 4:] = span
    labels = split_by_depth(torch.ones(8, 8, dtype=torch.int64), depth, 0.75)
    assert labels.unique().tolist() == list(range(1, regions + 1))
    assert (labels[:, :4] == 1).all()


def test_small_regions_are_not_split():
    depth = torch.zeros(3, 6)
    depth[:, 3:] = 1
    assert split_by_depth(torch.ones(3, 6, dtype=torch.int64), depth, 0.75).max() == 1


def test_two_means_is_the_best_threshold():
    values = torch.tensor([0.0, 0.1, 0.2, 0.9, 1.0], dtype=torch.float64)
    assert two_means(values) == pytest.approx(0.55)


def test_specks_go_and_larger_parts_stay():
    labels = torch.ones(16, 16, dtype=torch.int64)
    labels[2, 2:5] = 2
    labels[8:13, 8:13] = 3
    found = absorb_islands(labels, 20)
    assert (found == 2).sum() == 0
    assert (found == 3).sum() == 25
    assert torch.equal(absorb_islands(found, 20), found)


def test_touching_specks_end_in_one_region():
    labels = torch.ones(12, 12, dtype=torch.int64)
    labels[5, 5:8], labels[6, 5:8] = 2, 3
    assert (absorb_islands(labels, 20) == 1).all()
    # Nothing but specks: they grow together until they are large enough.
    mosaic = torch.arange(64).view(8, 8) + 1
    assert absorb_islands(mosaic, 20).unique().numel() <= 3


def test_the_users_regions_stay_even_if_small():
    labels = torch.ones(8, 8, dtype=torch.int64)
    user = torch.zeros(8, 8, dtype=torch.int64)
    user[3, 3] = 1
    found = absorb_islands(override(labels, user), 20, fixed=user > 0)
    assert (found == found[3, 3]).sum() == 1
    thin = torch.zeros(1, 64, 64)
    thin[:, :, 20] = 1
    assert to_grid(thin, (8, 8))[:, 2].all()
    assert not to_grid(torch.zeros(1, 64, 64), (8, 8)).any()


def test_masks_are_painted_large_to_small():
    masks = torch.zeros(2, 16, 16)
    masks[0, 6:10, 6:10] = 1  # the smaller one comes first, but is painted last
    masks[1, 2:14, 2:14] = 1
    labels = paint_masks(masks, (16, 16))
    assert labels.unique().tolist() == [1, 2, 3]
    assert [labels[0, 0], labels[3, 3], labels[7, 7]] == [1, 2, 3]


def test_numbers_follow_first_appearance():
    labels = torch.tensor([[7, 7, 2], [9, 2, 2]])
    assert relabel(labels).tolist() == [[1, 1, 2], [3, 2, 2]]


def test_all_steps_together(blobs):
    features, truth = blobs
    latent = (3.0 * truth)[None].repeat(4, 1, 1)
    assert torch.equal(find_regions(features, latent, CONFIG), truth)
    user = torch.zeros_like(truth)
    user[:, :8] = 1
    found = find_regions(features, latent, CONFIG, user=user)
    assert (found[:, :8] == found[0, 0]).all()
    assert (found[:, 8:] != found[0, 0]).all()
    half = torch.zeros(1, 16, 16)
    half[:, :, 8:] = 1
    masked = find_regions(features, torch.cat([latent, 9 * half]), CONFIG, masks=half)
    assert masked[0].unique().tolist() == [1, 2]
