"""`regionroute gallery`: restyle a photo after reference pictures, region by region."""

import argparse
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from pseudo_labels.stylegallery.config import PRESETS, GalleryConfig
from pseudo_labels.stylegallery.gallery import Choice, GalleryResult
from pseudo_labels.stylegallery.model import DEFAULT, DTYPES
from pseudo_labels.stylegallery.networks import DINO
from pseudo_labels.stylegallery.page import write_page
from pseudo_labels.stylegallery.stylizer import CACHE, AttentionEnergyStylizer, GallerySettings
from pseudo_labels.stylemamba.networks import find_region
from regionroute.config.io import dump_config, load_config
from regionroute.data.images import read_image, write_image
from regionroute.errors import Parser, UserError, command
from regionroute.files import check_output_file, write_json
from regionroute.models.devices import quiet_libraries

_EPILOG = """\
examples:
  regionroute gallery photo.jpg --references refs/ --out out.png --page out.html
  regionroute gallery photo.jpg --references refs/ --out out.png --match 3=painting2:1
  regionroute gallery dog.jpg --references refs/ --out out.png --region dog_mask.png --only-region
  regionroute gallery dog.jpg --references refs/ --out out.png --region dog \\
      --labels labels.jsonl --match region=painting2
  regionroute gallery photo.jpg --references refs/ --out out.png --model FOLDER --dino FOLDER \\
      --preset lcm --lora lcm-lora-sdv1-5.safetensors energy.steps=16

The page shows the numbers of regions that --match takes; features and regions are kept, so that
another try costs the optimisation only, and a stopped run goes on. KEY=VALUE are settings;
--print-config lists them all. --model random --dino random tries the plumbing: its pictures mean
nothing."""


@command
def main(argv: list[str] | None = None) -> int:
    """Runs ``regionroute gallery …``.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0.

    Raises:
        UserError: anything the user has to mend.
    """
    quiet_libraries()
    args = _parser().parse_intermixed_args(argv)
    if args.print_config:
        overrides = [*PRESETS[args.preset], *args.overrides]
        print(dump_config(load_config(args.config, overrides, GalleryConfig)), end="")
        return 0
    _check(args)
    image = read_image(args.photo)
    region = find_region(args.region, args.photo, args.labels) if args.region else None
    names = set(GallerySettings.model_fields) & set(vars(args)) - {"only_region"}
    settings = {name: getattr(args, name) for name in names}
    stylizer = AttentionEnergyStylizer.build(**settings, progress=True)
    stems = [file.stem for file in stylizer.files]
    chosen = dict(_choice(item, stems) for item in args.match)
    result = stylizer.gallery.restyle(
        image,
        stylizer.references,
        name=args.photo.stem,
        region=region,
        only_region=args.only_region,
        chosen=chosen,
    )
    _write(args, image, result, stylizer)
    return 0


def _write(args: argparse.Namespace, image: Tensor, result: GalleryResult, stylizer: Any) -> None:
    facts: dict[str, Any] = {
        "photo": args.photo.name,
        "references": [file.name for file in stylizer.files],
        "matches": result.matches,
        "styled": result.styled,
        "loss": {"first": result.losses[0], "last": result.losses[-1]},
        "settings": stylizer.config,
        **stylizer.remarks,
    }
    if stylizer.remarks:
        said = f"random weights ({', '.join(stylizer.remarks['random_weights'])}): only plumbing"
        facts["warnings"] = [said]
        print(f"warning: {said}", file=sys.stderr)
    if args.page:
        write_page(args.page, image, result, facts.get("warnings", []))
        print(f"{args.page}: regions, matches, losses")
    write_json(args.out.with_suffix(".json"), facts)
    write_image(args.out, result.image)
    first, last = result.losses[0][0], result.losses[-1][0]
    print(f"{args.out}: {len(result.styled)} regions, loss {first:.3f} to {last:.3f}")


def _parser() -> Parser:
    parser = Parser(
        prog="regionroute gallery",
        usage="regionroute gallery PHOTO --references DIR --out PNG [options] [KEY=VALUE ...]",
        description="Restyle a photo after reference pictures: each of its regions takes the style "
        "of the most similar region among the references. Nothing is trained.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("photo", nargs="?", type=Path, help="the photo")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings")
    parser.add_argument("--references", metavar="DIR", help="a picture, or a folder of pictures")
    parser.add_argument("--out", type=Path, metavar="PNG", help="the result")
    parser.add_argument(
        "--page", type=Path, metavar="HTML", help="a page of regions, matches, losses and result"
    )
    regions = parser.add_argument_group("regions")
    regions.add_argument("--region", help="a region of your own: its mask, or with --labels a word")
    regions.add_argument("--labels", metavar="FILE", help="labels file with the words' masks")
    regions.add_argument(
        "--only-region", action="store_true", help="restyle it alone, keep the rest bit for bit"
    )
    regions.add_argument(
        "--match",
        action="append",
        default=[],
        metavar="N=NAME[:M]",
        help="region N (or `region`) takes the style of reference NAME, its region M",
    )
    models = parser.add_argument_group("networks")
    models.add_argument("--model", default=DEFAULT, help=f"Stable Diffusion 1.5 ({DEFAULT})")
    models.add_argument("--dino", default=DINO, help=f"DINOv2 ({DINO}); none: match without it")
    models.add_argument("--depth", metavar="NAME", help="Depth Anything, splits deep regions")
    models.add_argument("--sam", metavar="FILE", help="checkpoint, for clusters.source=sam")
    models.add_argument("--lora", metavar="FILE", help="LCM-LoRA or Hyper-SD, with --preset")
    models.add_argument("--preset", choices=list(PRESETS), default="full", help="step sizes (full)")
    models.add_argument("--dtype", choices=list(DTYPES), help="(bfloat16 on a GPU, else float32)")
    models.add_argument("--device", help="cpu, cuda, cuda:1, … (cuda where there is one)")
    models.add_argument("--offload", action="store_true", help="for GPUs of 8 GB")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings")
    parser.add_argument("--print-config", action="store_true", help="print all settings and end")
    parser.add_argument("--cache", default=CACHE, metavar="DIR", help=f"kept stages ({CACHE})")
    return parser


def _check(args: argparse.Namespace) -> None:
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
    if args.out.suffix.lower() != ".png":
        raise UserError(f"{args.out}: pictures are written as PNG, give a name that ends in .png")
    if args.page and args.page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{args.page}: give the page a name that ends in .html")
    if args.out.resolve() == args.photo.resolve():
        raise UserError(f"{args.out}: this is the photo, choose another name")
    for path in filter(None, (args.out, args.page)):
        check_output_file(path)


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


if __name__ == "__main__":
    raise SystemExit(main())
