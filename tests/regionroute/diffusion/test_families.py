"""Families are found by name; what the registry says of them is true."""

import pytest
import torch
from torch import nn

from regionroute.diffusion import families
from regionroute.diffusion.families import (
    EXAMPLES,
    PIPELINES,
    every_family,
    family_of_config,
    find_transformer,
    named,
)
from regionroute.diffusion.flux2_klein import FAMILY as KLEIN
from regionroute.diffusion.flux_kontext import FAMILY as KONTEXT
from regionroute.models.loading import load_skeleton


def test_the_registry_says_what_the_families_say() -> None:
    loaded = list(every_family())
    assert loaded == [KONTEXT, KLEIN]
    assert tuple(family.pipeline for family in loaded) == PIPELINES
    assert tuple(family.example for family in loaded) == EXAMPLES
    for entry, family in zip(families._ENTRIES, loaded, strict=True):
        assert family.transformer.__name__ == entry.transformer


def test_families_are_found_by_the_names_in_a_bases_files() -> None:
    assert named("FluxKontextPipeline") is KONTEXT
    assert named("Flux2KleinPipeline") is KLEIN
    assert named("StableDiffusionPipeline") is None
    assert named(["FluxKontextPipeline"]) is None
    assert family_of_config({}) is KONTEXT
    assert family_of_config({"_class_name": "Flux2Transformer2DModel"}) is KLEIN


def test_a_transformer_is_found_inside_wrappers_and_as_a_subclass(tiny_base) -> None:
    transformer = load_skeleton(str(tiny_base))
    assert find_transformer(nn.ModuleList([nn.Linear(2, 2), transformer])) == (transformer, KONTEXT)
    transformer.__class__ = type("Patched", (type(transformer),), {})  # as FSDP2 does
    assert find_transformer(transformer) == (transformer, KONTEXT)


def test_another_class_of_the_same_name_is_no_transformer() -> None:
    stranger = type("FluxTransformer2DModel", (nn.Module,), {})()
    with pytest.raises(ValueError, match="there is no FluxTransformer2DModel or Flux2Transformer2"):
        find_transformer(stranger)


def test_noise_keeps_its_values_in_every_family() -> None:
    noise = torch.randn(1, 4, 6, 8)
    for family in every_family():
        arranged = family.arranged(noise)
        assert arranged.shape == noise.shape
        assert torch.equal(arranged.flatten().sort().values, noise.flatten().sort().values)
