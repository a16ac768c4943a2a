"""The options of ``regionroute edit`` and the checks of their values; nothing heavy is imported."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from regionroute.cli.options import (
    add_base,
    add_batch_size,
    add_device,
    add_dtype,
    add_engine,
    add_quantize,
    add_renamed,
    add_seed,
    check_least,
    command_parser,
    engine_of,
)
from regionroute.config.choices import BACKENDS, INSTANCES, MODES, SPARSE_QUALITIES
from regionroute.errors import Parser, UserError
from regionroute.files import check_input_file
from regionroute.settings_files import check_png_name

EPILOG = """\
one image:
  regionroute edit photo.png --object dog --style pixel-art --out out.png
  regionroute edit photo.png --object dog --style pixel-art --out out.png \\
      --map map.png --side-by-side compare.png --seed 3
  regionroute edit photo.png --prompt "turn the [dog] into a {pixel-art} image" --out out.png

several objects, each in its own style:
  regionroute edit photo.png --object dog --style pixel-art --object cup --style line-art \\
      --out out.png

a blend of styles:
  regionroute edit photo.png --object dog --style "0.6 pixel-art + 0.4 line-art" --out out.png

the style of a reference image, for bases with experts that take one (nano-photos, nano):
  regionroute edit photo.png --object dog --style-image ref.jpg --out out.png

one of several objects:
  regionroute edit photo.png --object dog --style pixel-art --instance leftmost --out out.png

many images, with the model loaded once (on a Ray cluster, once per worker: --engine ray); one
JSON object per line, paths relative to the file:
  {"image": "a.png", "object": "dog", "style": "line-art", "out": "edits/a.png", "seed": 1}
  {"image": "a.png", "object": "dog", "style_image": "ref.jpg", "out": "b.png"}
  regionroute edit --batch rows.jsonl --batch-size 8 --skip-existing

every test sample of a manifest, as eval/rses.py expects them:
  regionroute edit --manifest data/scenes --split test --out-dir runs/nano/edits \\
      --experts runs/nano/experts

a real Kontext base:
  regionroute edit photo.png --object dog --style pixel-art --out out.png \\
      --base black-forest-labs/FLUX.1-Kontext-dev --experts EXPERTS --device cuda --dtype bfloat16

All settings are written to out.json and into the metadata of the PNG.

