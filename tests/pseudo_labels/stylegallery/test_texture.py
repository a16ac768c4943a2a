import torch

from pseudo_labels.stylegallery.texture import TextureConfig, retexture

EXACT = TextureConfig(most=100_000, keep=0.0)


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def ones(image):
    return torch.ones(image.shape[-2:], dtype=torch.int64)


def test_an_image_after_itself_stays():
    image = drawn(3, 32, 40)
    made = retexture(image, ones(image), {1: (image, ones(image))}, EXACT)
    assert torch.allclose(made, image, atol=1e-5)


def test_sizes_that_no_patch_fits():
    reference = drawn(3, 20, 20)
    for size in ((5, 37), (8, 8), (1, 1)):
        image = drawn(3, *size, seed=1)
        made = retexture(image, ones(image), {1: (reference, ones(reference))})
        assert made.shape == image.shape
        assert torch.isfinite(made).all()


def test_colours_become_those_of_the_reference_but_for_what_is_kept():
    image = drawn(3, 32, 32)
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 32, 32)
    made = retexture(image, ones(image), {1: (red, ones(red))}, TextureConfig(keep=0.25))
    assert torch.allclose(made, 0.75 * red + 0.25 * image, atol=1e-5)


def test_other_regions_stay_and_only_the_matched_region_gives_patches():
    image = drawn(3, 64, 64)
    regions = torch.ones(64, 64, dtype=torch.int64)
    regions[:, 32:] = 2
    reference = torch.zeros(3, 64, 64)
    reference[0, :, :24], reference[2, :, 32:] = 1, 1  # red, black and blue
    mask = torch.zeros(64, 64)
    mask[:, 32:] = 1
    made = retexture(image, regions, {1: (reference, mask)}, EXACT)
    assert torch.allclose(made[:, :, 44:], image[:, :, 44:], atol=1e-5)
    assert (made[:2, :, :24] < 1e-5).all()
    assert made[2, :, :24].mean() > 0.8


def test_a_tiny_region_takes_the_whole_reference():
    image, reference = torch.zeros(3, 32, 32), torch.zeros(3, 32, 32)
    reference[:, 12:20, 12:20] = 1
    mask = torch.zeros(32, 32)
    mask[12:20, 12:20] = 1
    made = retexture(image, ones(image), {1: (reference, mask)}, EXACT)
    assert torch.equal(made, image)  # the black of the rest is nearer
