"""``regionroute edit``: one image, a file of rows, or a split of a manifest."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from regionroute.cli.start import import_pipeline
from regionroute.errors import Parser, UserError, command, printable
from regionroute.models.devices import pick_device

if TYPE_CHECKING:
    from regionroute.editing.batch import Jobs
    from regionroute.pipeline import RegionRoutePipeline

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

the style of a reference image (experts trained with experts.router=similarity):
  regionroute edit photo.png --object dog --style-image ref.jpg --out out.png --experts EXPERTS

one of several objects:
  regionroute edit photo.png --object dog --style pixel-art --instance leftmost --out out.png

many images, with the model loaded once; one JSON object per line, paths relative to the file:
  {"image": "a.png", "object": "dog", "style": "line-art", "out": "edits/a.png", "seed": 1}
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

MODES = ("routed", "plain")
QUANTIZE = ("nf4", "fp8")
INSTANCES = ("all", "largest", "leftmost", "rightmost", "topmost", "bottommost")
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
    parser = Parser(
        prog="regionroute edit",
        description="Restyle a named object in an image and keep the rest. The output has the size "
        "of the input.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
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
        "--map", type=Path, metavar="PNG", help="write the region map here; its boundary is at 128"
    )
    one.add_argument(
        "--side-by-side",
        type=Path,
        metavar="PNG",
        help="write source, edit and map here, side by side",
    )
    one.add_argument(
        "--region-map", type=Path, metavar="PNG", action="append",
        help="restyle here (white) instead of in the predicted region; one per object",
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
    many.add_argument("--batch-size", type=int, help="images of one size to edit at a time (8)")
    many.add_argument(
        "--skip-existing", action="store_true", default=None, help="skip edits whose output exists"
    )
    _add_how(parser)
    model = parser.add_argument_group("model")
    model.add_argument(
        "--base", help="nano-photos, nano (drawn scenes), a folder in diffusers' layout or a hub "
        "id (the base of the experts, else nano-photos)",
    )  # fmt: skip
    model.add_argument(
        "--experts", metavar="DIR", help="folder of style experts (those bundled with the base)"
    )
    model.add_argument("--zero-shot", action="store_true", help="use the base alone, in any style")
    model.add_argument("--steps", type=int, help="sampling steps (default of the base)")
    model.add_argument("--guidance", type=float, help="guidance scale (default of the base)")
    model.add_argument("--seed", type=int, default=0, help="seed of the noise (0)")
    model.add_argument("--device", help="cpu, cuda, cuda:1, … (cuda if available)")
    model.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="dtype of the networks (float32); bfloat16 for FLUX.1-Kontext on a GPU",
    )  # fmt: skip
    model.add_argument(
        "--quantize", choices=QUANTIZE, help="store the base in 4 (nf4) or 8 (fp8) bits"
    )
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
        "--strength", type=float, default=1.0, help="strength of the style, 0 to 1, when routed (1)"
    )
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
        help="after the first model call compute only the object in most steps (where that is "
        "faster: from 512 px and 4 steps on)",
    )  # fmt: skip
    how.add_argument(
        "--keep-exif", action="store_true",
        help="store the EXIF of the image in the edit (transparency and colour profile are always "
        "kept)",
    )  # fmt: skip
    how.add_argument("--closer", action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0, or 1 when some rows failed; they are listed on stderr.

    Raises:
        UserError: anything the user has to fix before an edit can be made.
    """
    args = parser().parse_args(argv)
    if args.closer is not None:
        from regionroute.config.aliases import note_old_name

        note_old_name("regionroute edit", "--closer", "--refine-crop")
        args.refine_crop = args.closer if args.refine_crop is None else args.refine_crop
    check_arguments(args)
    import_pipeline()
    try:
        return _edit_one(args) if args.image else _edit_many(args)
    except RuntimeError as error:
        if "out of memory" not in str(error) and "allocate memory" not in str(error):
            raise
        raise UserError(
            "not enough memory: lower --batch-size, or use --dtype bfloat16, another --device or "
            "a smaller --base"
        ) from None


