"""``regionroute gallery``: restyle a photo by reference images, region by region."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from regionroute.cli.options import (
    add_device,
    add_region,
    check_image_output,
    check_no_empty,
    command_parser,
    given,
)
from regionroute.config.choices import DTYPES
from regionroute.config.io import dump_config, load_config
from regionroute.errors import Parser, UserError, command
from regionroute.files import check_inputs_kept
from regionroute.settings_files import check_page_output

if TYPE_CHECKING:
    from pseudo_labels.stylegallery.gallery import Choice

PRESETS = ("full", "pairs", "lcm", "hyper-sd")
EPILOG = """\
examples:
  regionroute gallery photo.jpg --references refs/ --out out.png --page out.html
  regionroute gallery photo.jpg --references refs/ --out out.png --match 3=painting2:1
  regionroute gallery dog.jpg --references refs/ --out out.png --region dog_mask.png --only-region
  regionroute gallery dog.jpg --references refs/ --out out.png --region dog \\
      --labels labels.jsonl --match region=painting2
  regionroute gallery photo.jpg --references refs/ --out out.png --model FOLDER --dino FOLDER \\
      --preset lcm --lora lcm-lora-sdv1-5.safetensors energy.steps=16
  regionroute gallery photo.jpg --references refs/ --out out.png \\
      --base black-forest-labs/FLUX.2-klein-base-4B --dino nano-photos

Without --model nothing is downloaded: nano-photos finds and matches regions, and a small network
paints them. The page shows the numbers of the regions, as --match takes them. With a diffusion
model, features and regions are cached: another try costs the optimisation only, and a stopped run
resumes. KEY=VALUE are its settings, --print-config lists them all. With --model random --dino
random it runs without downloads, but the images mean nothing."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "gallery",
        "Restyle a photo by reference images: each of its regions gets the style of "
        "the most similar region among the references. Nothing is trained.",
        EPILOG,
        usage="regionroute gallery PHOTO --references DIR --out PNG [options] [KEY=VALUE ...]",
    )
    add = parser.add_argument
    add("photo", nargs="?", type=Path, help="photo to restyle")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="settings")
    add("--references", metavar="PATH", help="reference image, or a folder of them")
    add("--out", type=Path, metavar="PNG", help="restyled photo")
    add("--page", type=Path, metavar="HTML", help="write a page of regions, matches and losses")
    add("--config", metavar="FILE", help="YAML file of settings")
    add("--print-config", action="store_true", help="print all settings and exit")
    add("--cache", metavar="DIR", help="folder of cached stages (runs/gallery)")
    regions = parser.add_argument_group("regions")
    add_region(regions, "region of your own")
    add = regions.add_argument
    add("--only-region", action="store_true", help="restyle only --region, keep the rest unchanged")
    add(
        "--match",
        action="append",
        default=[],
        metavar="N=NAME[:M]",
        help="give region N (or `region`) the style of reference NAME, its region M",
    )
    _add_networks(parser)
    return parser


def _add_networks(parser: Parser) -> None:
    group = parser.add_argument_group("networks")
    add = group.add_argument
    base = "Stable Diffusion 1.x, 2.x, FLUX.1-Kontext or FLUX.2-klein by folder or hub id"
    add("--model", "--base", metavar="NAME", help=f"{base} (nano-photos)")
    painter = "network: the arbitrary-style network, with nano-photos; model: the model's attention"
    add("--painter", choices=("network", "model"), help=painter)
    add("--dino", metavar="NAME", help="DINOv2, nano-photos, or none (facebook/dinov2-base)")
    add("--depth", metavar="NAME", help="Depth Anything, splits regions that reach far back (none)")
    add("--sam", metavar="FILE", help="SAM checkpoint, for clusters.source=sam")
    add("--lora", metavar="FILE", help="LCM-LoRA or Hyper-SD, with --preset")
    add("--preset", choices=PRESETS, default="full", help="step sizes (full)")
    add(
        "--dtype", choices=DTYPES, help="number type of the model (bfloat16 on a GPU, else float32)"
    )
    add_device(group)
    add("--offload", action="store_true", help="move idle networks to the CPU, for GPUs of 8 GB")


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
    args = parser().parse_intermixed_args(argv)
    from pseudo_labels.stylegallery.config import PRESETS as SETTINGS
    from pseudo_labels.stylegallery.config import GalleryConfig

    if args.print_config:
        overrides = [*SETTINGS[args.preset], *args.overrides]
        print(dump_config(load_config(args.config, overrides, GalleryConfig)), end="")
        return 0
    _check(args)
    from regionroute.models.devices import quiet_libraries

    quiet_libraries()
    _restyle(args)
    return 0


