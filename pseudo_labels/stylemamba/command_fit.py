"""`regionroute mamba fit` and `regionroute mamba train`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pseudo_labels.stylemamba.config import MambaConfig, PictureConfig
from pseudo_labels.stylemamba.make import PREVIEW_FILE, FitJob, fit_style
from pseudo_labels.stylemamba.networks import (
    ENCODER,
    VAE,
    Names,
    find_pictures,
    find_region,
)
from pseudo_labels.stylemamba.saved import SavedStyle, warning
from pseudo_labels.stylemamba.training import Bank, read_bank, train
from regionroute.config.io import add_config_arguments, dump_config, load_config, save_config
from regionroute.errors import Parser, UserError
from regionroute.files import check_output_folder
from regionroute.models.devices import pick_device

_FIT = """\
examples:
  regionroute mamba fit --prompt "Van Gogh starry night" --images photos/ --out styles/starry
  regionroute mamba fit --prompt woodcut --images dog.jpg --region dog --labels labels.jsonl \\
      --out styles/woodcut fit.steps=30
  regionroute mamba fit --picture monet.jpg --images photo.jpg --out styles/monet \\
      --vgg vgg16.safetensors --vae patch fusion.width=64

Writes style.json with scores, the weights, losses.jsonl, config.yaml and preview.png. Several
--prompt or --picture go into one module, for blends."""
_TRAIN = """\
example:
  regionroute mamba train --bank prompts.txt --images photos/ --out styles/bank train.steps=20000

The bank has one style a line: words, or with --pictures the file names of style pictures, relative
to the bank. A stopped run goes on from its newest checkpoint when the command is given again.
Afterwards `apply --name STYLE` takes a style of the bank and `apply --prompt WORDS` any other."""


def fit_main(argv: Sequence[str]) -> int:
    """Runs ``regionroute mamba fit``.

    Raises:
        UserError: anything the user has to mend.
    """
    parser = _parser("fit", "Fit a style to one or a few photos.", _FIT)
    style = parser.add_argument_group("the style")
    style.add_argument("--prompt", action="append", metavar="WORDS", help="the style in words")
    style.add_argument("--picture", action="append", metavar="FILE", help="or a picture of it")
    parser.add_argument("--region", help="fit to an object only: its mask, or with --labels a word")
    parser.add_argument("--labels", metavar="FILE", help="labels file with the words' masks")
    args = parser.parse_intermixed_args(argv)
    if bool(args.prompt) == bool(args.picture):
        raise UserError("give the style either by --prompt WORDS or by --picture FILE")
    config = load_config(
        args.config, args.overrides, PictureConfig if args.picture else MambaConfig
    )
    if args.print_config:
        print(dump_config(config))
        return 0
    folder = _output(args)
    images = find_pictures(args.images)
    job = FitJob(
        tuple(args.picture or args.prompt),
        bool(args.picture),
        tuple(images),
        Names(args.encoder, args.vae, args.vgg),
        _regions(args, images),
    )
    saved = fit_style(job, config, folder, pick_device(args.device))
    save_config(config, folder)
    _tell(saved, folder)
    return 0


def train_main(argv: Sequence[str]) -> int:
    """Runs ``regionroute mamba train``.

    Raises:
        UserError: anything the user has to mend.
    """
    parser = _parser("train", "Train one module for a bank of styles.", _TRAIN)
    parser.add_argument("--bank", metavar="FILE", help="styles, one a line")
    parser.add_argument(
        "--pictures", action="store_true", help="the bank names pictures, not words"
    )
    args = parser.parse_intermixed_args(argv)
    config = load_config(
        args.config, args.overrides, PictureConfig if args.pictures else MambaConfig
    )
    if args.print_config:
        print(dump_config(config))
        return 0
    if not args.bank:
        raise UserError("--bank is missing: name the file of styles, one a line")
    folder = _output(args)
    bank = Bank(
        read_bank(Path(args.bank), args.pictures),
        args.pictures,
        tuple(find_pictures(args.images)),
        Names(args.encoder, args.vae, args.vgg),
    )
    saved = train(bank, config, folder, pick_device(args.device))
    _tell(saved, folder)
    return 0


def _parser(action: str, what: str, epilog: str) -> Parser:
    parser = Parser(
        prog=f"regionroute mamba {action}",
        description=what,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--images", action="append", metavar="PATH", help="photos, or a folder of them"
    )
    parser.add_argument("--out", metavar="DIR", help="folder of the result")
    networks = parser.add_argument_group("networks; 'random' gives small ones without skill")
    networks.add_argument(
        "--encoder", default=ENCODER, help="SigLIP or CLIP, folder or hub id (%(default)s)"
    )
    networks.add_argument(
        "--vae",
        default=VAE,
        help="AutoencoderKL, folder or hub id; or 'patch', fitted to the photos (%(default)s)",
    )
    networks.add_argument(
        "--vgg",
        metavar="FILE",
        help="safetensors of torchvision's VGG16 or VGG19: sees style pictures, and keeps content "
        "better than the latents alone",
    )
    networks.add_argument("--device", help="cpu, cuda, cuda:1, … (cuda where there is one)")
    add_config_arguments(parser)
    return parser


def _output(args: argparse.Namespace) -> Path:
    for name in ("images", "out"):
        if not getattr(args, name):
            raise UserError(f"--{name} is missing; see --help for examples")
    check_output_folder(args.out)
    return Path(args.out)


def _regions(args: argparse.Namespace, images: Sequence[Path]) -> tuple[Tensor, ...] | None:
    if args.region is None:
        if args.labels is not None:
            raise UserError("--labels goes with --region WORD")
        return None
    if args.labels is None and len(images) > 1:
        raise UserError("--region FILE is the mask of one photo: for several give --labels FILE")
    return tuple(find_region(args.region, image, args.labels) for image in images)


def _tell(saved: SavedStyle, folder: Path) -> None:
    for name, scores in saved.facts.settings["scores"].items():
        print(f"{name}: directional score {scores['directional']:.3f}, SSIM {scores['ssim']:.3f}")
    print(f"{folder}: apply it with `regionroute mamba apply PHOTO --style {folder} --out OUT.png`")
    print(f"{folder / PREVIEW_FILE}: the photos restyled")
    said = warning(saved.facts.random)
    if said:
        print(f"warning: {said}", file=sys.stderr)
