"""``regionroute manifest``: pack a manifest for a fast start, or add collages of its photos."""

from __future__ import annotations

from pathlib import Path

from regionroute.cli.options import add_engine, check_least, command_parser, engine_of
from regionroute.errors import Parser, command

COUNT = 1000  # collages
ROWS = 100_000  # that of regionroute.data.startup.pack, which loads torch
EPILOG = """\
examples:
  regionroute manifest pack data/pets
  regionroute manifest pack data/pets --workers 8
  regionroute manifest pack data/pets --engine ray --ray-address auto
  regionroute manifest collage data/pets --count 1000
  regionroute train data.manifest='data/pets/manifest*.jsonl' data.whole_targets=true

pack: a Parquet file is written beside each file of the manifest: ids, sizes, objects, styles,
places of the styles in the prompts, hashes of all images. Training reads it instead of rows, and
hashes no image. A single file of N rows or more is cut into manifest-00000.jsonl and so on; then
it is renamed to manifest.whole.jsonl.

Run it again after the rows have changed (training refuses to start) or the images (they are
encoded by their old hashes, and those that are not in the cache yet are refused).

collage: two or four photos side by side, of the samples that `regionroute label --whole` restyled
in the same style. In photos of one object the attention need not follow the object's word; in
collages it has to. Writes manifest_collages.jsonl beside manifest.jsonl; train on both."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "manifest",
        "Pack a manifest, so that training starts fast, or add collages of its photos.",
        EPILOG,
    )
    add = parser.add_argument
    add("action", choices=("pack", "collage"), help="what to do")
    add("path", type=Path, help="manifest.jsonl, its folder, or 'manifest-*.jsonl'")
    rows = f"cut a single file of N rows or more into files of N rows ({ROWS})"
    add("--rows", type=int, default=ROWS, metavar="N", help=rows)
    add("--count", type=int, default=COUNT, metavar="N", help=f"collages to make ({COUNT})")
    add("--seed", type=int, default=0, help="seed of the choice of photos (0)")
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
        UserError: a row or an image is not right, PyArrow is missing, or no photo was wholly
            restyled.
    """
    args = parser().parse_args(argv)
    check_least(args, {"rows": 1, "count": 1, "seed": 0})
    if args.action == "collage":
        from pseudo_labels.collage import COLLAGES, make_collages

        folder = args.path.parent if args.path.suffix == ".jsonl" else args.path
        samples = make_collages(folder, args.count, args.seed)
        print(f"{len(samples)} samples: {folder / COLLAGES}")
        print(f"train on them: data.manifest='{folder}/manifest*.jsonl' data.whole_targets=true")
        return 0
    engine = engine_of(args)
    from regionroute.data.startup.pack import pack

    files = pack(args.path, args.rows, engine)
    print(f"{len(files)} packed: {files[0].with_suffix('.parquet')}" + " …" * (len(files) > 1))
    return 0