def _restyle(args: argparse.Namespace) -> None:
    from pseudo_labels.stylegallery.page import write_result
    from pseudo_labels.stylegallery.stylizer import AttentionEnergyStylizer
    from pseudo_labels.stylemamba.networks import find_region
    from regionroute.data.images import read_image

    image = read_image(args.photo)
    region = find_region(args.region, args.photo, args.labels) if args.region else None
    settings = given(
        args, "references", "model", "painter", "dino", "depth", "sam", "lora", "preset", "config",
        "overrides", "cache", "dtype", "device", "offload",
    )  # fmt: skip
    stylizer = AttentionEnergyStylizer.build(**settings, progress=True)
    names = [file.stem for file in stylizer.files]
    result = stylizer.restyled(
        image,
        name=args.photo.stem,
        region=region,
        only_region=args.only_region,
        chosen=dict(_choice(item, names) for item in args.match),
    )
    for warning in write_result(args.out, args.photo, image, result, stylizer, args.page):
        print(f"warning: {warning}", file=sys.stderr)
    if args.page:
        print(f"{args.page}: regions, matches, losses")
    if stylizer.settings.offline:
        from pseudo_labels.stylegallery.offline import NOTE

        print(f"note: {NOTE}", file=sys.stderr)
        print(f"{args.out}: {len(result.styled)} regions")
        return
    first, last = result.losses[0][0], result.losses[-1][0]
    print(f"{args.out}: {len(result.styled)} regions, loss {first:.3f} to {last:.3f}")


def _check(args: argparse.Namespace) -> None:
    check_no_empty(args)
    if args.photo is None:
        raise UserError("give the photo; see `regionroute gallery --help`")
    if "=" in args.photo.name and not args.photo.exists():
        raise UserError(f"{args.photo}: the photo comes before settings")
    for option in ("references", "out"):
        if getattr(args, option) is None:
            raise UserError(f"--{option} is missing; see `regionroute gallery --help`")
    if args.labels and not args.region:
        raise UserError("--labels goes with --region WORD")
    if args.only_region and not args.region:
        raise UserError("--only-region needs --region, a mask or a word")
    if args.lora and args.preset in ("full", "pairs"):
        raise UserError("--lora goes with --preset lcm or --preset hyper-sd")
    _check_outputs(args)


def _check_outputs(args: argparse.Namespace) -> None:
    if args.out.resolve() == args.photo.resolve():
        raise UserError(f"{args.out}: this is the photo, choose another name")
    inputs = [args.photo, args.references, args.region, args.labels, args.config]
    check_image_output(args.out, [*inputs, args.sam, args.lora])
    if args.out.resolve().parent == Path(args.references).resolve():
        raise UserError(
            f"{args.out}: the next run would take this image for a reference, choose a folder "
            "other than --references"
        )
    if args.page:
        check_page_output(args.page)
        check_inputs_kept([args.page], filter(None, inputs))


def _choice(item: str, names: list[str]) -> tuple[int | None, Choice]:
    """``N=NAME[:M]`` as (label, (reference, its label))."""
    left, equals, right = item.partition("=")
    name, colon, cluster = right.rpartition(":")
    if right in names or not colon:
        name, cluster = right, ""
    numbers = [text for text in (left, cluster) if text and text != "region"]
    if not equals or not left or not all(text.isdecimal() for text in numbers):
        raise UserError(f"--match {item}: write N=NAME or N=NAME:M, for example 3=painting2:1")
    if name not in names:
        raise UserError(f"--match {item}: no reference '{name}'; there are {', '.join(names)}")
    label = None if left == "region" else int(left)
    return label, (names.index(name), int(cluster) if cluster else None)
