r"""Does the named object of a real photo get restyled, and does the rest stay as it was?

    regionroute label --labels PHOTOS/labels.jsonl --styles small_experts --styles-per-photo 1 \
        --whole --size 160 --test-share 0.1 --out data/photo_pairs
    python bench/photos.py --manifest data/photo_pairs --weights alexnet_features.safetensors \
        flow.perceptual.network=vgg16_features.safetensors

Two arms, trained for equal steps, per seed with their own experts and sample order: with Focus and
Cover, and without. Test photos are the split "test", which the base has not seen either. Edits run
at the model's own size: plain (as in the paper), routed by the map, and routed by the true mask.

Who paints: the experts, under the prompt that names the object, so that one model call gives the
map and the edit (configs/nano_photos.yaml). They were trained on wholly restyled photos, so plain
edits restyle the whole image. Rows "base paints, ..." and "image prompt" show the alternatives.
They need no training with finished experts:

    python bench/photos.py --manifest data/photo_pairs --weights alexnet_features.safetensors \
        --experts regionroute/models/nano_photos/experts --pairs 64 \
        --result bench/results/photos_who_paints.json

Metrics: leak (share of visibly changed pixels outside the mask dilated by 3 % of the shorter side),
coverage (share of visibly changed pixels inside it), LPIPS of the background before it is locked,
LPIPS to the target inside the mask relative to that of the unedited photo, IoU of the region map
with the mask. The result goes to bench/results/photos.json, contact sheets go next to the runs.
"""

import argparse
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from _photo_pairs import MEASURES, Case, difference, grid, held_out, lpips_weights, measures
from _shared import add_result_argument, provenance, run_python
from torch import Tensor
from tqdm import tqdm

from eval.encoders.features import PerceptualDistance, load_lpips
from regionroute.config.choices import Mode
from regionroute.data.images import write_image
from regionroute.data.stats import describe
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.files import write_json
from regionroute.pipeline import RegionRoutePipeline

ROOT = Path(__file__).resolve().parents[1]
ARMS = {"with": (), "without": ("supervision.focus=0", "supervision.cover=0")}
TRUE_MASK = "routed by the true mask"  # how well it paints, whatever it finds
REFERENCE = "routed, with"
UNKNOWN = {"risograph", "blueprint", "ink-drawing", "pop-art"}  # to nano-photos
LEAST_OF_A_WORD = 9  # edits, for a line of its own


class Method(NamedTuple):
    """One row of the table.

    Attributes:
        arm: whose experts; None: the base without experts.
        mode: plain or routed.
        routing: changes to the routing settings that are stored with the experts.
        true_mask: the true mask replaces the model's map.
    """

    arm: str | None
    mode: Mode
    routing: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default, never changed)
    true_mask: bool = False


BASE_PAINTS = {"branch": "base", "prompt": "image"}
METHODS = {
    REFERENCE: Method("with", "routed"),
    "routed, without": Method("without", "routed"),
    "plain, with": Method("with", "plain"),
    "plain, without": Method("without", "plain"),
    TRUE_MASK: Method("with", "routed", true_mask=True),
    "base, plain": Method(None, "plain"),
    "base paints, routed": Method("with", "routed", BASE_PAINTS),
    "base paints, true mask": Method("with", "routed", BASE_PAINTS, true_mask=True),
    "routed, image prompt": Method("with", "routed", {"prompt": "image"}),
    "true mask, image prompt": Method("with", "routed", {"prompt": "image"}, true_mask=True),
}


def main() -> int:
    """Train what is missing, edit, write the comparison."""
    parser = _parser()
    args = parser.parse_args()
    arms = {None, "with"} if args.experts else {None, *ARMS}
    possible = [name for name, how in METHODS.items() if how.arm in arms]
    methods = {name: METHODS[name] for name in args.rows or possible}
    impossible = [name for name in methods if name not in possible]
    if impossible:
        parser.error(f"--rows {impossible[0]!r} needs experts of its own: leave out --experts")
    for path in args.experts or ():
        if not (path / "experts.json").is_file():
            parser.error(f"--experts {path}: has no experts.json, give a folder of experts")
    distance = load_lpips(lpips_weights(args.weights), "cpu")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    finished = [
        (args.out / f"experts-{number}", {"with": path})
        for number, path in enumerate(args.experts or ())
    ]
    needed = {"with"} | {how.arm for how in methods.values() if how.arm}
    runs = finished or [_trained(args, seed, needed) for seed in args.seeds]
    for run, (folder, experts) in enumerate(runs):
        with_experts = RegionRoutePipeline.from_pretrained(
            args.base, experts=experts["with"]
        ).editor
        cases = held_out(args.manifest, with_experts, args.pairs)
        for name, how in methods.items():
            scored, images = score(_editor(args.base, how, experts), cases, how, distance, name)
            rows[name] += [row | {"run": run} for row in scored]
            write_image(folder / f"{name.replace(', ', '-').replace(' ', '-')}.png",
                        grid(cases, images))  # fmt: skip
    reference = next(iter(methods))
    result = provenance() | {
        "base": args.base,
        **(
            {"experts": [str(path) for path in args.experts]}
            if args.experts
            else {"steps": args.steps, "seeds": args.seeds}
        ),
        "pairs": len(rows[reference]),
        "methods": {name: summary(scored) for name, scored in rows.items()},
        f"{reference}, minus": {
            name: difference(rows[reference], scored)
            for name, scored in rows.items()
            if name != reference
        },
    }
    write_json(args.result, result)
    show(result)
    return 0


