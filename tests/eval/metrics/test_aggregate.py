"""The optional single number: good only where style and background are, never shown alone."""

import math

import pytest
import torch

from eval.batches import make_batch
from eval.edits import Edit
from eval.encoders.networks import Networks
from eval.metrics.aggregate import rse_aggregate
from eval.metrics.build import build_metrics
from eval.metrics.catalogue import AGGREGATE, CATALOGUE, COMPONENTS
from eval.metrics.choice import choose_metrics
from eval.sources import load_source
from regionroute.data.manifest import load_manifest


def of(rsm, lpips_bg, source=0.5, target=0.7):
    values = [torch.tensor([x]) for x in (rsm, source, target, lpips_bg)]
    return rse_aggregate(*values).item()


def test_an_edit_has_to_be_good_in_both():
    assert of(0.5, 0.0) == 0  # the unedited image
    assert of(0.7, 0.0) == 1  # the target
    assert of(0.7, 1.0) == 0  # a global restyle
    assert of(0.6, 0.36) == pytest.approx(math.sqrt(0.5 * 0.64))
    assert of(0.6, 0.3) < of(0.65, 0.3)
    assert of(0.6, 0.3) > of(0.6, 0.4)


def test_it_stays_in_range_and_is_undefined_without_a_scale():
    assert of(0.9, 0.0) == 1
    assert of(0.4, 0.0) == 0
    assert of(0.7, 3.0) == 0
    assert math.isnan(of(0.6, 0.0, source=0.7, target=0.7))
    assert math.isnan(of(0.6, 0.0, source=0.8, target=0.7))
    assert math.isnan(of(0.6, float("nan")))


def test_it_is_never_chosen_alone_nor_by_default():
    assert AGGREGATE not in choose_metrics("rse")
    for text in (AGGREGATE, "aggregate", f"leak,{AGGREGATE}"):
        assert {AGGREGATE, *COMPONENTS} <= set(choose_metrics(text))
    for text in ("misses", "both components"):
        assert text in CATALOGUE[AGGREGATE].short


class Distance:
    """Mean absolute difference in place of LPIPS."""

    def spatial_map(self, a, b):
        return (a - b).abs().mean(1, keepdim=True)

    def identity(self):
        return {"encoder": "distance", "weights": "none"}


def test_it_is_computed_from_the_components_that_are_shown(tiny_manifest, stub_encoder):
    manifest = load_manifest(tiny_manifest)
    sources = [load_source(manifest, n, sample) for n, sample in enumerate(manifest.samples)]
    styles = {region.style for sample in manifest.samples for region in sample.regions}
    words = styles | {
        sample.prompt[slice(*region.style_span)]
        for sample in manifest.samples for region in sample.regions if region.style_span
    }  # fmt: skip
    clip = stub_encoder({f"{word} style": [0.1, 0.9, 0.2] for word in words})
    metrics = build_metrics(Networks(clip=clip, lpips=Distance()), choose_metrics(AGGREGATE))
    found = {}
    for method in ("content", "half", "target"):
        images = [
            {"content": s.content, "target": s.target, "half": (s.content + s.target) / 2}[method]
            for s in sources
        ]
        edits = [Edit(image) for image in images]
        batch = make_batch(sources, edits, method=method)
        found[method] = {metric.name: metric(batch) for metric in metrics}
    scale = found["target"]["rsm"] - found["content"]["rsm"]
    defined = scale > 0
    assert defined.any()
    assert (found["content"][AGGREGATE][defined] == 0).all()
    half = found["half"]
    style = ((half["rsm"] - found["content"]["rsm"]) / scale).clamp(0, 1)
    expected = (style * (1 - half["lpips_bg"])).sqrt()
    torch.testing.assert_close(half[AGGREGATE][defined], expected[defined])
    assert half[AGGREGATE][~defined].isnan().all()
