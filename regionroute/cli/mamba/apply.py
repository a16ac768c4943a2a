"""``regionroute mamba apply``: restyle one photo, or one object of it."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from regionroute.cli.options import (
    add_device,
    add_region,
    check_image_output,
    check_no_empty,
    command_parser,
)
from regionroute.errors import Parser, UserError

EPILOG = """\
examples:
  regionroute mamba apply photo.jpg --style "ukiyo-e woodblock print" --out out.png
  regionroute mamba apply dog.jpg --style "a loose oil painting" --object dog --out out.png
  regionroute mamba apply photo.jpg --style styles/starry --strength 0.8 --out out.png
  regionroute mamba apply dog.jpg --style styles/starry --region dog_mask.png --out out.png
  regionroute mamba apply dog.jpg --style styles/starry --region dog --labels labels.jsonl \\
      --out out.png
  regionroute mamba apply photo.jpg --style styles/bank --name woodcut:0.7 --name neon:0.3 \\
      --out out.png

out.json, next to out.png, holds every setting; the PNG carries the same text."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "mamba apply",
        "Restyle a photo, or one object of it, in a style that words describe or that was "
        "fitted. The output has the size of the input.",
        EPILOG,
    )
    add = parser.add_argument
    add("photo", type=Path, help="photo to restyle")
    style = "words, for the packaged bank of styles; or the folder of a fitted style"
    add("--style", required=True, metavar="WORDS", help=style)
    add("--bank", metavar="DIR", help="bank of `mamba train`, for words (the packaged one)")
    add("--out", required=True, type=Path, metavar="PNG", help="restyled photo")
    strength = "0: the photo, 1: the style, up to 2: bolder (1)"
    add("--strength", type=float, default=1.0, metavar="X", help=strength)
    add_region(parser, "restyle only this object")
    found = "restyle only this object, found by the default base; if absent, nothing is written"
    add("--object", metavar="WORD", help=found)
    feather = "width of a soft edge inside the region (0)"
    add("--feather", type=int, default=0, metavar="PX", help=feather)
    several = parser.add_argument_group("folders that hold several styles")
    add = several.add_argument
    add("--name", action="append", metavar="STYLE[:WEIGHT]", help="style to use; repeat to blend")
    add("--prompt", metavar="WORDS", help="new style in words; needs --encoder")
    add("--encoder", metavar="NAME", help="encoder that the styles were trained with")
    add("--vae", default=None, metavar="NAME", help="where the codec is on this machine (as saved)")
    add_device(parser)
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs ``regionroute mamba apply``.

    Raises:
        UserError: anything the user has to fix.
    """
    args = parser().parse_args(argv)
    _check(args)
    if not (Path(args.style) / "style.json").is_file():
        return _apply_words(args)
    if args.object or args.bank:
        raise UserError("--object and --bank go with --style WORDS, not with a fitted style")
    names, weights = _names(args.name or ())
    from pseudo_labels.stylemamba.apply import apply_style
    from regionroute.models.devices import pick_device, quiet_libraries

    quiet_libraries()
    facts = apply_style(
        args.photo,
        args.style,
        args.out,
        device=pick_device(args.device),
        strength=args.strength,
        names=names,
        weights=weights,
        prompt=args.prompt,
        encoder=args.encoder,
        region=args.region,
        labels=args.labels,
        feather=args.feather,
        vae=args.vae,
    )
    for warning in facts.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{args.out}: {', '.join(facts['styles'])}")
    return 0


def _apply_words(args: argparse.Namespace) -> int:
    """With a bank's styles."""
    if Path(args.style).is_dir():
        raise UserError(f"--style {args.style}: this folder holds no fitted style (style.json)")
    if "/" in args.style and " " not in args.style:
        raise UserError(
            f"--style {args.style}: no style.json, give a folder of `regionroute mamba fit`, or "
            "describe the style in words"
        )
    for option in ("name", "prompt", "encoder", "vae", "device"):
        if getattr(args, option) not in (None, "cpu"):
            raise UserError(f"--{option} goes with the folder of a fitted style, --style DIR")
    from pseudo_labels.stylemamba.bank.packaged import apply_bank
    from regionroute.models.devices import quiet_libraries

    quiet_libraries()
    facts = apply_bank(
        args.photo,
        args.style,
        args.out,
        bank=args.bank,
        strength=args.strength,
        region=args.region,
        labels=args.labels,
        word=args.object,
        feather=args.feather,
    )
    for warning in facts.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    styles = ", ".join(f"{name} {weight:.2f}" for name, weight in facts["styles"].items())
    print(f"{args.out}: {styles}")
    return 0


def _check(args: argparse.Namespace) -> None:
    check_no_empty(args)
    if not (math.isfinite(args.strength) and 0 <= args.strength <= 2):
        raise UserError(f"--strength {args.strength}: must be between 0 and 2")
    if not 0 <= args.feather <= 256:
        raise UserError(f"--feather {args.feather}: must be between 0 and 256 pixels")
    if args.object and args.region:
        raise UserError("give --object WORD or --region, not both")
    if args.labels and not args.region:
        raise UserError("--labels goes with --region WORD")
    if args.prompt and (args.name or not args.encoder):
        raise UserError("--prompt replaces --name and needs --encoder NAME")
    if args.out.resolve() == args.photo.resolve():
        raise UserError(f"{args.out}: this is the photo, choose another name")
    check_image_output(args.out, [args.photo, args.region, args.labels])


def _names(given: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Names and weights of ``STYLE[:WEIGHT]``."""
    names, weights = [], []
    for item in given:
        name, colon, weight = item.rpartition(":")
        try:
            value = float(weight) if colon else 1.0
        except ValueError:
            name, value = item, 1.0  # a style whose words hold a colon
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"--name {item}: the weight must be 0 or more")
        names.append(name if colon and name else item)
        weights.append(value)
    if names and not sum(weights):
        raise UserError("--name: at least one weight must be above 0")
    return names, weights if names else None
