import math

import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

from regionroute.data.buckets import bucket_sizes, crop_window, fitted, nearest_bucket

BASES = [(1024, 16), (512, 16), (64, 8), (32, 4), (100, 16)]


@pytest.mark.parametrize(("resolution", "multiple"), BASES)
def test_sizes_have_about_one_area_and_fit_the_base(resolution: int, multiple: int) -> None:
    sizes = bucket_sizes(resolution, multiple)
    assert all(side % multiple == 0 for size in sizes for side in size)
    side = round(resolution / multiple) * multiple
    assert (side, side) in sizes
    assert all(abs(h * w / side**2 - 1) <= multiple / side for h, w in sizes)
    assert [(w, h) for h, w in reversed(sizes)] == list(sizes)  # lying and standing alike
    aspects = [w / h for h, w in sizes]
    assert aspects == sorted(aspects)
    assert len(set(aspects)) == len(aspects)
    assert aspects[-1] <= 16


def test_kontext_keeps_the_sizes_it_was_trained_at() -> None:
    sizes = bucket_sizes(1024, 16)
    assert {(h, w) for w, h in PREFERRED_KONTEXT_RESOLUTIONS} <= set(sizes)
    usual = [size for size in sizes if max(size) / min(size) < 2.34]
    assert len(usual) == len(PREFERRED_KONTEXT_RESOLUTIONS)


def test_photos_of_the_usual_aspects_lose_little() -> None:
    sizes = bucket_sizes(1024, 16)
    lost = {}
    for height, width in ((480, 640), (427, 640), (1080, 1920), (3024, 4032), (1000, 1000)):
        for photo in ((height, width), (width, height)):
            lost[photo] = crop_window(*photo, nearest_bucket(*photo, sizes)).lost
    assert max(lost.values()) < 0.041
    assert lost[427, 640] == lost[1000, 1000] == 0
    # The worst aspect there is lies in the middle of the widest gap.
    worst = max(
        crop_window(9000, w, nearest_bucket(9000, w, sizes)).lost for w in range(9000, 30000, 50)
    )
    assert worst < 0.08


@pytest.mark.parametrize("photo", [(64, 64), (31, 57), (57, 31), (1, 1), (7, 100), (333, 500)])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (40, 24)])
def test_the_window_is_in_the_middle_as_large_as_it_can_be(
    photo: tuple[int, int], size: tuple[int, int]
) -> None:
    window = crop_window(*photo, size)
    assert window.height == photo[0] or window.width == photo[1]
    assert abs(window.height * size[1] - window.width * size[0]) <= max(size) / 2 + 1e-9 or 1 in (
        window.height,
        window.width,
    )
    below, right = photo[0] - window.top - window.height, photo[1] - window.left - window.width
    assert 0 <= below - window.top <= 1
    assert 0 <= right - window.left <= 1
    assert window.lost == pytest.approx(1 - window.height * window.width / math.prod(photo))


def test_the_nearest_bucket_is_judged_by_the_ratio() -> None:
    sizes = ((20, 10), (10, 10), (10, 20))
    assert nearest_bucket(100, 141, sizes) == (10, 10)
    assert nearest_bucket(100, 142, sizes) == (10, 20)
    assert nearest_bucket(142, 100, sizes) == (20, 10)
    assert nearest_bucket(10, 160, sizes) == (10, 20)


def test_nothing_is_stretched() -> None:
    """A disc stays one, and lies where the window says."""
    y, x = torch.meshgrid(torch.arange(90.0), torch.arange(130.0), indexing="ij")
    disc = ((y - 40) ** 2 + (x - 70) ** 2 < 20**2).float().expand(1, 3, -1, -1)
    seen = fitted(disc, (32, 40))[0, 0] > 0.5
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert abs((rows[-1] - rows[0]) - (columns[-1] - columns[0])) <= 1
    window = crop_window(90, 130, (32, 40))
    scale = 40 / window.width
    assert window.height == 90
    assert (columns[0] + columns[-1] + 1) / 2 == pytest.approx(
        (70.5 - window.left) * scale, abs=0.6
    )
    assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(40.5 * scale, abs=0.6)


def test_a_picture_of_the_size_itself_is_untouched() -> None:
    picture = torch.rand(1, 3, 24, 40)
    assert torch.equal(fitted(picture, (24, 40)), picture)
