"""``regionroute experts``: show, export, import and merge style experts."""

from __future__ import annotations

import argparse
import glob
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from regionroute.cli.options import add_base, add_dtype, command_parser
from regionroute.config.choices import DTYPES
from regionroute.errors import Parser, UserError, command, printable

if TYPE_CHECKING:
    from regionroute.adapters import ExpertRegistry

EPILOG = """\
examples:
  regionroute experts show runs/nano/experts
  regionroute experts export runs/kontext/experts --format comfyui --out ComfyUI/models/loras
  regionroute experts export runs/kontext/experts --style "0.6 pixel-art + 0.4 line-art" \\
      --name pixel-lines --format diffusers --out loras
  regionroute experts import pixel-art=weights/pixel-art.safetensors line-art=lines.safetensors \\
      --base black-forest-labs/FLUX.1-Kontext-dev --out experts
  regionroute experts compress runs/nano/experts --rank 8 --dtype float8 --out small
  regionroute experts merge runs/nano/experts --style pixel-art --out pixel-art-base
  regionroute experts card runs/nano/experts --scores scores/summary.json --license cc0-1.0
  regionroute experts push runs/nano/experts --to-hub me/nano-styles --dry-run"""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "experts",
        "Show style experts, write them for diffusers, PEFT or ComfyUI, import "
        "ordinary LoRA files as experts, compress them, and merge them into a base.",
        EPILOG,
    )
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, summary: str, *, folder: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if folder:
            sub.add_argument("experts", type=Path, help="folder with experts.json")
        return sub

    action("show", "Print what a folder of experts holds.")
    export = action("export", "Write experts as LoRA files of another program; needs no base.")
    export.add_argument(
        "--format",
        choices=("diffusers", "peft", "comfyui"),
        required=True,
        help="comfyui: the layers of the original Flux model, which sd-scripts uses as well",
    )
    _add_out(export, "folder of the files")
    export.add_argument("--style", help='style, or a blend: "0.6 a + 0.4 b" (all, one by one)')
    export.add_argument("--name", help="name of a blend's file (its text)")
    take = action("import", "Import LoRA files, trained elsewhere, as experts.", folder=False)
    take.add_argument("files", nargs="+", metavar="STYLE=FILE", help="one expert each")
    take.add_argument(
        "--base", required=True, metavar="NAME", help="base they were trained on; only sizes matter"
    )
    _add_out(take, "folder of experts")
    take.add_argument("--license", help="licence of the files, for the model card")
    small = action("compress", "Write experts again at a lower rank, in another precision.")
    small.add_argument("--rank", type=int, help="rank of the new experts, by SVD (the same)")
    small.add_argument(
        "--dtype",
        choices=(*DTYPES, "float8"),
        required=True,
        help="precision of the files",
    )
    _add_out(small, "folder of the new experts")
    merge = action("merge", "Write a base with one expert, or a blend, merged into its weights.")
    merge.add_argument("--style", required=True, help='style, or a blend: "0.6 a + 0.4 b"')
    add_base(merge, None, "that of the experts")
    add_dtype(merge)
    _add_out(merge, "folder of the base")
    card = action("card", "Write the model card again, with scores or a licence.")
    card.add_argument("--scores", type=Path, metavar="JSON", help="summary.json of the scores")
    card.add_argument("--method", help="method whose scores to use (the only one)")
    card.add_argument("--license", help="licence of the experts, as the hub names it")
    push = action("push", "Upload experts with their model card to the Hugging Face Hub.")
    push.add_argument("--to-hub", required=True, metavar="OWNER/NAME", help="repository on the hub")
    push.add_argument(
        "--public", action="store_true", help="make a new repository public (private)"
    )
    push.add_argument("--dry-run", action="store_true", help="list what would be uploaded, and end")
    return parser


def _add_out(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=what)


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
    args = parser().parse_args(argv)
    from regionroute.models.devices import quiet_libraries

    quiet_libraries()
    actions = {
        "show": _show,
        "export": _export,
        "import": _import,
        "compress": _compress,
        "merge": _merge,
        "card": _card,
        "push": _push,
    }
    actions[args.action](args)
    return 0


def _show(args: argparse.Namespace) -> None:
    from regionroute.adapters import read_registry

    registry = read_registry(args.experts)
    lines = [f"base:    {registry.base} ({registry.fingerprint})"]
    lines.append(f"layers:  {_targets(registry)}")
    lines.append(f"rank:    {registry.rank}, alpha {registry.alpha:g}")
    if registry.shared_rank:
        lines.append(f"shared:  one more expert of rank {registry.shared_rank} for all")
    if registry.router and registry.learned:
        lines.append(f"router:  {registry.router.top_k} at a time, chosen by a style image")
        lines.append(f"styles:  {', '.join(registry.trained_styles) or 'not stated'}")
    lines.append(f"license: {registry.extra.get('license') or 'not stated'}")
    lines.append(f"experts: {len(registry.experts)}")
    lines += [f"  {entry.style:16} {entry.file}" for entry in registry.experts]
    print(printable("\n".join(lines)))  # the texts may be a stranger's


