"""``regionroute calibrate``: choose the attention heads that region maps are read from."""

from __future__ import annotations

import argparse
from pathlib import Path

from regionroute.cli.options import (
    add_base,
    add_batch_size,
    add_device,
    add_dtype,
    add_seed,
    check_least,
    command_parser,
)
from regionroute.errors import Parser, UserError, command
from regionroute.files import check_output_file

FEWEST = 4  # images, and where the scores go: as in regionroute.editing.calibrate, not imported
REPORT_FILE = "calibration.json"  # here because it loads torch
EPILOG = """\
examples:
  regionroute scenes --train 64 --test 0 --seed 7 --out data/calibration
  regionroute calibrate --experts runs/nano/experts --manifest data/calibration
  regionroute calibrate --experts runs/nano/experts --manifest data/calibration --dry-run
  regionroute calibrate --zero-shot --manifest data/calibration --out choice.json
  regionroute edit photo.png --zero-shot --map-from choice.json ...

Every head of every block is read for the style word and for the object word, with the tokens of
the noisy target and of the context image as queries. The best few heads whose maps complement each
other are written to experts.json ("map"), where `regionroute edit` finds them; the scores of all
heads go to calibration.json next to it. Use images that nothing else is measured on.

Heads are chosen by how well their map fits the mask. Routed edits derive their gates from the same
maps, and gates that are too narrow cost style on the object: score the edits before and after, and
remove "map" from experts.json to undo the choice."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "calibrate",
        "Choose the attention heads that region maps are read from, on labelled "
        "images, and save the choice with the experts.",
        EPILOG,
    )
    add = parser.add_argument
    add("--experts", type=Path, metavar="DIR", help="experts to calibrate")
    add("--zero-shot", action="store_true", help="calibrate the base alone; needs --out")
    add("--out", type=Path, metavar="JSON", help="file for the choice of a base alone")
    add("--manifest", type=Path, metavar="DIR", required=True, help="images with masks")
    add("--split", default="train", metavar="NAME", help="split to read, never test (train)")
    add("--count", type=int, default=48, metavar="N", help="images, half of them to choose on (48)")
    add("--top", type=int, default=4, metavar="N", help="most heads to choose (4)")
    add("--dry-run", action="store_true", help="print the tables, write nothing")
    add_seed(parser, "the choice of images and of the noise")
    add_batch_size(parser)
    add_base(parser, None, "that of the experts, else nano-photos")
    add_device(parser)
    add_dtype(parser)
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses wrong arguments before anything is loaded.

    Raises:
        UserError: the split that is measured on, numbers out of range, neither or both of experts
            and base, no place for the result.
    """
    if args.split == "test":
        raise UserError(
            "--split test: edits are measured on these images, so nothing may be chosen on them; "
            "use train, or other images"
        )
    if args.zero_shot == bool(args.experts):
        raise UserError("give either --experts DIR or --zero-shot")
    if args.zero_shot and not (args.out or args.dry_run):
        raise UserError("--zero-shot needs --out FILE.json for the choice, or --dry-run")
    if args.experts and args.out:
        raise UserError("--out goes with --zero-shot; with experts the choice is saved with them")
    check_least(args, {"count": FEWEST, "top": 1, "batch_size": 1, "seed": 0})
    if args.out and args.out.suffix.lower() != ".json":  # it must not replace other data
        raise UserError(f"--out {args.out}: give a name that ends in .json")
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
        UserError: anything the user has to fix.
    """
    args = parser().parse_args(argv)
    check_arguments(args)

    import torch
    from tqdm import tqdm

    from regionroute.adapters import read_registry
    from regionroute.data.manifest import load_manifest
    from regionroute.editing.calibrate import calibrate, draw_examples, save_choice, tables
    from regionroute.editing.head_scan import HeadScan
    from regionroute.hub_names import used_name
    from regionroute.models.devices import pick_device, quiet_libraries
    from regionroute.pipeline import RegionRoutePipeline

    quiet_libraries()
    styles = None
    if args.experts:
        styles = {style.name for style in read_registry(args.experts).styles}
    manifest = load_manifest(args.manifest)
    examples = draw_examples(manifest, args.split, styles, args.count, args.seed)
    dtype, device = getattr(torch, args.dtype), pick_device(args.device)
    editor = RegionRoutePipeline.from_pretrained(
        args.base, experts=args.experts, torch_dtype=dtype, device=device
    ).editor
    passes = 6 if args.experts else 5
    with tqdm(total=passes * len(examples), desc="calibrate", unit="image", disable=None) as bar:
        scan = HeadScan(editor, manifest, examples, args.batch_size, bar.update)
        found = calibrate(scan, args.top)
    print("\n".join([*tables(found), "", f"choice: {' '.join(found.choice.layers)}"]))
    if not args.dry_run:
        source = {"manifest": str(args.manifest), "split": args.split, "seed": args.seed}
        source["base"] = used_name(editor.backbone.name, editor.backbone.revision)
        ids = [example.sample.id for example in examples]
        file = save_choice(found, ids, source, experts=args.experts, out=args.out)
        print(f"saved in {file}")
    return 0
