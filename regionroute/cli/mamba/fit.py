"""``regionroute mamba fit`` and ``regionroute mamba train``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regionroute.cli.options import (
    add_device,
    add_region,
    add_renamed,
    check_no_empty,
    command_parser,
)
from regionroute.config.io import add_config_arguments, dump_config, load_config, save_config
from regionroute.errors import Parser, UserError
from regionroute.files import check_output_folder

if TYPE_CHECKING:
    from torch import Tensor

    from pseudo_labels.stylemamba.config import MambaConfig
    from pseudo_labels.stylemamba.networks import Names
    from pseudo_labels.stylemamba.saved import SavedStyle

ENCODER, VAE = "google/siglip-base-patch16-224", "stabilityai/sd-vae-ft-mse"
FIT = """\
examples:
  regionroute mamba fit --prompt "Van Gogh starry night" --images photos/ --out styles/starry
  regionroute mamba fit --prompt woodcut --images dog.jpg --region dog --labels labels.jsonl \\
      --out styles/woodcut fit.steps=30
  regionroute mamba fit --style-image monet.jpg --images photo.jpg --out styles/monet \\
      --vgg vgg16.safetensors --vae patch fusion.width=64

Writes style.json with scores, the weights, losses.jsonl, config.yaml and preview.png. Several
--prompt or --style-image are fitted into one module, for blends."""
TRAIN = """\
examples:
  regionroute mamba train --bank styles.yaml --images photos/ --out bank --vgg vgg16.safetensors
  regionroute mamba train --bank prompts.txt --images photos/ --out styles/bank train.steps=20000

A bank in YAML is a styles file of `regionroute label` whose styles may have `words`, a list of
descriptions, and `image`, a style image. Their stylizers paint targets, which one small network
learns, and with --vgg then the Gram statistics of the style images. Needs no further weights;
`apply --bank DIR --style WORDS` takes its styles.

