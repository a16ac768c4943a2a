"""`regionroute mamba apply`: one photo, or one object of it."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pseudo_labels.compose import composite
from pseudo_labels.stylemamba.encoders import describe, load_encoder
from pseudo_labels.stylemamba.networks import find_region
from pseudo_labels.stylemamba.saved import SavedStyle, load_style, png_metadata, warning
from regionroute.data.images import read_image, write_image
from regionroute.errors import Parser, UserError
from regionroute.files import check_output_file, write_json
from regionroute.models.devices import pick_device

_EPILOG = """\
examples:
  regionroute mamba apply photo.jpg --style styles/starry --strength 0.8 --out out.png
  regionroute mamba apply dog.jpg --style styles/starry --region dog_mask.png --out out.png
  regionroute mamba apply dog.jpg --style styles/starry --region dog --labels labels.jsonl \\
      --out out.png
  regionroute mamba apply photo.jpg --style styles/bank --name woodcut:0.7 --name neon:0.3 \\
      --out out.png

Beside out.png goes out.json with every setting; the PNG carries the same text."""


def apply_main(argv: Sequence[str]) -> int:
    """Runs ``regionroute mamba apply``.

    Raises:
        UserError: anything the user has to mend.
    """
    args = _parser().parse_args(argv)
    _check(args)
    image = read_image(args.photo)
    mask = find_region(args.region, args.photo, args.labels) if args.region else None
    style = load_style(args.style, args.vae, pick_device(args.device))
    names, weights = _names(args.name or ())
    descriptions = _described(args, style, names)
    styled = style.apply(
        image[None], strength=args.strength, descriptions=descriptions, weights=weights
    )[0]
    if mask is not None:
        styled = composite(image, styled, mask, args.feather)
    facts: dict[str, Any] = {
        "photo": args.photo.name,
        "styles": [args.prompt] if args.prompt else names or style.facts.styles,
        "weights": weights,
        "strength": args.strength,
        "region": args.region,
        "feather": args.feather if mask is not None else None,
        "encoder": style.facts.encoder,
        "codec": style.facts.codec,
        "random_weights": style.facts.random,
    }
    said = warning(style.facts.random)
    if said:
        facts["warnings"] = [said]
        print(f"warning: {said}", file=sys.stderr)
    write_json(args.out.with_suffix(".json"), facts)
    write_image(args.out, styled, png_metadata(facts))
    print(f"{args.out}: {', '.join(facts['styles'])}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="regionroute mamba apply",
        description="Restyle a photo, or one object of it, with a fitted style. The output has "
        "the size of the input.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("photo", type=Path, help="the photo")
    parser.add_argument("--style", required=True, metavar="DIR", help="folder of a fitted style")
    parser.add_argument("--out", required=True, type=Path, metavar="PNG", help="the result")
    parser.add_argument(
        "--strength", type=float, default=1.0, help="0: the photo, 1: the style (1); more is bold"
    )
    parser.add_argument(
        "--region", help="restyle this object only: its mask, or with --labels a word"
    )
    parser.add_argument("--labels", metavar="FILE", help="labels file with the words' masks")
    parser.add_argument(
        "--feather", type=int, default=0, metavar="PX", help="soft edge inside the region (0)"
    )
    several = parser.add_argument_group("folders that hold several styles")
    several.add_argument(
        "--name", action="append", metavar="STYLE[:WEIGHT]", help="which style, or a blend"
    )
    several.add_argument("--prompt", metavar="WORDS", help="a new style in words; needs --encoder")
    several.add_argument(
        "--encoder", metavar="NAME", help="the encoder the styles were trained with"
    )
    parser.add_argument("--vae", metavar="NAME", help="where the codec lies on this machine")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (cuda where there is one)")
    return parser


def _check(args: argparse.Namespace) -> None:
    if not (math.isfinite(args.strength) and 0 <= args.strength <= 2):
        raise UserError(f"--strength {args.strength}: must be between 0 and 2")
    if not 0 <= args.feather <= 256:
        raise UserError(f"--feather {args.feather}: use 0 to 256 pixels")
    if args.labels and not args.region:
        raise UserError("--labels goes with --region WORD")
    if args.prompt and (args.name or not args.encoder):
        raise UserError("--prompt takes the place of --name and needs --encoder NAME")
    if args.out.suffix.lower() != ".png":
        raise UserError(f"{args.out}: pictures are written as PNG, give a name that ends in .png")
    if args.out.resolve() == args.photo.resolve():
        raise UserError(f"{args.out}: this is the photo, choose another name")
    check_output_file(args.out)


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


def _described(args: argparse.Namespace, style: SavedStyle, names: Sequence[str]) -> Tensor:
    """Descriptions [n, K] of the styles asked for: known ones, or new words."""
    if not args.prompt:
        return style.choose(names)
    if style.facts.encoder.get("takes") != "words":
        raise UserError("--prompt: this folder's styles are pictures, choose one by --name")
    encoder = load_encoder(args.encoder)
    if encoder.facts["weights"] != style.facts.encoder["weights"]:
        raise UserError(
            f"--encoder {args.encoder}: these styles were trained with "
            f"'{style.facts.encoder['name']}' and other weights, give that one"
        )
    target = encoder.target(args.prompt)
    source = torch.zeros_like(target.embedding)[None]  # a direction between words needs no photo
    return describe(encoder, target, source, style.facts.style_input)[None]
