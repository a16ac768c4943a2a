"""Choose the attention heads that region maps are read from, on labelled images.

Images are read at the first sampling step, where an edit starts. Half of them choose the heads, the
other half measures how good the choice is.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from regionroute.config.sites import MAP_KEY, MapChoice
from regionroute.data.images import image_size
from regionroute.data.manifest import EditSample, Manifest
from regionroute.editing.batch import sample_request
from regionroute.editing.editor import Editor
from regionroute.editing.expert_settings import supervised_choice
from regionroute.editing.head_scan import HeadScan, LabelledEdit
from regionroute.errors import UserError
from regionroute.files import read_json, write_json
from regionroute.routing.calibration import (
    Row,
    Scores,
    choose,
    comparison,
    comparison_table,
    head_table,
    spec_of,
)

REPORT_FILE = "calibration.json"
SHORTLIST = 64  # single heads that the forward selection sees
FEWEST = 4  # images


def draw_examples(
    manifest: Manifest, split: str, styles: set[str] | None, count: int, seed: int
) -> list[LabelledEdit]:
    """Draw samples of different images, the styles taking turns.

    Args:
        manifest: with masks.
        split: of it.
        styles: names that there are experts for; None: any.
        count: samples, or as many as there are images.
        seed: of the draw and of the edits' noise.

    Raises:
        UserError: not enough images.
    """
    by_image: dict[str, list[EditSample]] = {}
    for sample in manifest.samples:
        usable = sample.regions and (styles is None or sample.regions[0].style in styles)
        if sample.split == split and usable:
            by_image.setdefault(sample.context, []).append(sample)
    if len(by_image) < FEWEST:
        known = ", ".join(sorted({sample.split for sample in manifest.samples})) or "none"
        raise UserError(
            f"{manifest.root}: split {split!r} has {len(by_image)} images with masks for "
            f"these experts, at least {FEWEST} are needed (splits: {known})"
        )
    rng, taken = random.Random(seed), Counter[str]()
    examples = []
    for context in rng.sample(sorted(by_image), min(count, len(by_image))):
        of_image = by_image[context]
        rng.shuffle(of_image)
        sample = min(of_image, key=lambda one: taken[one.regions[0].style])
        taken[sample.regions[0].style] += 1
        request = replace(sample_request(sample, seed), also=())
        examples.append(LabelledEdit(sample, request, image_size(manifest.path(sample.context))))
    return examples


@dataclass(frozen=True, eq=False)
class Found:
    """What a calibration found.

    Attributes:
        choice: for the experts or the base.
        row: the choice's scores, on all images.
        others: what it is compared with.
        heads: model -> its single heads.
        chosen_on: bool [P], the images that chose.
    """

    choice: MapChoice
    row: Row
    others: list[Row]
    heads: dict[str, Scores]
    chosen_on: np.ndarray

    @property
    def compared(self) -> tuple[Row, list[Row]]:
        """The choice and the others on the images that did not choose."""
        rest = ~self.chosen_on
        return self.row.on(rest), [row.on(rest) for row in self.others]


def calibrate(scan: HeadScan, top: int) -> Found:
    """Scan all heads, choose at most `top` of them on half of the images, compare on the rest.

    Raises:
        UserError: an image, a mask or a phrase that cannot be used.
    """
    count, registry = len(scan.examples), scan.editor.registry
    on = np.arange(count) < (count + 1) // 2
    every = MapChoice(layers=every_head(scan.editor), combine="normalised", steps="first")
    bare = scan.scores(every, bare=True)
    heads = {"base alone": bare}
    own, name = bare, "all blocks, style word"
    if registry:
        own, name = scan.scores(every), "what was supervised"
        heads = {"with experts": own} | heads

    short = [spec_of(own.sites[c]) for c in own.ranking(on)[:SHORTLIST]]
    sites, maps, masks = scan.maps(every.model_copy(update={"layers": short}))
    half = slice(int(on.sum()))
    chosen = choose(maps[half], masks[half], top)
    choice = every.model_copy(update={"layers": [spec_of(sites[c]) for c in chosen]})

    before = supervised_choice(registry.extra if registry else {}, "experts")
    means = MapChoice(layers=["all@object"], queries="both", combine="normalised")
    others = [
        scan.row(name, before),
        own.row("best single head", own.ranking(on)[0]),
        bare.row("base alone, style word", bare.ranking(on, "style")[0]),
        bare.row("base alone, object word", bare.ranking(on, "object")[0]),
        scan.row("base alone, object word, all heads", means, bare=True),
        own.average("a random head"),
    ]
    return Found(choice, scan.row("the choice", choice), others, heads, on)


def every_head(editor: Editor) -> list[str]:
    """Sites of each head of every block by both words and both kinds of tokens."""
    count = editor.backbone.transformer.config.num_attention_heads
    return [
        f"all.{tokens}:{head}@{word}"
        for word in ("style", "object")
        for tokens in ("target", "context")
        for head in range(count)
    ]


def tables(found: Found) -> list[str]:
    """The result as lines of text."""
    seen, rest = int(found.chosen_on.sum()), int((~found.chosen_on).sum())
    return [
        f"IoU of map and object on {rest} images, single heads (best on {seen} others)",
        *head_table(found.heads, found.chosen_on),
        "",
        f"on these {rest} images, with 95 % intervals",
        *comparison_table(*found.compared),
    ]


def save_choice(
    found: Found,
    ids: Sequence[str],
    source: Mapping[str, Any],
    *,
    experts: Path | None = None,
    out: Path | None = None,
) -> Path:
    """Save the choice, how it was made, and the scores of all heads.

    Args:
        found: the result.
        ids: of the samples, in the scan's order.
        source: manifest, split, seed and base, for the record.
        experts: folder whose ``experts.json`` gets the choice; its scores go next to it.
        out: without experts, the JSON file for both.

    Returns:
        The file with the choice, written last.

    Raises:
        ValueError: neither or both of `experts` and `out`.
    """
    if (experts is None) == (out is None):
        raise ValueError("give either experts or out")
    compared = comparison(*found.compared)
    provenance = {
        **source,
        "pictures": len(ids),
        "iou": compared[0]["iou"],
        "share": compared[0]["share"],
        "version": version("regionroute"),
    }
    choice = found.choice.model_copy(update={"provenance": provenance}).model_dump(mode="json")
    halves = {
        name: [one for one, chose in zip(ids, found.chosen_on, strict=True) if chose == wanted]
        for name, wanted in (("choosing", True), ("reporting", False))
    }
    heads = {
        model: {
            spec_of(site): {
                "iou_choosing": round(float(scores.iou[c, found.chosen_on].mean()), 4),
                "iou": round(float(scores.iou[c, ~found.chosen_on].mean()), 4),
                "share": round(float(scores.share[c, ~found.chosen_on].mean()), 4),
            }
            for c, site in enumerate(scores.sites)
        }
        for model, scores in found.heads.items()
    }
    report = {MAP_KEY: choice, "comparison": compared, "samples": halves, "heads": heads}
    if out is not None:
        write_json(out, report)
        return out
    assert experts is not None
    write_json(experts / REPORT_FILE, report)
    file = experts / "experts.json"
    registry = read_json(file)
    registry["extra"] = registry.get("extra", {}) | {MAP_KEY: choice}
    write_json(file, registry)
    return file
