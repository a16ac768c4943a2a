"""Objects cut out at a clicked point: SAM of both libraries with random weights, and offline."""

import pytest
import torch

from pseudo_labels.segment.points import OfflinePoints, load_point_segmenter
from regionroute.data.images import read_image, read_mask
from regionroute.errors import UserError


def disc_on_noise():
    """A red disc on noise and a second one far away; the mask of the first."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
    mask = (((y - 50) ** 2 + (x - 40) ** 2) < 20**2)[None].float()
    other = (((y - 50) ** 2 + (x - 110) ** 2) < 12**2)[None].float()
    noise = 0.3 + 0.2 * torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1))
    red = torch.tensor([0.9, 0.2, 0.1])[:, None, None]
    return torch.where(mask + other > 0, red, noise), mask


def iou(a, b):
    return float((a * b).sum() / torch.maximum(a, b).sum())


def test_grabcut_cuts_out_the_part_at_the_point_only():
    pytest.importorskip("cv2")
    image, mask = disc_on_noise()
    found = OfflinePoints(saliency=False).segment_point(image, (45, 35))
    assert found.shape == (1, 96, 128)
    assert iou(found, mask) > 0.9


@pytest.mark.parametrize("point", [(0, 0), (95, 127), (0, 60)])
def test_any_point_gives_a_mask(point):
    pytest.importorskip("cv2")
    image, _ = disc_on_noise()
    found = load_point_segmenter("grabcut").segment_point(image, point)
    assert set(found.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_sam_takes_a_point(kind, networks, tmp_path):
    folder = getattr(networks, f"save_{kind}")(tmp_path / kind)
    segmenter = load_point_segmenter(str(folder))
    image = torch.rand(3, 90, 120, generator=torch.Generator().manual_seed(0))
    first, second = (segmenter.segment_point(image, (40, 60)) for _ in range(2))
    assert first.shape == (1, 90, 120)
    assert torch.equal(first, second)
    assert set(first.unique().tolist()) <= {0.0, 1.0}


def test_an_unknown_segmenter_is_refused():
    with pytest.raises(UserError, match="no-such-folder"):
        load_point_segmenter("./no-such-folder")


def test_a_click_on_the_dog_gives_the_dog(assets):
    weights = str(assets / "weights" / "segment" / "u2netp.onnx")
    image = read_image(assets / "photos" / "dog_00.jpg")
    mask = read_mask(assets / "photos" / "dog_00.mask0.png")
    rows, columns = torch.nonzero(mask[0], as_tuple=True)
    point = (int(rows.float().mean()), int(columns.float().mean()))
    found = load_point_segmenter(f"offline:{weights}").segment_point(image, point)
    assert iou(found, mask) > 0.9
