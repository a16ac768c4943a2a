r"""A mixture of experts routed by an example image, against one LoRA per style, on photos.

Data, encoder and both trainings: docs/howto/bases.md, "Experts by example". Then:

    python bench/moe_photos.py --pairs out/moe --moe MIXTURE MIXTURE_OF_SEED_1 ... \
        --rival LORAS LORAS_OF_SEED_1 ... \
        --artworks STYLE_IMAGES --weights alexnet_features.safetensors

Both start from the same experts by name and were trained for the same number of steps. With several
seeds of both, an edit's numbers are the means over them; sheets show the first. Photos are those of
the split "test", inside the true mask, edited at the model's own size. Styles, by group:

- named: 14 styles of `small_experts`, in which both were trained.
- more: those in which only the mixture was trained.
- unseen paintings: six in which neither was; the example is another photo, painted.
- unseen artworks: the example is an artwork; the target is what an arbitrary-style network makes
  of the photo with it.

The mixture takes the style from the example alone. The LoRA is that of the style's name; for a
style without one that of the style whose mean embedding is nearest to the example's.
"""

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from _moe_cases import Shown, cases
from _photo_pairs import grid, lpips_weights, measures
from _shared import add_result_argument, provenance
from torch import Tensor
from tqdm import tqdm

from eval.encoders.features import PerceptualDistance, load_lpips
from regionroute.adapters import adapter_parameters
from regionroute.adapters.files.style_embeddings import StyleEmbeddings
from regionroute.data.images import write_image
from regionroute.data.region_scores import masked_mean
from regionroute.data.stats import describe, paired
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.errors import UserError
from regionroute.files import write_json
from regionroute.pipeline import RegionRoutePipeline

BLENDS = 10
MEASURES = ("lpips_ratio", "in_mask_ratio", "success")
ROUTED = EditOptions(mode="routed")


