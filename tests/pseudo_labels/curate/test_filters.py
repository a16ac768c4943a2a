import math

import pytest
import torch

from pseudo_labels.curate.filters import (
    Limits,
    first_alike,
    object_checks,
    object_fault,
    perceptual_hash,
    sample_checks,
    sample_fault,
)
from pseudo_labels.scenes.draw import render_scene
from regionroute.errors import UserError

LIMITS = Limits()


def disc(side=64, radius=16):
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return (((y - side / 2) ** 2 + (x - side / 2) ** 2) < radius**2)[None].float()


class TestObjects:
    def test_area_and_border_are_shares(self):
        mask = torch.zeros(1, 10, 20)
        mask[:, :, :5] = 1
        checks = object_checks(mask, 0.51239)
        assert checks == {"area": 0.25, "border": round((10 + 4 * 2) / 56, 4), "score": 0.5124}

    @pytest.mark.parametrize(
        ("checks", "told"),
        [
            ({"area": 0.005}, "the dog covers 0.5% of the image, the limits are 1% to 70%"),
            ({"area": 0.8}, "the dog covers 80.0%"),
            ({"border": 0.9}, "the dog covers 90% of the image border, the limit is 60%"),
            ({"score": 0.1}, "the mask of the dog has a score of 0.10"),
            ({}, None),
        ],
    )
    def test_every_limit_has_its_reason(self, checks, told):
        good = {"area": 0.2, "border": 0.1, "score": 0.9}
        fault = object_fault(good | checks, "dog", LIMITS)
        assert (fault is None) == (told is None)
        assert told is None or told in fault


class TestSamples:
    def test_strength_is_the_mean_change_inside_the_mask(self):
        context, mask = torch.full((3, 64, 64), 0.5), disc()
        target = torch.where(mask > 0, context + 0.25, context)
        assert sample_checks(context, target, mask)["strength"] == 0.25

    def test_structure_tells_a_style_from_a_blot_and_from_noise(self):
        scene = render_scene(3, 96, count=1)
        mask = scene.mask(scene.words()[0])
        inverted = 1 - scene.image
        noise = torch.rand(scene.image.shape, generator=torch.Generator().manual_seed(0))
        kept, lost, blot = (
            sample_checks(scene.image, picture, mask)["structure"]
            for picture in (inverted, noise, torch.full_like(noise, 0.5))
        )
        assert kept > 0.99
        assert lost < 0.4
        assert blot == 0.0
        assert not math.isnan(blot)

    def test_what_lies_far_outside_the_mask_does_not_count(self):
        scene = render_scene(3, 96, count=1)
        mask = torch.zeros(1, 96, 96)
        mask[:, 30:50, 40:60] = 1
        target = 1 - scene.image
        other = target.clone()
        other[:, :10], other[:, 80:] = 0, 1
        assert sample_checks(scene.image, target, mask) == sample_checks(scene.image, other, mask)

    def test_faults(self):
        assert "neon changes the dog by only 0.010" in sample_fault(
            {"strength": 0.01, "structure": 1.0}, "dog", "neon", LIMITS
        )
        assert "keeps too little of the dog's shape" in sample_fault(
            {"strength": 0.5, "structure": -0.2}, "dog", "neon", LIMITS
        )
        assert sample_fault({"strength": 0.5, "structure": 0.5}, "dog", "neon", LIMITS) is None


class TestDoubles:
    def test_a_photo_is_known_again_smaller_lighter_and_compressed(self):
        image = render_scene(5, 128, count=2).image
        smaller = torch.nn.functional.interpolate(image[None], (90, 90), mode="area")[0]
        noisy = image + 0.02 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
        looks = [
            perceptual_hash(picture) for picture in (image, smaller, 0.9 * image + 0.05, noisy)
        ]
        assert first_alike(looks[0], [looks[1]], 12) == 0
        assert first_alike(looks[0], [looks[2]], 12) == 0
        assert first_alike(looks[0], [looks[3]], 30) == 0

    def test_different_photos_are_not(self):
        looks = [perceptual_hash(render_scene(seed, 128, count=2).image) for seed in range(12)]
        for index, look in enumerate(looks):
            assert first_alike(look, looks[:index], 12) is None

    def test_the_first_of_several_is_named_and_minus_one_keeps_all(self):
        look = perceptual_hash(render_scene(1, 64).image)
        assert first_alike(look, ["ff" * 32, look, look], 0) == 1
        assert first_alike(look, [look], -1) is None
        assert first_alike(look, [], 12) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_area": 0.8},
        {"max_area": 2},
        {"max_border": -0.1},
        {"min_score": 1.1},
        {"min_strength": float("nan")},
        {"min_structure": 2},
        {"max_alike": 300},
    ],
)
def test_limits_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Limits(**wrong)
