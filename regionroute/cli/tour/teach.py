"""``regionroute teach``: an expert for one's own style, from images of it or from ready pairs."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from regionroute.cli.options import add_base, add_seed, command_parser
from regionroute.cli.tour.stages import (
    Stopwatch,
    begin_run,
    check_arguments,
    locked_tour,
    override,
)
from regionroute.cli.tour.teach_checks import (
    GENERIC,
    LABELS_FILE,
    STYLE_FILE,
    check_teach,
    style_head,
)
from regionroute.errors import Parser, command
from regionroute.files import atomic_write, read_json, write_jsonl
from regionroute.folders import atomic_folder
from regionroute.models import embedded as nano

EXAMPLES = """\
examples:
  regionroute teach --style-images my_style/ --photos photos/ --name my-style
  regionroute teach --before photos/ --after painted/ --name my-style
  regionroute teach --style-images my_style/ --photos photos/ --name my-style --object dog

Give twenty photos that show one object each, better more. What the object is called: "word" in
PHOTOS/labels.jsonl (see `regionroute label --help`, which takes masks too); without that file,
--object, or the photo's name (grey_cat-02.jpg: "grey cat"; IMG_0042.jpg: "object"). Where it is:
the mask or box of labels.jsonl, or U2-Net-p finds it (looked for in ~/.u2net, else downloaded;
--grounder salient:FILE names the file). A quarter of the photos, chosen by their content, is set
aside and not trained on.

The same command again resumes where it was stopped; with other style images, photos, words, base or
seed it trains anew. The exit code is 1 if the style was not learned."""

# Names that cameras and programs give.
_MADE_UP = re.compile(
    r"img|dsc[a-z]?|pxl|mvimg|photo|image|picture|screenshot|scan|unnamed|untitled|file|copy", re.I
)
LEARNED = 0.5  # success on held-out objects from which on a style counts as learned
ALL_LAYERS = ("experts.targets=all",)
# Large steps in few minutes; see docs/tutorials/teach.md.
ONE_STEP = (
    "train.global_batch=4",
    "train.validation_levels=[1.0]",
    "optim.lr=0.004",
    "experts.rank=32",
    "experts.alpha=32",
    "experts.shared_rank=0",
    "experts.dtype=float16",  # those that ship are float8, for their size
)
IMAGES = 240  # to train and test on, about; those that photos lack are crops of them
ROUNDS = 8  # validations and previews of a run
PATIENCE = 3  # validations without a better one


class Recipe(NamedTuple):
    """How experts are trained on a base.

    Attributes:
        config: configuration of `regionroute train`.
        settings: in addition.
        steps: training steps.
        size: longest side of the training images in pixels.
        dtype: precision of edits.
    """

    config: str
    settings: tuple[str, ...]
    steps: int
    size: int
    dtype: str


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "teach",
        "Teach a base your own style: label photos in it, train an expert that paints it, and "
        "test the expert on photos set aside. Takes minutes on two CPU cores with the default "
        "base.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("--name", required=True, metavar="NAME", help="name of the style, as edits will use it")
    add("--style-images", type=Path, metavar="DIR", help="images of the style, one or more")
    add("--photos", type=Path, metavar="DIR", help="photos that are restyled to train on")
    add("--before", type=Path, metavar="DIR", help="photos, in place of --photos")
    add("--after", type=Path, metavar="DIR", help="the same photos in the style, names equal")
    add("--object", metavar="WORD", help="what all photos show, if they have no labels.jsonl")
    add("--phrase", metavar="WORDS", help="words for the style in prompts (the name)")
    finder = "finds objects without mask and box: salient[:FILE], yolox:FILE or a hub id (salient)"
    add("--grounder", default="salient", metavar="NAME", help=finder)
    add_base(parser, nano.USUAL)
    add("--steps", type=int, metavar="N", help="training steps (by the base)")
    add_seed(parser, "experts and noise")
    add("--out", metavar="DIR", help="folder for everything (out/teach/NAME)")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0 if the expert learned the style, 1 if it did not.

    Raises:
        UserError: wrong arguments or files, or a stage failed.
    """
    args = parser().parse_args(argv)
    if args.out is None:
        args.out = f"out/teach/{args.name}"
    check_arguments(args, {"steps": 1, "seed": 0})
    args.out = Path(args.out)
    count = check_teach(args)
    recipe, watch, began = recipe_of(args.base), Stopwatch(), time.perf_counter()
    with locked_tour(args.out):
        _label(watch, args, count, recipe)
        _train(watch, args, recipe)
        _test(watch, args, recipe)
    minutes = (time.perf_counter() - began) / 60
    print(f"report: {args.out / 'report.html'}   ({minutes:.1f} minutes)")
    return _verdict(args)


