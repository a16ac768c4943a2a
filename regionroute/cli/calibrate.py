"""``regionroute calibrate``: finds the heads whose attention to the words is on the object.

Labelled pictures are read at the first sampling step, where `edit` starts. Half of them choose,
the other half tells how good the choice is.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from regionroute.errors import Parser, UserError, command

if TYPE_CHECKING:
    import numpy as np

    from regionroute.config.sites import MapChoice
    from regionroute.data.manifest import EditSample, Manifest
    from regionroute.editing.editor import Editor
    from regionroute.editing.head_scan import Example, HeadScan
    from regionroute.routing.calibration import Row, Scores

EPILOG = """\
examples:
  regionroute scenes --train 64 --test 0 --seed 7 --out data/calibration
  regionroute calibrate --experts runs/nano/experts --manifest data/calibration
  regionroute calibrate --experts runs/nano/experts --manifest data/calibration --dry-run
  regionroute calibrate --zero-shot --manifest data/calibration --out choice.json
  regionroute edit photo.png --zero-shot --map-from choice.json ...

Every head of every block is read for the style word and for the object word, asked by the noisy
target's tokens and by the context picture's. The best few whose maps complement each other are
kept in experts.json ("map"), from where `regionroute edit` takes its maps and gates; all scores
go to calibration.json beside it. Take pictures that nothing else is measured on.