def _editor(base: str, how: Method, experts: Mapping[str, Path]) -> Editor:
    """The editor of one row, with its changes to the stored routing settings."""
    own = None if how.arm is None else experts[how.arm]
    editor = RegionRoutePipeline.from_pretrained(base, experts=own).editor
    editor.routing = editor.routing.model_copy(update=how.routing)
    return editor


def score(
    editor: Editor,
    cases: list[Case],
    how: Method,
    distance: PerceptualDistance,
    label: str,
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Metrics of every case, and the edited images as a user gets them."""
    rows, images = [], []
    for case in tqdm(cases, desc=label, unit="edit"):
        regions = (case.mask[0],) if how.true_mask else ()
        style = case.style if editor.registry else case.style_words  # the base alone reads words
        request = EditRequest(case.word, style, regions=regions)
        options = EditOptions(mode=how.mode, lock_background=False)
        [bare] = editor.edit_batch([case.image], [request], options, want_map=True)
        locked = bare
        if how.mode == "routed":
            [locked] = editor.edit_batch([case.image], [request], EditOptions(mode=how.mode))
        images.append(locked.image)
        rows.append(measures(case, bare.image, locked.image, bare.region_map, distance))
    return rows, images


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals: over all, by object size, neighbours, style, run (seed) and word."""
    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    words = Counter(row["word"] for row in rows)
    runs = sorted({row["run"] for row in rows})
    groups = (
        {
            "all": rows,
            "small": [row for row in rows if row["area"] < 0.1],
            "large": [row for row in rows if row["area"] >= 0.3],
            "touching another": [row for row in rows if "touching" in row["flags"]],
            "several of a kind": [row for row in rows if "several" in row["flags"]],
        }
        | {
            "styles the base knows": [row for row in rows if row["style"] not in UNKNOWN],
            "styles it does not": [row for row in rows if row["style"] in UNKNOWN],
        }
        | {
            f"style: {style}": [row for row in rows if row["style"] == style]
            for style in sorted({row["style"] for row in rows})
        }
        | {
            f"run: {run}": [row for row in rows if row["run"] == run]
            for run in runs
            if len(runs) > 1
        }
        | {
            f"word: {word}": [row for row in rows if row["word"] == word]
            for word, count in sorted(words.items())
            if count >= LEAST_OF_A_WORD
        }
    )
    return {
        group: {name: describe([row[name] for row in some]) for name in names} | {"n": len(some)}
        for group, some in groups.items()
        if some
    }


def show(result: dict[str, Any]) -> None:
    """Print the means as a table."""
    width = max(map(len, result["methods"]))
    print("  ".join(["".ljust(width), *MEASURES]))
    for method, groups in result["methods"].items():
        values = (f"{groups['all'][name].mean:.3f}".rjust(len(name)) for name in MEASURES)
        print("  ".join([method.ljust(width), *values]))


def _trained(
    args: argparse.Namespace, seed: int, arms: Collection[str]
) -> tuple[Path, dict[str, Path]]:
    """The folder of a seed and the experts of its arms, trained where they are missing."""
    folder = args.out / f"seed-{seed}"
    experts = {arm: folder / arm / "experts" for arm in ARMS if arm in arms}
    for arm, path in experts.items():
        if not (path / "experts.json").exists():
            run_python(ROOT / "train/run.py", "--config", ROOT / "configs/nano_photos.yaml",
                       f"base.name={args.base}", f"data.manifest={args.manifest}",
                       f"data.cache={args.out / 'cache'}", f"output={folder / arm}",
                       f"seed={seed}", f"train.steps={args.steps}", *args.overrides,
                       *ARMS[arm])  # fmt: skip
    return folder, experts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE settings for both arms")
    parser.add_argument("--manifest", type=Path, required=True, help="photo pairs")
    parser.add_argument("--weights", help="AlexNet weights for LPIPS")
    parser.add_argument("--base", default="nano-photos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--experts", type=Path, nargs="+",
        help="finished experts, of one or more seeds: no training, their rows only",
    )  # fmt: skip
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=METHODS,
        metavar="ROW",
        help=f"only these: {', '.join(map(repr, METHODS))}",
    )
    parser.add_argument("--steps", type=int, default=150, help="training steps")
    parser.add_argument("--pairs", type=int, default=150, help="test pairs to edit")
    parser.add_argument("--out", type=Path, default=Path("out/photos"), help="output folder")
    add_result_argument(parser, "photos")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