def recipe_of(base: str) -> Recipe:
    """How a base is taught.

    Raises:
        UserError: no such base.
    """
    from regionroute.models.source import (
        default_settings,
        family_in,
        read_index,
        read_settings,
        resolve,
    )

    source = resolve(base)
    index = read_index(base, source)
    settings = read_settings(source) if isinstance(source, Path) else default_settings(index)
    size = settings.resolution * 5 // 4
    if base == nano.SCENES:
        return Recipe("nano", ALL_LAYERS, 300, size, "float32")
    if settings.steps == 1:
        return Recipe("nano_photos", ONE_STEP + _mean_of_bundled(base), 240, size, "float32")
    config = {"Flux2KleinPipeline": "klein"}.get(family_in(index).pipeline, "kontext")
    return Recipe(config, ALL_LAYERS, 1500, size, "bfloat16")


def _mean_of_bundled(base: str) -> tuple[str, ...]:
    """Settings that start from what the experts that come with the base have in common."""
    from regionroute.adapters import read_registry
    from regionroute.models.bundled import EXPERTS_FOLDER, find_bundled_experts

    folder = find_bundled_experts(base)
    if folder is None or (registry := read_registry(folder)).learned:
        return ()
    return (
        override("experts.init_from", f"{base}/{EXPERTS_FOLDER}"),
        "experts.init_with=mean",
        f"experts.targets={json.dumps(registry.targets)}",
    )


