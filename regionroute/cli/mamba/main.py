"""``regionroute mamba``: fit a style given in words or as an image, and restyle photos with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

from regionroute.cli.mamba import apply, fit
from regionroute.cli.options import command_parser
from regionroute.errors import Parser, UserError, command, nearest


class Action(NamedTuple):
    """An action of the command: what it does, its arguments, its main."""

    summary: str
    parser: Callable[[], Parser]
    main: Callable[[list[str]], int]


ACTIONS = {
    "fit": Action(
        "fit one style, in some forty steps on one or a few photos", fit.fit_parser, fit.fit
    ),
    "train": Action("train one module for many styles", fit.train_parser, fit.train),
    "apply": Action("restyle a photo, or one object of it", apply.parser, apply.main),
}
EPILOG = """\
a style in words (SigLIP and a Stable Diffusion VAE, by hub id or folder):
  regionroute mamba fit --prompt "Van Gogh starry night" --images photos/ --out styles/starry
  regionroute mamba apply photo.jpg --style styles/starry --strength 0.8 --out out.png

a style image (it needs no more than the weights of a VGG16 or VGG19):
  regionroute mamba fit --style-image monet.jpg --images photo.jpg --out styles/monet \\
      --vgg vgg16.safetensors --vae patch

`regionroute mamba ACTION --help` explains one action."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "mamba",
        "Restyle photos by words or by a style image with StyleMamba, on a codec's "
        "latents. Layer sizes and exact losses are a reconstruction: those of the paper are not "
        "public.",
        EPILOG,
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    for name, entry in ACTIONS.items():
        actions.add_parser(
            name, help=entry.summary, parents=[entry.parser()], add_help=False, allow_abbrev=False
        )
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs ``regionroute mamba ACTION …``.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0.

    Raises:
        UserError: an unknown action, or anything else the user has to fix.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        parser().print_help()
        return 0
    if argv[0] not in ACTIONS:
        near = nearest(argv[0], ACTIONS)
        raise UserError(
            f"there is no action {argv[0]!r}; did you mean {near}? `regionroute mamba --help` "
            "lists all"
        )
    return ACTIONS[argv[0]].main(argv[1:])
