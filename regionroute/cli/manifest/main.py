"""``regionroute manifest pack``: write what training start-up needs beside the rows."""

from __future__ import annotations

from pathlib import Path

from regionroute.cli.options import add_engine, check_least, command_parser, engine_of
from regionroute.errors import Parser, command

ROWS = 100_000  # that of regionroute.data.pack, which loads torch
EPILOG = """\
examples:
  regionroute manifest pack data/pets
  regionroute manifest pack data/pets --workers 8
  regionroute manifest pack data/pets --engine ray --ray-address auto

Beside each file of the manifest a Parquet file is written: ids, sizes, objects, styles, places of
the styles in the prompts, and hashes of all images. Training reads it instead of the rows, and
hashes no image. A single file of N rows or more is cut into manifest-00000.jsonl and so on; then
it is renamed to manifest.whole.jsonl.

Run it again after the rows have changed (training refuses to start) or the images (they are
encoded by their old hashes, and those that are not in the cache yet are refused)."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "manifest",
        "Pack a manifest: write the columns that training needs to start beside its rows.",
        EPILOG,
    )
    add = parser.add_argument
    add("action", choices=("pack",), help="what to do")
    add("path", type=Path, help="manifest.jsonl, its folder, or 'manifest-*.jsonl'")
    rows = f"cut a single file of N rows or more into files of N rows ({ROWS})"
    add("--rows", type=int, default=ROWS, metavar="N", help=rows)
    add_engine(parser, "1")
    parser.set_defaults(device=None)
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0.

    Raises:
        UserError: a row or an image is not right, or PyArrow is missing.
    """
    args = parser().parse_args(argv)
    check_least(args, {"rows": 1})
    engine = engine_of(args)
    from regionroute.data.pack import pack

    files = pack(args.path, args.rows, engine)
    print(f"{len(files)} packed: {files[0].with_suffix('.parquet')}" + " …" * (len(files) > 1))
    return 0