def check_arguments(args: argparse.Namespace) -> None:
    """Check the arguments before anything is loaded.

    Raises:
        UserError: none or several of image, batch and manifest; options of another of these;
            numbers out of range.
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
    if args.steps is not None and args.steps < 1:
        raise UserError(f"--steps {args.steps}: must be at least 1")
    if args.guidance is not None and not (math.isfinite(args.guidance) and args.guidance >= 0):
        raise UserError(f"--guidance {args.guidance}: must be 0 or more")
    if args.batch_size is not None and args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: must be at least 1")
    if not 0 <= args.strength <= 1:
        raise UserError(f"--strength {args.strength}: must be between 0 and 1")
    if not 0 <= args.seed < 2**63:
        raise UserError(f"--seed {args.seed}: must be between 0 and 2^63 - 1")
    _check_mode(args, modes[0])


def _check_mode(args: argparse.Namespace, mode: str) -> None:
    if mode == "image":
        if not args.out:
            raise UserError("--out is missing: name the PNG to write")
        _check_words(args)
    if mode == "manifest" and not args.out_dir:
        raise UserError("--out-dir is missing: name the folder for the manifest's edits")


def _check_words(args: argparse.Namespace) -> None:
    """As many styles, in words or images, as objects; a marked prompt may name both."""
    if args.style and args.style_image:
        raise UserError("give --style or --style-image, not both")
    if not args.prompt:
        for name in ("object",) if args.style_image else ("object", "style"):
            if not all(words.strip() for words in getattr(args, name) or [""]):
                raise UserError(f"--{name} is missing or empty: give a word, or mark a --prompt")
    name = "--style-image" if args.style_image else "--style"
    if len(args.object or [""]) != len(args.style_image or args.style or [""]):
        raise UserError(f"give as many {name} as --object, in the same order")


def _edit_one(args: argparse.Namespace) -> int:
    from torch import Tensor
    from tqdm import tqdm

    from regionroute.data.images import open_image, read_image, read_soft_mask
    from regionroute.editing.outputs import Destination, check_destination, write_edit

    loaded = open_image(args.image)
    image = loaded.rgb
    size = image.shape[-2], image.shape[-1]
    destination = Destination(args.out, args.map, args.side_by_side)
    inputs = [args.image, *(args.region_map or ()), *(args.style_image or ())]
    check_destination(destination, inputs + _map_file(args))
    regions = [read_soft_mask(path, size)[0] for path in args.region_map or ()]
    style_images = [read_image(path) for path in args.style_image or ()]
    pipe = _load(args)
    steps = args.steps or pipe.backbone.settings.steps
    # The delay keeps an empty bar from being drawn before a request is refused.
    with tqdm(total=steps, desc="edit", unit="step", disable=None, delay=0.01) as bar:

        def advance(pipe: RegionRoutePipeline, step: int, time: Tensor, tensors: object) -> None:
            bar.update()

        out = pipe(
            image,
            args.object or [""],
            () if style_images else args.style or [""],
            style_image=style_images or None,
            prompt=args.prompt,
            strength=args.strength,
            region_mask=regions or None,
            mode=args.mode,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            seed=args.seed,
            instance=args.instance,
            lock_background=args.lock_background,
            refine_crop=args.refine_crop,
            sparse=args.sparse,
            callback_on_step_end=advance,
            output_region_maps=destination.wants_map,
            output_type="pt",
        )
    [edited], [region_map], [metadata] = out.images, out.region_maps, out.metadata
    assert isinstance(edited, Tensor)
    assert region_map is None or isinstance(region_map, Tensor)
    facts = {"image": str(args.image)}
    if style_images:
        facts["style_image"] = ", ".join(map(str, args.style_image))
    write_edit(
        destination, image, edited, region_map, facts | metadata,
        loaded=loaded, keep_exif=args.keep_exif,
    )  # fmt: skip
    for note in loaded.notes:
        print(printable(f"note: {args.image}: {note}"), file=sys.stderr)
    for warning in metadata.get("warnings", []):
        print(f"warning: {printable(warning)}", file=sys.stderr)
    prompts = metadata["prompt"]
    shown = prompts if isinstance(prompts, str) else " | ".join(prompts)
    print(printable(f"{args.out}: {shown}"))
    return 0


def _map_file(args: argparse.Namespace) -> list[Path]:
    """The file of --map-from, where it is one and not a list of sites."""
    return [Path(args.map_from)] if args.map_from and os.path.isfile(args.map_from) else []


def _edit_many(args: argparse.Namespace) -> int:
    from regionroute.editing.batch import manifest_rows, read_rows, run_jobs
    from regionroute.editing.request import EditOptions

    jobs: Jobs
    if args.batch:
        jobs = read_rows(args.batch, args.seed)
    else:
        jobs = manifest_rows(args.manifest, args.split or "test", args.out_dir, args.seed)
    skipped = jobs.drop_existing() if args.skip_existing else 0
    written = 0
    if jobs.jobs:
        options = EditOptions(
            args.steps, args.guidance, args.mode, args.lock_background, args.strength,
            args.instance, args.refine_crop, args.sparse,
        )  # fmt: skip
        editor, size = _load(args).editor, args.batch_size or 8
        written = run_jobs(editor, jobs, options, size, keep_exif=args.keep_exif)
    print(f"edited {written}, skipped {skipped}, failed {len(jobs.problems)}")
    for problem in jobs.problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    return 1 if jobs.problems else 0


def _load(args: argparse.Namespace) -> RegionRoutePipeline:
    import torch

    from regionroute.editing.expert_settings import read_choice
    from regionroute.models.bundled import bundled_experts, default_base
    from regionroute.pipeline import RegionRoutePipeline

    # What is wrong with these is reported before a large base is loaded.
    choice = read_choice(args.map_from) if args.map_from else None
    kind = "by_example" if args.style_image else "auto"
    experts = None if args.zero_shot else args.experts or kind
    base = args.base or default_base(experts)
    if experts == kind:
        experts = bundled_experts(base, by_example=bool(args.style_image))
    pipe = RegionRoutePipeline.from_pretrained(
        base,
        experts=experts,
        torch_dtype=getattr(torch, args.dtype),
        quantize=args.quantize,
        device=pick_device(args.device),
    )
    if choice:
        pipe.editor.read_maps(choice, "--map-from")
    return pipe


if __name__ == "__main__":
    raise SystemExit(main())
