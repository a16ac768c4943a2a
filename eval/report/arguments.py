"""Arguments of the commands whose modules import torch; this one imports nothing heavy."""

from __future__ import annotations

from regionroute.cli.options import (
    add_base,
    add_batch_size,
    add_device,
    add_manifest,
    add_seed,
    command_parser,
)
from regionroute.errors import Parser

REPORT_TITLE = "Regional style editing"
REPORT_LIMIT = 120  # samples with images in the report; numbers are always over all
MAPS_TITLE = "Attention of the style word"


MAPS_EPILOG = """\
example:
  regionroute maps --manifest data/scenes --edits without=out/a --edits with=out/b --out maps.html

Maps are found as DIR/<id>.map.png next to the edits DIR/<id>.png, as `regionroute edit --manifest …
--out-dir DIR` writes them. Means are over all samples of the split; --count of them, spread over
styles and flags, are shown with their images."""


def maps_parser() -> Parser:
    """The arguments of ``regionroute maps``."""
    parser = command_parser(
        "maps", "Show region maps over the images, and compare them with the masks.", MAPS_EPILOG
    )
    add_manifest(parser, what="show")
    add = parser.add_argument
    add(
        "--edits",
        action="append",
        required=True,
        metavar="[NAME=]DIR",
        help="folder of edits with maps; repeat it to compare methods",
    )
    add("--out", required=True, metavar="HTML", help="page to write")
    add("--count", type=int, default=12, metavar="N", help="samples shown with images (12)")
    add_seed(parser, "the choice of samples and the intervals")
    add("--title", default=MAPS_TITLE, help=f"heading ({MAPS_TITLE})")
    return parser


REPORT_EPILOG = """\
example:
  regionroute report --scores scores --out report.html --notes notes.json

Notes are a JSON list of {"label": ..., "value": ...}, shown as facts at the top."""


def report_parser() -> Parser:
    """The arguments of ``regionroute report``."""
    parser = command_parser(
        "report",
        "Write the report of finished scores: one HTML file with images, numbers and explanations.",
        REPORT_EPILOG,
    )
    add = parser.add_argument
    add("--scores", required=True, metavar="DIR", help="folder written by `regionroute score`")
    add("--out", required=True, metavar="HTML", help="file to write")
    add("--title", help=f"heading ({REPORT_TITLE})")
    add("--notes", metavar="JSON", help="facts for the top of the page")
    add("--codec", metavar="JSON", help="file of `regionroute codec`, shown as a reference row")
    add(
        "--limit",
        type=int,
        default=REPORT_LIMIT,
        metavar="N",
        help=f"samples with images ({REPORT_LIMIT})",
    )
    return parser


CODEC_EPILOG = """\
example:
  regionroute codec --base nano --manifest data/scenes --out codec.json

Contexts go through the autoencoder and back: PSNR and background error of an edit that changes
nothing, the best that any edit with this base can reach. Targets do too: the residual error on the
object of a perfect edit. Names and definitions are those of `regionroute score`; give the file to
`regionroute report --codec`."""


def codec_parser() -> Parser:
    """The arguments of ``regionroute codec``."""
    parser = command_parser(
        "codec", "Measure what a base's autoencoder alone changes in images.", CODEC_EPILOG
    )
    add_base(parser, "nano")
    add_manifest(parser, what="measure")
    parser.add_argument("--out", required=True, metavar="JSON", help="file to write")
    add_device(parser, "cpu")
    add_batch_size(parser)
    return parser