Otherwise the bank is a file with one style per line: words, or with --style-images the file
names of style images, relative to the bank. A stopped run resumes from its newest checkpoint when
the command is given again. Afterwards `apply --name STYLE` takes a style of the bank and
`apply --prompt WORDS` any other."""


def fit_parser() -> Parser:
    """The arguments of `fit`; building it imports nothing heavy."""
    parser = _parser("fit", "Fit a style to one or a few photos.", FIT)
    style = parser.add_argument_group("the style")
    style.add_argument("--prompt", action="append", metavar="WORDS", help="style in words")
    style.add_argument("--style-image", action="append", metavar="FILE", help="image of the style")
    add_renamed(style, "--picture", "--style-image", const=list)
    add_region(parser, "fit to one object")
    return parser


def train_parser() -> Parser:
    """The arguments of `train`; building it imports nothing heavy."""
    parser = _parser("train", "Train one module for a bank of styles.", TRAIN)
    parser.add_argument("--bank", metavar="FILE", help="styles, one per line")
    parser.add_argument(
        "--style-images", action="store_true", help="read the bank as image files, not as words"
    )
    add_renamed(parser, "--pictures", "--style-images", nargs=0, const=True)
    return parser


def fit(argv: Sequence[str]) -> int:
    """Runs ``regionroute mamba fit``.

    Raises:
        UserError: anything the user has to fix.
    """
    args = fit_parser().parse_intermixed_args(argv)
    check_no_empty(args)
    if bool(args.prompt) == bool(args.style_image):
        raise UserError("give the style either by --prompt WORDS or by --style-image FILE")
    config = _config(args, bool(args.style_image))
    if args.print_config:
        print(dump_config(config))
        return 0
    from pseudo_labels.stylemamba.make import FitJob, fit_style
    from pseudo_labels.stylemamba.networks import find_images
    from regionroute.models.devices import pick_device, quiet_libraries

    quiet_libraries()
    folder = _output(args)
    images = find_images(args.images)
    job = FitJob(
        tuple(args.style_image or args.prompt),
        bool(args.style_image),
        tuple(images),
        _networks(args),
        _regions(args, images),
    )
    saved = fit_style(job, config, folder, pick_device(args.device))
    save_config(config, folder)
    _report(saved, folder)
    return 0


def train(argv: Sequence[str]) -> int:
    """Runs ``regionroute mamba train``.

    Raises:
        UserError: anything the user has to fix.
    """
    args = train_parser().parse_intermixed_args(argv)
    check_no_empty(args)
    if args.bank and Path(args.bank).suffix in (".yaml", ".yml"):
        return _train_bank(args)
    config = _config(args, args.style_images)
    if args.print_config:
        print(dump_config(config))
        return 0
    if not args.bank:
        raise UserError("--bank is missing: name the file of styles, one per line")
    from pseudo_labels.stylemamba import training
    from pseudo_labels.stylemamba.networks import find_images
    from regionroute.models.devices import pick_device, quiet_libraries

    quiet_libraries()
    folder = _output(args)
    data = training.TrainingSet(
        training.read_styles(Path(args.bank), args.style_images),
        args.style_images,
        tuple(find_images(args.images)),
        _networks(args),
    )
    saved = training.train(data, config, folder, pick_device(args.device))
    _report(saved, folder)
    return 0


def _train_bank(args: argparse.Namespace) -> int:
    """Train a bank of painters."""
    from pseudo_labels.stylemamba.bank.config import BankConfig

    config = load_config(args.config, args.overrides, BankConfig)
    if args.print_config:
        print(dump_config(config))
        return 0
    from pseudo_labels.stylemamba.bank.styles import read_bank
    from pseudo_labels.stylemamba.bank.train import BankData, train_bank
    from pseudo_labels.stylemamba.networks import find_images
    from regionroute.models.devices import quiet_libraries
    from regionroute.models.vgg import load_vgg

    quiet_libraries()
    folder = _output(args)
    vgg = load_vgg(args.vgg) if args.vgg else None
    data = BankData(read_bank(args.bank), tuple(find_images(args.images)), vgg)
    bank = train_bank(data, config, folder)
    save_config(config, folder)
    print(
        f"{folder}: {len(bank.styles)} styles; `regionroute mamba apply PHOTO --bank {folder} "
        f"--style '{bank.styles[0][0]}' --out OUT.png`"
    )
    if vgg is None:
        print("note: without --vgg the Gram statistics of style images were not learned")
    return 0


def _parser(action: str, what: str, epilog: str) -> Parser:
    parser = command_parser(f"mamba {action}", what, epilog)
    parser.add_argument(
        "--images", action="append", metavar="PATH", help="photos, or a folder of them"
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the result")
    group = parser.add_argument_group("networks; 'random' gives small untrained ones")
    add = group.add_argument
    add("--encoder", metavar="NAME", default=ENCODER, help=f"SigLIP or CLIP ({ENCODER})")
    vae = f"AutoencoderKL, or 'patch', which is fitted to the photos ({VAE})"
    add("--vae", metavar="NAME", default=VAE, help=vae)
    add(
        "--vgg",
        metavar="FILE",
        help="safetensors of torchvision's VGG16 or VGG19: needed for style images, and keeps "
        "content better than the latents alone",
    )
    add_device(group)
    add_config_arguments(parser)
    return parser


def _config(args: argparse.Namespace, by_image: bool) -> MambaConfig:
    from pseudo_labels.stylemamba.config import ImageStyleConfig, MambaConfig

    return load_config(args.config, args.overrides, ImageStyleConfig if by_image else MambaConfig)


def _networks(args: argparse.Namespace) -> Names:
    from pseudo_labels.stylemamba.networks import Names

    return Names(args.encoder, args.vae, args.vgg)


def _output(args: argparse.Namespace) -> Path:
    for name in ("images", "out"):
        if not getattr(args, name):
            raise UserError(f"--{name} is missing; see --help for examples")
    check_output_folder(args.out)
    if Path(args.out).resolve() in [Path(name).resolve() for name in args.images]:
        raise UserError(
            f"--out {args.out}: the next run would take its preview for a photo, choose a folder "
            "other than --images"
        )
    return Path(args.out)


def _regions(args: argparse.Namespace, images: Sequence[Path]) -> tuple[Tensor, ...] | None:
    from pseudo_labels.stylemamba.networks import find_region

    if args.region is None:
        if args.labels is not None:
            raise UserError("--labels goes with --region WORD")
        return None
    if args.labels is None and len(images) > 1:
        raise UserError("--region FILE is the mask of one photo: for several give --labels FILE")
    return tuple(find_region(args.region, image, args.labels) for image in images)


def _report(saved: SavedStyle, folder: Path) -> None:
    from pseudo_labels.stylemamba.make import PREVIEW_FILE
    from pseudo_labels.stylemamba.saved import warning

    for name, scores in saved.facts.settings["scores"].items():
        print(f"{name}: directional score {scores['directional']:.3f}, SSIM {scores['ssim']:.3f}")
    print(f"{folder}: apply it with `regionroute mamba apply PHOTO --style {folder} --out OUT.png`")
    print(f"{folder / PREVIEW_FILE}: the photos restyled")
    said = warning(saved.facts.random)
    if said:
        print(f"warning: {said}", file=sys.stderr)