def main() -> int:
    """Edit, score and write the comparison."""
    args = _parser().parse_args()
    distance = load_lpips(lpips_weights(args.weights), "cpu")
    if len(args.moe) != len(args.rival):
        raise UserError("--moe and --rival: give as many folders, one for each seed")
    moes, rivals = (
        [RegionRoutePipeline.from_pretrained("nano-photos", experts=x).editor for x in folders]
        for folders in (args.moe, args.rival)
    )
    moe, rival = moes[0], rivals[0]
    shown = cases(args.pairs, moe, args.artworks, args.photos)
    arms = {
        "mixture": (moes, lambda one: EditRequest(one.case.word, "", style_images=(one.example,))),
        "mixture, by name": (moes, lambda one: by_name(one)),
        "one LoRA per style": (
            rivals,
            lambda one: EditRequest(one.case.word, nearest(moe, rival, one)),
        ),
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    seconds, seeds = {}, {}
    for name, (editors, request) in arms.items():
        some = [one for one in shown if request(one) is not None]
        each = [score(editor, some, request, distance, name) for editor in editors]
        _, images, seconds[name] = each[0]
        rows[name] = mean_rows([found for found, _, _ in each])
        seeds[name] = means_of_seeds([found for found, _, _ in each])
        for group in dict.fromkeys(one.group for one in some):
            places = [i for i, one in enumerate(some) if one.group == group]
            sheet = grid([some[i].case for i in places], [images[i] for i in places])
            write_image(args.out / f"{name} {group}.png".replace(",", "").replace(" ", "-"), sheet)
    both = {"mixture": moes, "one LoRA per style": rivals}
    result = provenance() | {
        "steps": moe.registry.extra["steps"],
        "seeds": len(moes),
        "megabytes": dict(zip(both, map(_megabytes, (args.moe[0], args.rival[0])), strict=True)),
        "parameters": {name: _parameters(editors[0]) for name, editors in both.items()},
        "styles": len(moe.styles.embeddings.by_name),
        "encoder": _encoder_scores(shown, moe),
        "seconds_per_edit": seconds,
        "groups": {name: by_group(some) for name, some in rows.items()},
        "means of each seed": seeds,
        "mixture minus one LoRA": {
            group: {
                name: paired(
                    [row[name] for row in rows["mixture"] if row["group"] == group],
                    [row[name] for row in rows["one LoRA per style"] if row["group"] == group],
                    higher_is_better=name == "success",
                )
                for name in MEASURES
            }
            for group in dict.fromkeys(one.group for one in shown)
        },
        "routed": {
            name: routed(editors, shown, arms[name][1], distance) for name, editors in both.items()
        },
        "blends": {name: blends(editors, shown, distance) for name, editors in both.items()},
    }
    write_json(args.result, result)
    show(result)
    return 0


def by_name(one: Shown) -> EditRequest | None:
    """The style by the mean embedding of its training images; None for an unseen one."""
    if one.group.startswith("unseen"):
        return None
    return EditRequest(one.case.word, one.case.style)


def nearest(moe: Editor, rival: Editor, one: Shown) -> str:
    """The style's name if it has a LoRA; else, by the encoder, the nearest style that has one."""
    assert rival.registry is not None
    names = [entry.style for entry in rival.registry.experts]
    if one.case.style in names:
        return one.case.style
    embedding = moe.styles.encoder.embed(one.example).cpu()
    known = moe.styles.embeddings.by_name
    return StyleEmbeddings({name: known[name] for name in names}).nearest(embedding)[0]


def score(
    editor: Editor, shown: list[Shown], request: Any, distance: PerceptualDistance, label: str
) -> tuple[list[dict[str, Any]], list[Tensor], float]:
    """Metrics of every case inside its true mask, the edits, and the median seconds of one."""
    rows, images, times = [], [], []
    for one in tqdm(shown, desc=label, unit="edit"):
        wanted = replace(request(one), regions=(one.case.mask[0],))
        start = time.perf_counter()
        [edit] = editor.edit_batch([one.case.image], [wanted], ROUTED, want_map=True)
        times.append(time.perf_counter() - start)
        images.append(edit.image)
        row = measures(one.case, edit.image, edit.image, edit.region_map, distance)
        rows.append(row | {"group": one.group})
    return rows, images, sorted(times)[len(times) // 2]


def mean_rows(each: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each edit: of its numbers the means over the seeds."""
    return [
        {
            key: sum(row[key] for row in same) / len(same)
            if isinstance(value, (int, float))
            else value
            for key, value in same[0].items()
        }
        for same in zip(*each, strict=True)
    ]


def means_of_seeds(each: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """For each group and measure the mean over its edits, seed by seed."""
    return {
        group: {
            name: [
                sum(row[name] for row in rows if row["group"] == group)
                / sum(row["group"] == group for row in rows)
                for rows in each
            ]
            for name in MEASURES
        }
        for group in _names(each[0], "group")
    }


def by_group(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals of each group, and of each style."""
    groups = {group: [r for r in rows if r["group"] == group] for group in _names(rows, "group")}
    styles = {style: [r for r in rows if r["style"] == style] for style in _names(rows, "style")}
    return {
        kind: {
            name: {m: describe([row[m] for row in some]) for m in MEASURES} | {"n": len(some)}
            for name, some in parts.items()
        }
        for kind, parts in (("all", groups), ("styles", styles))
    }


def _names(rows: list[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


def routed(
    editors: list[Editor], shown: list[Shown], request: Any, distance: PerceptualDistance
) -> dict[str, Any]:
    """The named styles as a user gets them: the model finds the object."""
    named = [one for one in shown if one.group == "named"]
    each = []
    for editor in editors:
        rows = []
        for one in tqdm(named, desc="routed", unit="edit"):
            [edit] = editor.edit_batch([one.case.image], [request(one)], ROUTED, want_map=True)
            rows.append(measures(one.case, edit.image, edit.image, edit.region_map, distance))
        each.append(rows)
    names = (*MEASURES, "leak", "coverage", "map_iou")
    return {name: describe([row[name] for row in mean_rows(each)]) for name in names}


def blends(
    editors: list[Editor], shown: list[Shown], distance: PerceptualDistance
) -> dict[str, Any]:
    """As `blend_rows`, with intervals over pairs of styles."""
    rows = mean_rows([blend_rows(editor, shown, distance) for editor in editors])
    return {name: describe([row[name] for row in rows]) for name in rows[0]}


def blend_rows(
    editor: Editor, shown: list[Shown], distance: PerceptualDistance
) -> list[dict[str, float]]:
    """Is "0.5 A + 0.5 B" between A and B? Pairs of trained styles, one photo each.

    Returns:
        position: of the blend's pixels along the line from A (0) to B (1), least squares.
        between: share of blends nearer in LPIPS to both than these are to each other.
        lpips: mean LPIPS to the nearer and to the farther one, relative to that of A to B.
    """
    named = [one for one in shown if one.group == "named"]
    found = []
    for one, other in tqdm(list(itertools.pairwise(named))[:BLENDS], desc="blends"):
        a, b = one.case.style, other.case.style
        requests = [
            EditRequest(one.case.word, style, regions=(one.case.mask[0],))
            for style in (a, b, f"0.5 {a} + 0.5 {b}")
        ]
        first, second, mixed = (
            editor.edit_batch([one.case.image], [r], ROUTED)[0].image for r in requests
        )
        mask = one.case.mask[None]
        line, part = (second - first) * mask[0], (mixed - first) * mask[0]
        apart, to_first, to_second = (
            float(masked_mean(distance.spatial_map(x[None], y[None]), mask))
            for x, y in ((first, second), (first, mixed), (second, mixed))
        )
        found.append(
            {
                "position": float((line * part).sum() / line.square().sum()),
                "between": float(max(to_first, to_second) < apart),
                "nearer": min(to_first, to_second) / apart,
                "farther": max(to_first, to_second) / apart,
            }
        )
    return found


def _encoder_scores(shown: list[Shown], moe: Editor) -> dict[str, Any]:
    """How often an example of a trained style is nearest to its own style's mean, and else."""
    means, encoder = moe.styles.embeddings, moe.styles.encoder
    found = [
        (one.case.style, means.nearest(encoder.embed(one.example).cpu())[0])
        for one in shown
        if not one.group.startswith("unseen")
    ]
    return {
        "nearest_mean_of_example": describe([float(own == near) for own, near in found]),
        "taken_for_another": [pair for pair in found if pair[0] != pair[1]],
    }


def _megabytes(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.rglob("*.safetensors")) / 1e6


def _parameters(editor: Editor) -> int:
    return sum(p.numel() for p in adapter_parameters(editor.backbone.transformer))


def show(result: dict[str, Any]) -> None:
    """Print the means as a table."""
    for arm, groups in result["groups"].items():
        for group, values in groups["all"].items():
            means = "  ".join(f"{name} {values[name].mean:.3f}" for name in MEASURES)
            print(f"{arm:22} {group:18} {means}  n {values['n']}")
    print(result["blends"], result["routed"], result["megabytes"], result["seconds_per_edit"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pairs", type=Path, default=Path("out/moe"), help="folder of moe_photos_data.py")
    add("--moe", type=Path, nargs="+", required=True, help="experts routed by an example image")
    add("--rival", type=Path, nargs="+", required=True, help="experts by name, one per style")
    add("--artworks", type=Path, required=True, help="folder of twelve images (.jpg)")
    add("--weights", help="AlexNet weights for LPIPS")
    add("--photos", type=int, default=2, help="test photos per named style; one of others")
    add("--out", type=Path, default=Path("out/moe/sheets"), help="folder of contact sheets")
    add_result_argument(parser, "moe_photos")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
