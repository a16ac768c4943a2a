"""Several objects of one image, each in its own style, in one edit.

    python bench/two_styles.py                                  # the experts that ship with nano
    python bench/two_styles.py --experts out/study/with/experts --objects 3

Test scenes of distinct objects with exact targets. Rivals in the same run: two edits one after the
other (routed and plain), one plain edit of the whole sentence with averaged experts, and the same
routing with the true masks instead of the maps. An object is "nearer" if it is closer to its own
style's target than to itself in the next object's style, and "right" if also its residual error is
below 50 %. The result goes to bench/results/two_styles.json, images to the folder of --pictures.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from _shared import add_result_argument, provenance
from torch import Tensor
from tqdm import tqdm

from pseudo_labels.scenes.draw import HELD_OUT_SEEDS, render_scene
from pseudo_labels.stylize.filters import FILTERS
from regionroute.adapters import FixedRouter, RouteContext
from regionroute.adapters import routed as routed_by
from regionroute.data.images import write_image
from regionroute.data.prompts import build_prompt
from regionroute.data.stats import describe
from regionroute.diffusion.flow import draw_noise, sample
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.files import write_json
from regionroute.pipeline import RegionRoutePipeline

Method = Callable[[Editor, "Case"], Tensor]


class Case(NamedTuple):
    """A scene [3,H,W], its objects, one style and one mask [1,H,W] for each."""

    image: Tensor
    words: list[str]
    styles: list[str]
    masks: list[Tensor]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(object, style), in the order of the objects."""
        return list(zip(self.words, self.styles, strict=True))

    def target(self, shift: int = 0) -> Tensor:
        """The exact result; with a shift each object in another one's style."""
        out = self.image
        for i, mask in enumerate(self.masks):
            style = self.styles[(i + shift) % len(self.styles)]
            out = torch.where(mask > 0.5, FILTERS[style](self.image), out)
        return out


def routed(editor: Editor, case: Case, regions: tuple[Tensor, ...] = ()) -> Tensor:
    """All objects in one edit."""
    (word, style), *also = case.pairs
    request = EditRequest(word, style, also=tuple(also), regions=regions)
    return editor.edit(case.image, request, EditOptions(mode="routed")).image


def oracle(editor: Editor, case: Case) -> Tensor:
    """The true masks instead of the maps."""
    return routed(editor, case, regions=tuple(mask[0] for mask in case.masks))


def one_by_one(editor: Editor, case: Case, mode: str) -> Tensor:
    """One edit after the other."""
    image = case.image
    for word, style in case.pairs:
        image = editor.edit(image, EditRequest(word, style), EditOptions(mode=mode)).image
    return image


@torch.no_grad()
def averaged(editor: Editor, case: Case) -> Tensor:
    """The whole sentence in one plain edit, all the styles' experts averaged."""
    base, registry = editor.backbone, editor.registry
    assert registry is not None
    weights = torch.zeros(len(registry.experts))
    weights[[registry.index(style) for style in case.styles]] = 1 / len(case.styles)
    context = base.encode_images(case.image[None])
    embeds, pooled = base.encode_prompts([build_prompt(case.pairs).text])
    with routed_by(base.transformer, RouteContext(router=FixedRouter(weights))):
        latents = sample(
            base.transformer, base.scheduler, context, embeds, pooled,
            steps=base.settings.steps, guidance=base.settings.guidance,
            noise=draw_noise(context.shape, 0),
        )  # fmt: skip
    return base.decode_latents(latents)[0]


METHODS: dict[str, Method] = {
    "routed, one edit": routed,
    "routed, one after the other": partial(one_by_one, mode="routed"),
    "plain, one after the other": partial(one_by_one, mode="plain"),
    "plain, one sentence, averaged experts": averaged,
    "routed by the true masks": oracle,
}


def main() -> int:
    """Edit the scenes by every method and write the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="nano")
    parser.add_argument("--experts", default="auto", help="default: those of the base")
    parser.add_argument("--objects", type=int, choices=(2, 3), default=2)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument(
        "--pictures", type=Path, help="folder for images of scene, target and edits"
    )
    add_result_argument(parser, "two_styles")
    args = parser.parse_args()
    editor = RegionRoutePipeline.from_pretrained(args.base, experts=args.experts).editor
    styles = [style.name for style in editor.registry.styles] if editor.registry else []
    cases = make_cases(args.objects, args.scenes, styles)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for number, case in enumerate(tqdm(cases, desc="editing", unit="scene")):
        shown = [case.image, case.target()]
        for name, method in METHODS.items():
            edited = method(editor, case)
            rows[name].append(scores(case, edited))
            shown.append(edited)
        if args.pictures:
            write_image(args.pictures / f"{number:03}.png", torch.cat(shown, dim=2))
    table = {name: summary(values) for name, values in rows.items()}
    for name, values in table.items():
        line = ", ".join(f"{key} {value[0]:.3f}" for key, value in values.items())
        print(f"{name:38} {line}")
    write_json(
        args.result,
        provenance() | {"objects": args.objects, "scenes": len(cases), "methods": table},
    )
    print(f"{args.result} written")
    return 0


def make_cases(objects: int, scenes: int, styles: list[str]) -> list[Case]:
    """Test scenes whose objects are all of different kinds, in styles drawn by the seed."""
    cases = []
    for seed in HELD_OUT_SEEDS:
        scene = render_scene(seed, count=objects)
        words = scene.words()
        if len(words) != objects or len(scene.objects) != objects:
            continue
        order = torch.randperm(len(styles), generator=torch.Generator().manual_seed(seed))
        chosen = [styles[i] for i in order[:objects].tolist()]
        cases.append(Case(scene.image, words, chosen, [scene.mask(word) for word in words]))
        if len(cases) == scenes:
            break
    return cases


def scores(case: Case, edited: Tensor) -> dict[str, float]:
    """Measure of one edit; errors in [-1,1]."""
    own, swapped = case.target(), case.target(shift=1)
    nearer, right, left = [], [], []
    for mask in case.masks:
        error = masked_error(edited, own, mask)
        ratio = error / masked_error(case.image, own, mask)
        nearer.append(error < masked_error(edited, swapped, mask))
        right.append(nearer[-1] and ratio < 0.5)
        left.append(ratio)
    outside = 1 - torch.stack(case.masks).amax(0)
    return {
        "all nearer": float(all(nearer)),
        "all right": float(all(right)),
        "error left": sum(left) / len(left),
        "background error": masked_error(edited, case.image, outside),
    }


def masked_error(a: Tensor, b: Tensor, mask: Tensor) -> float:
    """Mean squared error in [-1,1] of [3,H,W] images inside a mask [1,H,W]."""
    return (((2 * (a - b)).square() * mask).sum() / (3 * mask.sum()).clamp(min=1)).item()


def summary(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Measure -> mean, low and high of its 95 % interval."""
    result = {}
    for key in rows[0]:
        interval = describe([row[key] for row in rows])
        result[key] = [interval.mean, interval.low, interval.high]
    return result


if __name__ == "__main__":
    raise SystemExit(main())
