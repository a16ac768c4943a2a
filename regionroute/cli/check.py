"""``regionroute check``: open every image of a manifest, list what is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from regionroute.cli.options import check_least, command_parser
from regionroute.errors import Parser, UserError, command
from regionroute.files import check_output_file

if TYPE_CHECKING:
    from regionroute.data.check import CheckReport
    from regionroute.data.manifest import Manifest

MAX_PRINTED = 100
EPILOG = """\
examples:
  regionroute check data/scenes
  regionroute check data/scenes --sheet sheet.png --limit 40

Exit code: 0 no problems, 1 problems, 2 wrong arguments."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "check",
        "Open every image that a manifest names, count samples, objects and styles, "
        "and list what is wrong.",
        EPILOG,
    )
    add = parser.add_argument
    add("path", type=Path, help="manifest.jsonl, its folder, or 'manifest-*.jsonl'")
    add("--sheet", metavar="PNG", help="draw a contact sheet too")
    add("--limit", type=int, default=24, metavar="N", help="samples on the sheet (24)")
    add("--all", action="store_true", help=f"print all problems (the first {MAX_PRINTED})")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0 if all is well, 1 if there are problems.

    Raises:
        UserError: there is no manifest, or the sheet cannot be written.
    """
    args = parser().parse_args(argv)
    check_least(args, {"limit": 1})
    from regionroute.data.check import check_manifest, contact_sheet, read_leniently

    if args.sheet is not None:
        _check_sheet(args.sheet, read_leniently(args.path)[0])
    report = check_manifest(args.path)
    _print_report(report, args.all)
    if args.sheet is not None:
        contact_sheet(read_leniently(args.path)[0], args.sheet, args.limit)
        print(f"{'sheet:':10} {args.sheet}")
    return 1 if report.problems else 0


def _print_report(report: CheckReport, everything: bool) -> None:
    for name, count in report.counts.items():
        if isinstance(count, dict):
            rows = ", ".join(f"{key} {number}" for key, number in count.items())
            print(f"{name + ':':10} {rows or '-'}")
        else:
            print(f"{name + ':':10} {count}")
    print(f"{'problems:':10} {len(report.problems)}")
    shown = report.problems if everything else report.problems[:MAX_PRINTED]
    for problem in shown:
        print(f"  {problem}")
    if len(shown) < len(report.problems):
        print(f"  ... and {len(report.problems) - len(shown)} more, --all prints every one")


def _check_sheet(sheet: str, manifest: Manifest) -> None:
    """Refuses, before the work, a sheet that cannot be written or would overwrite an image."""
    try:
        check_output_file(sheet)
    except UserError as error:
        raise UserError(f"--sheet: {error}") from error
    if Path(sheet).suffix.lower() != ".png":
        raise UserError(f"--sheet {sheet}: the sheet is a PNG, give a name that ends in .png")
    for sample in manifest.samples:
        masks = [region.mask for region in sample.regions]
        for name in (sample.context, sample.target, *masks):
            if os.path.realpath(sheet) == os.path.realpath(manifest.root / name):
                raise UserError(
                    f"--sheet {sheet}: this is an image of sample {sample.id}, choose another name"
                )