def _targets(registry: ExpertRegistry) -> str:
    targets = registry.targets
    return targets if isinstance(targets, str) else f"{len(targets)} module names"


def _export(args: argparse.Namespace) -> None:
    from regionroute.adapters import parse_blend, read_registry
    from regionroute.adapters.files.formats import read_blend, write_lora
    from regionroute.files import check_output_folder

    registry = read_registry(args.experts)
    if args.name and not args.style:
        raise UserError("--name: it is for the file of one --style, name that too")
    wanted = [args.style] if args.style else [entry.style for entry in registry.experts]
    blends = {text: parse_blend(text, registry.name) for text in wanted}
    check_output_folder(args.out)
    if args.out.resolve() == args.experts.resolve():
        raise UserError(f"--out {args.out}: these are the experts themselves, name another folder")
    for text, blend in blends.items():
        lora = read_blend(args.experts, blend)
        name = args.name or (next(iter(blend)) if len(blend) == 1 else text)
        print(write_lora(lora, args.out, name, args.format, base=registry.base))


def _import(args: argparse.Namespace) -> None:
    from regionroute.adapters import experts_from_loras, save_experts
    from regionroute.data.manifest import StyleSpec
    from regionroute.files import check_output_folder
    from regionroute.models.loading import fingerprint, load_skeleton

    files = {}
    for pair in args.files:
        style, equals, file = (part.strip() for part in pair.partition("="))
        if not (equals and style and file):
            raise UserError(f"{pair}: write STYLE=FILE, for example pixel-art=pixel.safetensors")
        if style in files:
            raise UserError(f"{pair}: there is a file for {style} already, name each style once")
        files[style] = file
    check_output_folder(args.out)
    skeleton = load_skeleton(args.base)
    print_of = fingerprint(skeleton)
    names = experts_from_loras(skeleton, list(files.values()))
    save_experts(
        args.out,
        skeleton,
        [StyleSpec(style) for style in files],
        base_name=args.base,
        base_fingerprint=print_of,
        extra={
            "imported": {style: Path(file).name for style, file in files.items()},
            "license": args.license,
        },
    )
    print(f"{len(files)} experts on {len(names)} layers: {args.out}")


def _compress(args: argparse.Namespace) -> None:
    from regionroute.adapters.files.compress import compress
    from regionroute.adapters.files.export import LARGEST_CHANGE
    from regionroute.adapters.files.precision import FILE_DTYPES

    changes = compress(args.experts, args.out, FILE_DTYPES[args.dtype], args.rank)
    for style, change in changes.items():
        print(f"{printable(style):16} changed by {100 * change:.1f} %")
    before, after = (
        sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        for folder in (args.experts, args.out)
    )
    print(f"{before / 1e6:.2f} MB -> {after / 1e6:.2f} MB: {args.out}")
    if args.rank is None and max(changes.values()) > LARGEST_CHANGE:
        print(
            f"warning: the weights are too small for --dtype {args.dtype}: take a wider type",
            file=sys.stderr,
        )


def _merge(args: argparse.Namespace) -> None:
    import torch

    from regionroute.adapters import blend_weights, load_experts, merge, parse_blend, read_registry
    from regionroute.folders import check_new_folder
    from regionroute.models.formats.saving import save_base
    from regionroute.models.loading import load_base

    registry = read_registry(args.experts)
    blend = parse_blend(args.style, registry.name)
    check_new_folder(args.out)
    base = args.base or registry.base
    backbone = load_base(base, getattr(torch, args.dtype))
    registry = load_experts(args.experts, backbone)
    merge(backbone.transformer, blend_weights(blend, registry))
    save_base(backbone, args.out)
    print(f"{base} with {args.style}: {args.out}")


def _card(args: argparse.Namespace) -> None:
    from regionroute.adapters.files.card import update_card

    print(update_card(args.experts, args.scores, args.method, args.license))


def _push(args: argparse.Namespace) -> None:
    from regionroute.adapters import read_registry
    from regionroute.adapters.files.card import write_card
    from regionroute.adapters.files.formats import check_experts
    from regionroute.adapters.files.registry import REGISTRY_FILE
    from regionroute.hub import plan_upload, push

    registry = read_registry(args.experts)
    if not registry.extra.get("license"):
        raise UserError(
            f"{args.experts}: no licence is stated, and nobody could use them; first "
            f"`regionroute experts card {args.experts} --license NAME`"
        )
    check_experts(args.experts, registry)
    card = write_card(args.experts, registry)
    named = [entry.file for entry in registry.experts]
    if registry.router:
        named.append(registry.router.file)
    # `plan_upload` takes patterns, and names may have their characters, or "./" in front.
    files = [REGISTRY_FILE, card.name, *(glob.escape(Path(name).as_posix()) for name in named)]
    files += ["style_embeddings.safetensors", "style_encoder/*"]
    upload = plan_upload(args.experts, args.to_hub, "model", files, private=not args.public)
    print(upload.describe() if args.dry_run else push(upload))