Judged is the map against the mask. Routed edits open their gates by the same maps, but gates that
are too narrow cost style on the object: score the edits before and after, and remove "map" from
experts.json to go back."""

REPORT_FILE = "calibration.json"
SHORTLIST = 64  # single heads that the forward selection sees
FEWEST = 4  # pictures


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = Parser(
        prog="regionroute calibrate",
        description="Choose the attention heads that region maps are read from, on labelled "
        "pictures, and keep the choice with the experts.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--experts", type=Path, metavar="DIR", help="experts to calibrate")
    add("--zero-shot", action="store_true", help="the base alone; needs --out")
    add("--out", type=Path, metavar="JSON", help="file for the choice of a base alone")
    add("--manifest", type=Path, metavar="DIR", required=True, help="pictures with masks")
    add("--split", default="train", help="of the manifest, never test (train)")
    add("--count", type=int, default=48, help="pictures, half of them to choose on (48)")
    add("--top", type=int, default=4, help="heads at most (4)")
    add("--seed", type=int, default=0, help="of the draw of pictures and of the noise (0)")
    add("--batch-size", type=int, default=8, help="pictures of one size at a time (8)")
    add("--base", default="nano", help="embedded name, Kontext folder or hub id (nano)")
    add("--device", help="cpu, cuda, cuda:1, … (cuda where there is one)")
    add(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="of the networks (float32)",
    )  # fmt: skip
    add("--dry-run", action="store_true", help="print the tables, write nothing")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses senseless arguments before anything is loaded.

    Raises:
        UserError: the split that is measured on, numbers out of range, experts or not, no place
            for the result.
    """
    from regionroute.files import check_output_file

    if args.split == "test":
        raise UserError(
            "--split test: edits are measured on these pictures, so nothing may be chosen on them; "
            "take train, or other pictures"
        )
    if args.zero_shot == bool(args.experts):
        raise UserError("give either --experts DIR or --zero-shot")
    if args.zero_shot and not (args.out or args.dry_run):
        raise UserError("--zero-shot needs --out FILE.json for the choice, or --dry-run")
    if args.experts and args.out:
        raise UserError("--out goes with --zero-shot; with experts the choice is kept beside them")
    for name, least in (("count", FEWEST), ("top", 1), ("batch_size", 1), ("seed", 0)):
        if getattr(args, name) < least:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} {getattr(args, name)}: must be at least {least}")
    for path in [args.experts / REPORT_FILE] if args.experts else [args.out]:
        if path and not args.dry_run:
            check_output_file(path)


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0.

    Raises:
        UserError: anything the user has to mend.
    """
    args = parser().parse_args(argv)
    check_arguments(args)

    import torch
    from tqdm import tqdm

    from regionroute.adapters import read_registry
    from regionroute.data.manifest import load_manifest
    from regionroute.editing.head_scan import HeadScan
    from regionroute.models.devices import pick_device, quiet_libraries
    from regionroute.pipeline import RegionRoutePipeline

    quiet_libraries()
    styles = None
    if args.experts:
        styles = {style.name for style in read_registry(args.experts).styles}
    manifest = load_manifest(args.manifest)
    examples = draw(manifest, args.split, styles, args.count, args.seed)
    dtype, device = getattr(torch, args.dtype), pick_device(args.device)
    editor = RegionRoutePipeline.from_pretrained(
        args.base, experts=args.experts, torch_dtype=dtype, device=device
    ).editor
    passes = 6 if args.experts else 5
    with tqdm(total=passes * len(examples), desc="calibrate", unit="picture", disable=None) as bar:
        scan = HeadScan(editor, manifest, examples, args.batch_size, bar.update)
        found = calibrate(scan, args.top)
    print("\n".join([*tables(found), "", f"choice: {' '.join(found.choice.layers)}"]))
    if not args.dry_run:
        print(f"kept in {write(found, [example.sample.id for example in examples], args)}")
    return 0


def draw(
    manifest: Manifest, split: str, styles: set[str] | None, count: int, seed: int
) -> list[Example]:
    """Draws samples of different pictures, the styles taking turns.

    Args:
        manifest: with masks.
        split: of it.
        styles: names that there are experts for; None: any.
        count: samples, or as many as there are pictures.
        seed: of the draw and of the edits' noise.

    Raises:
        UserError: not enough pictures.
    """
    from regionroute.data.images import image_size
    from regionroute.editing.batch import sample_request
    from regionroute.editing.head_scan import Example

    by_picture: dict[str, list[EditSample]] = {}
    for sample in manifest.samples:
        usable = sample.regions and (styles is None or sample.regions[0].style in styles)
        if sample.split == split and usable:
            by_picture.setdefault(sample.context, []).append(sample)
    if len(by_picture) < FEWEST:
        known = ", ".join(sorted({sample.split for sample in manifest.samples})) or "none"
        raise UserError(
            f"{manifest.root}: split {split!r} has {len(by_picture)} pictures with masks for "
            f"these experts, at least {FEWEST} are needed (splits: {known})"
        )
    rng, taken = random.Random(seed), Counter[str]()
    examples = []
    for picture in rng.sample(sorted(by_picture), min(count, len(by_picture))):
        of_picture = by_picture[picture]
        rng.shuffle(of_picture)
        sample = min(of_picture, key=lambda one: taken[one.regions[0].style])
        taken[sample.regions[0].style] += 1
        request = replace(sample_request(sample, seed), also=())
        examples.append(Example(sample, request, image_size(manifest.path(sample.context))))
    return examples


@dataclass(frozen=True, eq=False)
class Found:
    """What a calibration found.

    Attributes:
        choice: for the experts or the base.
        row: the choice's scores, on all pictures.
        others: what it is compared with.
        heads: model -> its single heads.
        chosen_on: bool [P], the pictures that chose.
    """

    choice: MapChoice
    row: Row
    others: list[Row]
    heads: dict[str, Scores]
    chosen_on: np.ndarray

    @property
    def compared(self) -> tuple[Row, list[Row]]:
        """The choice and the others on the pictures that did not choose."""
        rest = ~self.chosen_on
        return self.row.on(rest), [row.on(rest) for row in self.others]


def calibrate(scan: HeadScan, top: int) -> Found:
    """Scans all heads, chooses at most `top` of them on the first half of the pictures, compares.

    Raises:
        UserError: a picture, a mask or a phrase that cannot be used.
    """
    import numpy as np

    from regionroute.config.sites import MapChoice
    from regionroute.editing.expert_settings import supervised_choice
    from regionroute.routing.calibration import choose, spec_of

    pictures, registry = len(scan.examples), scan.editor.registry
    on = np.arange(pictures) < (pictures + 1) // 2
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
    """Lines for the terminal."""
    from regionroute.routing.calibration import comparison_table, head_table

    seen, rest = int(found.chosen_on.sum()), int((~found.chosen_on).sum())
    return [
        f"IoU of map and object on {rest} pictures, single heads (best on {seen} others)",
        *head_table(found.heads, found.chosen_on),
        "",
        f"on these {rest} pictures, with 95 % intervals",
        *comparison_table(*found.compared),
    ]


def write(found: Found, ids: Sequence[str], args: argparse.Namespace) -> Path:
    """Keeps the choice, with how it came about, and the scores of all heads.

    Args:
        found: the result.
        ids: of the samples.
        args: of the command.

    Returns:
        The file with the choice, written last.
    """
    from regionroute.editing.expert_settings import MAP_KEY
    from regionroute.files import read_json, write_json
    from regionroute.routing.calibration import comparison, spec_of

    compared = comparison(*found.compared)
    provenance = {
        "manifest": str(args.manifest),
        "split": args.split,
        "pictures": len(ids),
        "seed": args.seed,
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
    if not args.experts:
        write_json(args.out, report)
        return Path(args.out)
    write_json(args.experts / REPORT_FILE, report)
    file = args.experts / "experts.json"
    registry = read_json(file)
    registry["extra"] = registry.get("extra", {}) | {MAP_KEY: choice}
    write_json(file, registry)
    return Path(file)


if __name__ == "__main__":
    raise SystemExit(main())