The region map is the attention of image tokens to the style word (or the object word). It is read
at the attention sites that `regionroute calibrate` chose, else in the blocks that were supervised
in training, without experts in all blocks. --map-from names other sites, each
BLOCK[.target|.context][:HEADS][@object]: double.1 (mean over the heads), double.1.context:2 (head
2, queries of the source image), all@object (every block, the object word). Several sites have
equal weight."""

ONE = (
    "object",
    "style",
    "prompt",
    "out",
    "map",
    "side_by_side",
    "region_map",
    "style_image",
)  # options of a single image
SEVERAL = ("batch_size", "skip_existing")
OF_MANIFEST = ("split", "out_dir")


def parser() -> Parser:
    """The argument parser; building it imports nothing heavy."""
    parser = command_parser(
        "edit",
        "Restyle a named object in an image and keep the rest. The output has the size of the "
        "input.",
        EPILOG,
    )
    parser.add_argument("image", nargs="?", type=Path, help="image to edit")
    one = parser.add_argument_group("one image")
    one.add_argument(
        "--object", action="append", help="word for the object, such as dog; repeat it for more"
    )
    one.add_argument(
        "--style",
        action="append",
        help='name of a style, such as pixel-art, or a blend "0.6 A + 0.4 B"',
    )
    one.add_argument(
        "--style-image", type=Path, metavar="FILE", action="append",
        help="reference image of the style, instead of --style; one per object",
    )  # fmt: skip
    one.add_argument("--prompt", help="use this wording: object in [brackets], style in {braces}")
    one.add_argument("--out", type=Path, metavar="PNG", help="write the edited image here")
    one.add_argument(
        "--map",
        type=Path,
        metavar="PNG",
        help="write the region map here; its boundary is at 128. It is of the objects that were "
        "edited; if none was found, it shows where the model looked",
    )
    one.add_argument(
        "--side-by-side",
        type=Path,
        metavar="PNG",
        help="write source, edit and map here, side by side",
    )
    one.add_argument(
        "--region-map", type=Path, metavar="PNG", action="append",
        help="restyle here (white; grey: in part), not in the predicted region; one per object",
    )  # fmt: skip
    many = parser.add_argument_group("many images")
    many.add_argument("--batch", type=Path, metavar="JSONL", help="edit the rows of this file")
    many.add_argument(
        "--manifest", type=Path, metavar="DIR", help="edit the samples of this manifest"
    )
    many.add_argument("--split", help="split of the manifest (test)")
    many.add_argument(
        "--out-dir", type=Path, metavar="DIR", help="write the edits of the manifest here"
    )
    add_batch_size(many, default=None)
    many.add_argument(
        "--skip-existing", action="store_true", default=None, help="skip edits whose output exists"
    )
    _add_how(parser)
    model = parser.add_argument_group("model")
    add_base(model, None, "the base of the experts, else nano-photos")
    model.add_argument(
        "--revision", metavar="NAME", help="branch, tag or commit of a hub id (its main branch)"
    )
    model.add_argument(
        "--experts", metavar="DIR", help="folder of style experts (those bundled with the base)"
    )
    model.add_argument("--zero-shot", action="store_true", help="use the base alone, in any style")
    model.add_argument("--steps", type=int, help="sampling steps (default of the base)")
    model.add_argument("--guidance", type=float, help="guidance scale (default of the base)")
    add_seed(model, "the noise")
    add_device(model)
    add_dtype(model)
    add_quantize(model)
    add_engine(parser, "1")
    return parser


def _add_how(parser: Parser) -> None:
    how = parser.add_argument_group("method")
    how.add_argument(
        "--mode", choices=MODES,
        help="routed: the region map decides where the style acts, the default for experts trained "
        "for it; plain: the prompt alone, as in the paper",
    )  # fmt: skip
    how.add_argument(
        "--lock-background", action=argparse.BooleanOptionalAction,
        help="keep every pixel outside the region exactly (on when routed)",
    )  # fmt: skip
    how.add_argument(
        "--map-from", metavar="SITES",
        help="read region maps at these attention sites: a file of `regionroute calibrate`, or "
        'text such as "double.1.context:2 all@object" (as calibrated or supervised)',
    )  # fmt: skip
    how.add_argument(
        "--attention-backend", choices=BACKENDS, default="auto",
        help="kernel of the attention that maps are read from, see `regionroute doctor` (auto)",
    )  # fmt: skip
    how.add_argument(
        "--strength", type=float, default=1.0,
        help="strength of the style, from 0 (the photo itself) to 1, when routed (1)",
    )  # fmt: skip
    how.add_argument(
        "--instance", choices=INSTANCES, default="all",
        help="edit this one of several objects of the word, when routed (all)",
    )  # fmt: skip
    how.add_argument(
        "--refine-crop", action=argparse.BooleanOptionalAction,
        help="restyle small objects of large images once more in a crop around them (default of "
        "the base)",
    )  # fmt: skip
    how.add_argument(
        "--sparse", action=argparse.BooleanOptionalAction,
        help="after the first model call compute only the object in most steps, see "
        "docs/explanation/sparse.md (on when routed with a locked background, 4 steps or more and "
        "512 px or more); plain: needs --region-map and --lock-background",
    )  # fmt: skip
    how.add_argument(
        "--sparse-quality", choices=SPARSE_QUALITIES, default="balanced",
        help="how close a sparse edit is to that of --no-sparse, see docs/measured/sparse.md "
        "(balanced)",
    )  # fmt: skip
    how.add_argument(
        "--force", action="store_true",
        help="edit even if the object seems to be absent; without it such an image is left "
        "unchanged, with a warning",
    )  # fmt: skip
    how.add_argument(
        "--keep-exif", action="store_true",
        help="store the EXIF of the image in the edit (transparency and colour profile are always "
        "kept)",
    )  # fmt: skip
    add_renamed(how, "--closer", "--refine-crop", nargs=0, const=True)
    add_renamed(how, "--no-closer", "--no-refine-crop", dest="refine_crop", nargs=0, const=False)


def check_arguments(args: argparse.Namespace) -> None:
    """Check the arguments before anything is loaded.

    Raises:
        UserError: none or several of image, batch and manifest; options of another of these;
            numbers out of range; files of a single edit that cannot be.
    """
    modes = [name for name in ("image", "batch", "manifest") if getattr(args, name)]
    if len(modes) != 1:
        raise UserError(
            "give one of an image, --batch ROWS or --manifest DIR"
            + (f", not {' and '.join(modes)} together" if modes else "; see --help for examples")
        )
    foreign = {
        "image": SEVERAL + OF_MANIFEST,
        "batch": ONE + OF_MANIFEST,
        "manifest": ONE,
    }[modes[0]]
    for name in foreign:
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            where = {"image": "a single image", "batch": "--batch (write it in the rows)"}
            raise UserError(f"{option} cannot be used with {where.get(modes[0], '--manifest')}")
    if args.zero_shot and args.experts:
        raise UserError("--zero-shot uses the base alone: remove --experts")
    check_least(args, {"steps": 1, "batch_size": 1})
    if modes == ["image"] and (engine_of(args).on_ray or args.workers):
        raise UserError("--engine and --workers are for many images: --batch or --manifest")
    if args.guidance is not None and not (math.isfinite(args.guidance) and args.guidance >= 0):
        raise UserError(f"--guidance {args.guidance}: must be 0 or more")
    if not 0 <= args.strength <= 1:
        raise UserError(f"--strength {args.strength}: must be between 0 and 1")
    if not 0 <= args.seed < 2**63:
        raise UserError(f"--seed {args.seed}: must be between 0 and 2^63 - 1")
    _check_mode(args, modes[0])


def _check_mode(args: argparse.Namespace, mode: str) -> None:
    if mode == "image":
        if not args.out:
            raise UserError("--out is missing: name the PNG to write")
        for path in (args.out, args.map, args.side_by_side):
            if path is not None:
                check_png_name(path)
        for path in (args.image, *(args.region_map or ()), *(args.style_image or ())):
            check_input_file(path, "image")
        _check_words(args)
    if mode == "manifest" and not args.out_dir:
        raise UserError("--out-dir is missing: name the folder for the manifest's edits")


def _check_words(args: argparse.Namespace) -> None:
    """As many styles, in words or images, as objects; a marked prompt may name both."""
    if args.style and args.style_image:
        raise UserError("give --style or --style-image, not both")
    if args.zero_shot and args.style_image:
        raise UserError("--zero-shot: a style image needs experts, leave --zero-shot out")
    if not args.prompt:
        for name in ("object",) if args.style_image else ("object", "style"):
            if not all(words.strip() for words in getattr(args, name) or [""]):
                raise UserError(f"--{name} is missing or empty: give a word, or mark a --prompt")
    objects = len(args.object or [""])
    if args.region_map and args.object and len(args.region_map) != objects:
        raise UserError(
            f"{len(args.region_map)} --region-map for {objects} --object: give one for each, in "
            "the same order"
        )
    name = "--style-image" if args.style_image else "--style"
    if objects != len(args.style_image or args.style or [""]):
        raise UserError(f"give as many {name} as --object, in the same order")
