"""``regionroute serve``: the studio, a web page for edits."""

from __future__ import annotations

import argparse
import json

from regionroute.cli.options import add_device, command_parser
from regionroute.cli.start import import_pipeline
from regionroute.config.choices import DTYPES, QUANTIZE
from regionroute.errors import Parser, UserError, command

OWN_SEGMENTERS = ("auto", "offline", "grabcut")
EPILOG = """\
examples:
  regionroute serve                              # http://127.0.0.1:7860, this machine only
  regionroute serve --port 0 --data data/        # any free port; data sets below data/
  regionroute serve --base nano-photos --experts portraits=runs/portraits/experts
  regionroute serve --host 0.0.0.0 --auth users.txt        # a line user:password per user
  regionroute serve --config studio.yaml         # settings: docs/howto/studio.md
  regionroute serve --print-config               # all settings with their meaning

It needs pip install 'regionroute[studio]'. Users and passwords may be in $REGIONROUTE_AUTH too."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "serve", "Serve a web page to edit photos, and its endpoints to programs.", EPILOG
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML file of settings; options override it")
    add("--print-config", action="store_true", help="print all settings and exit")
    add("--host", metavar="NAME", help="address to listen on (127.0.0.1)")
    add("--port", type=int, metavar="N", help="port to listen on, 0 for any free one (7860)")
    add("--share", action="store_true", default=None, help="make a public link through Gradio")
    add("--mcp", action="store_true", default=None, help="serve the endpoints to agents, by MCP")
    add("--auth", metavar="FILE", help="ask for a password: lines of user:password")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--base", action="append", metavar="NAME",
        help="offer this base; repeat it for more, the first is the default (nano-photos, nano)",
    )  # fmt: skip
    model.add_argument(
        "--experts", action="append", metavar="NAME=DIR", help="offer these experts too"
    )
    add_device(model)
    model.add_argument("--dtype", choices=DTYPES, help="number type of the networks (float32)")
    model.add_argument("--quantize", choices=QUANTIZE, help="store the base in 4 or 8 bits")
    model.add_argument(
        "--segmenter", metavar="NAME",
        help="cuts out clicked objects: sam:FILE, a folder or hub id of SAM, offline, grabcut "
        "(offline where its weights are found, else grabcut)",
    )  # fmt: skip
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--data", action="append", metavar="DIR", help="data sets below this folder may be opened"
    )
    limits.add_argument("--max-upload-mb", type=float, metavar="N", help="largest file (32)")
    limits.add_argument("--max-pixels", type=int, metavar="N", help="largest image (24 million)")
    limits.add_argument(
        "--keep-hours", type=float, metavar="N", help="delete uploads and edits after this (24)"
    )
    return parser


def overrides(args: argparse.Namespace) -> list[str]:
    """The options that were given, as KEY=VALUE of the settings.

    Raises:
        UserError: ``--experts`` is not NAME=DIR.
    """
    values = {
        "host": args.host, "port": args.port, "share": args.share, "mcp": args.mcp,
        "auth": args.auth, "bases": args.base, "device": args.device, "dtype": args.dtype,
        "quantize": args.quantize, "segmenter": args.segmenter, "data": args.data,
        "max_upload_mb": args.max_upload_mb, "max_pixels": args.max_pixels,
        "keep_hours": args.keep_hours,
    }  # fmt: skip
    found = [f"{key}={json.dumps(value)}" for key, value in values.items() if value is not None]
    if args.experts:
        pairs = [item.partition("=") for item in args.experts]
        if not all(name and folder for name, _, folder in pairs):
            raise UserError("--experts: write NAME=DIR, such as portraits=runs/portraits/experts")
        found.append(f"experts={json.dumps({name: folder for name, _, folder in pairs})}")
    return found


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command until Ctrl-C.

    Raises:
        UserError: settings, users, base or port that cannot be used.
    """
    args = parser().parse_args(argv)
    from regionroute.config.io import dump_config, load_config
    from regionroute.studio.settings import StudioSettings

    settings = load_config(args.config, overrides(args), StudioSettings)
    if args.print_config:
        print(dump_config(settings), end="")
        return 0
    from regionroute.studio.server import (
        exit_on_sigterm,
        limit_process,
        start_server,
        warnings_of,
    )

    for sentence in warnings_of(settings):
        print(f"warning: {sentence}", flush=True)
    limit_process(settings)
    print("loading the base …", flush=True)
    exit_on_sigterm()
    if settings.segmenter in OWN_SEGMENTERS:  # those of transformers may need what is hidden
        import_pipeline()
    server = start_server(settings)
    try:
        print(f"the studio is at {server.url} (Ctrl-C stops it)", flush=True)
        server.wait()
    finally:
        server.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