def _label(watch: Stopwatch, args: argparse.Namespace, count: int, recipe: Recipe) -> None:
    """The photos in the style, whole and object by object."""
    photos, stylizer, key, folder = (args.photos, "painting", "reference", args.style_images)
    if args.after:
        photos, stylizer, key, folder = (args.before, "pairs", "after", args.after)
    style, place = args.out / STYLE_FILE, _quoted(str(folder.resolve()))
    with atomic_write(style) as temporary:
        temporary.write_text(
            f'{style_head(args.name)}styles:\n  "{args.name}":\n'
            f"    phrase: {_quoted(args.phrase or args.name)}\n"
            f"    stylizer: {stylizer}\n    settings: {{{key}: {place}}}\n",
            encoding="utf-8",
        )
    labels = photos / LABELS_FILE
    if not labels.is_file():
        labels = args.out / LABELS_FILE
        write_jsonl(labels, label_rows(photos, args.object))
    how = ["--labels", str(labels), "--images", str(photos), "--styles", str(style)]
    how += ["--grounder", args.grounder, "--segmenter", "grabcut", "--whole"]
    how += ["--size", str(recipe.size), "--test-share", "0.25"]
    if args.photos:
        how += ["--crops", str(IMAGES // count)]
    # The photos were chosen by hand, and so was the style.
    how += ["--max-area", "0.9", "--max-border", "1", "--min-structure", "-1"]
    watch.run("labels", ["label", *how, "--out", str(args.out / "pairs")])


def _quoted(text: str) -> str:
    """A text in YAML; JSON's escapes of characters beyond 16 bits are none of YAML's."""
    return json.dumps(text, ensure_ascii=False)


def label_rows(photos: Path, word: str | None) -> list[dict[str, object]]:
    """Rows of a labels file that name the object of each photo.

    Args:
        photos: their folder.
        word: of all photos; None: by their names, see `object_word`.
    """
    from pseudo_labels.segment.folder import list_photos

    found, _ = list_photos(photos, [GENERIC])
    return [
        {"image": photo.name, "objects": [{"word": word or object_word(Path(photo.name).stem)}]}
        for photo in found
    ]


def object_word(stem: str) -> str:
    """The object's word by a photo's name: "grey_cat-02" is a grey cat, "IMG_0042" an object."""
    words = re.sub(r"[\W\d_]+", " ", stem).lower().split()
    real = [word for word in words if len(word) > 2 and not _MADE_UP.fullmatch(word)]
    return " ".join(real[:3]) or GENERIC


def _train(watch: Stopwatch, args: argparse.Namespace, recipe: Recipe) -> None:
    """Trains, and copies the experts of the best validation to ``out/experts``."""
    steps = args.steps or recipe.steps
    every, run = max(1, steps // ROUNDS), args.out / "run"
    begin_run(
        run, args.out / "pairs", base=args.base, seed=args.seed, settings=list(recipe.settings)
    )
    settings = [
        override("base.name", args.base), override("data.manifest", args.out / "pairs"),
        override("output", run),
        f"seed={args.seed}", f"train.steps={steps}", "experts.styles=null",
        # From whole photos, and under the prompt that edits use.
        "data.whole_targets=true", "flow.mask_weight=1.0",
        "routing.prompt=object", "routing.branch=expert", *recipe.settings,
        f"train.validate_every={every}", f"train.patience={PATIENCE}",
        f"train.preview_every={every}", f"train.save_every={every}",
    ]  # fmt: skip
    print(f"previews while it trains: {run / 'previews'}")
    watch.run("training", ["train", "--config", recipe.config, *settings])
    best = read_json(run / "run.json")["best_step"]
    print(f"best of {steps} steps on the photos set aside: step {best}")
    with atomic_folder(args.out / "experts") as made:
        shutil.copytree(run / "checkpoints" / f"step-{best:06d}" / "experts", made)


def _test(watch: Stopwatch, args: argparse.Namespace, recipe: Recipe) -> None:
    """Edits and scores the photos set aside; report and model card."""
    out, experts = args.out, str(args.out / "experts")
    held_out = ["--manifest", str(out / "pairs"), "--split", "test"]
    how = ["--experts", experts, "--dtype", recipe.dtype, "--seed", str(args.seed)]
    how += ["--out-dir", str(out / "edits")]
    watch.run("edits of photos set aside", ["edit", *held_out, *how])
    scored = ["--edits", f"{args.name}={out / 'edits'}", "--out", str(out / "scores")]
    watch.run("scores", ["score", *held_out, *scored])
    watch.report(out, f"The style {args.name} on photos that it was not trained on")
    scores = ["--scores", str(out / "scores" / "summary.json"), "--method", args.name]
    watch.run("model card", ["experts", "card", experts, *scores])


def _verdict(args: argparse.Namespace) -> int:
    """Says whether the style was learned; 0 if it was."""
    summary = read_json(args.out / "scores" / "summary.json")
    scores = summary["methods"][args.name]["slices"]["all"]
    left, success = scores["in_mask_ratio"], scores["success"]["mean"]
    # Not by the mean: one photo that was like its target before has any multiple left.
    found = (
        f"on {left['n']} photos set aside {success:.0%} of the edits leave less than half of the "
        f"difference between photo and target on the object (on average {left['mean']:.0%} is left)"
    )
    if success >= LEARNED:
        print(f"learned: {found}\nexpert: {args.out / 'experts'}; use it:")
        print(
            f"  regionroute edit PHOTO --object WORD --style {args.name} --experts "
            f"{args.out / 'experts'} --out edit.png"
        )
        return 0
    print(
        f"NOT learned: {found}; learned: at least {LEARNED:.0%} of them. "
        f"Compare targets and edits in the report: more photos of one clear object, style images "
        "of one look, or more --steps help"
    )
    return 1
