"""``regionroute experts``: shows experts, takes them to and from other programs, merges them."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionroute.errors import Parser, UserError, command

if TYPE_CHECKING:
    from regionroute.adapters import ExpertRegistry
    from regionroute.models.loading import Backbone

EPILOG = """\
examples:
  regionroute experts show runs/nano/experts
  regionroute experts export runs/kontext/experts --format comfyui --out ComfyUI/models/loras
  regionroute experts export runs/kontext/experts --style "0.6 pixel-art + 0.4 line-art" \\
      --name pixel-lines --format diffusers --out loras
  regionroute experts import pixel-art=weights/pixel-art.safetensors line-art=lines.safetensors \\
      --base black-forest-labs/FLUX.1-Kontext-dev --out experts
  regionroute experts merge runs/nano/experts --style pixel-art --base nano --out pixel-art-base
  regionroute experts card runs/nano/experts --scores scores/summary.json --license cc0-1.0"""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = Parser(
        prog="regionroute experts",
        description="Shows style experts, writes them for diffusers, PEFT or ComfyUI, takes "
        "ordinary LoRA files as experts, and merges them into a base.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def add(name: str, summary: str, *, folder: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if folder:
            sub.add_argument("experts", type=Path, help="folder with experts.json")
        return sub

    add("show", "What a folder of experts holds.")
    export = add("export", "Write experts as LoRA files of another program; needs no base.")
    export.add_argument(
        "--format", choices=("diffusers", "peft", "comfyui"), required=True,
        help="comfyui: the original Flux model's layers, which sd-scripts uses as well",
    )  # fmt: skip
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="where they go")
    export.add_argument("--style", help='a style, or a blend: "0.6 a + 0.4 b" (all, one by one)')
    export.add_argument("--name", help="of a blend's file (its text)")
    take = add("import", "Take ordinary LoRA files, trained elsewhere, as experts.", folder=False)
    take.add_argument("files", nargs="+", metavar="STYLE=FILE", help="one expert each")
    take.add_argument("--base", required=True, help="what they were trained on; only its sizes")
    take.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of experts")
    take.add_argument("--license", help="of the files, for the model card")
    merge = add("merge", "Write a base with one expert, or a blend, in its weights.")
    merge.add_argument("--style", required=True, help='a style, or a blend: "0.6 a + 0.4 b"')
    merge.add_argument("--base", default="nano", help="nano, a Kontext folder or a hub id (nano)")
    merge.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the base")
    merge.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
        help="of the networks (float32)",
    )  # fmt: skip
    card = add("card", "Write the model card again, with scores or a licence.")
    card.add_argument("--scores", type=Path, metavar="JSON", help="summary.json of eval/rses.py")
    card.add_argument("--method", help="whose scores, if the summary has several")
    card.add_argument("--license", help="licence of the experts, as the hub names it")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0.

    Raises:
        UserError: anything the user has to mend.
    """
    args = parser().parse_args(argv)
    from regionroute.models.devices import quiet_libraries

    quiet_libraries()
    actions = {"show": _show, "export": _export, "import": _import, "merge": _merge, "card": _card}
    actions[args.action](args)
    return 0


def _show(args: argparse.Namespace) -> None:
    from regionroute.adapters import read_registry

    registry = read_registry(args.experts)
    print(f"base:    {registry.base} ({registry.fingerprint})")
    print(f"layers:  {_targets(registry)}")
    print(f"rank:    {registry.rank}, alpha {registry.alpha:g}")
    if registry.shared_rank:
        print(f"shared:  one more expert of rank {registry.shared_rank} for all")
    if registry.router and registry.learned:
        print(f"router:  {registry.router.top_k} at a time, by an example picture of the style")
        print(f"styles:  {', '.join(registry.extra.get('styles', ())) or 'not stated'}")
    print(f"license: {registry.extra.get('license') or 'not stated'}")
    print(f"experts: {len(registry.experts)}")
    for style, entry in zip(registry.styles, registry.experts, strict=True):
        print(f"  {style.name:16} {entry.file}")


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


def _merge(args: argparse.Namespace) -> None:
    import torch

    from regionroute.adapters import blend_weights, load_experts, merge, parse_blend, read_registry
    from regionroute.files import check_output_folder
    from regionroute.models.loading import load_base

    registry = read_registry(args.experts)
    blend = parse_blend(args.style, registry.name)
    check_output_folder(args.out)
    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"{args.out}: the folder is not empty, name a new one for the merged base")
    backbone = load_base(args.base, getattr(torch, args.dtype))
    registry = load_experts(args.experts, backbone)
    merge(backbone.transformer, blend_weights(blend, registry), keep=False)
    write_base(backbone, args.out)
    print(f"{args.base} with {args.style}: {args.out}")


def write_base(backbone: Backbone, out: Path) -> None:
    """Writes a base's folder anew with the transformer as it is now, complete or not at all.

    Args:
        backbone: loaded from files, which the other parts are copied from.
        out: new or empty.
    """
    from huggingface_hub import hf_hub_download

    from regionroute.models.source import INDEX_FILE, SETTINGS_FILE, read_index, resolve

    source = resolve(backbone.name)
    index = read_index(backbone.name, source)
    if not isinstance(source, Path):
        source = Path(hf_hub_download(source, INDEX_FILE)).parent
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name in (INDEX_FILE, SETTINGS_FILE):
            if (source / name).is_file():
                shutil.copy(source / name, partial / name)
        for part in index:
            if part != "transformer" and (source / part).is_dir():
                shutil.copytree(source / part, partial / part)
        backbone.transformer.save_pretrained(partial / "transformer")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _card(args: argparse.Namespace) -> None:
    from regionroute.adapters import read_registry
    from regionroute.adapters.files.card import write_card
    from regionroute.adapters.files.registry import REGISTRY_FILE
    from regionroute.files import read_json, write_json

    registry = read_registry(args.experts)
    extra = dict(registry.extra)
    if args.scores:
        extra["metrics"] = scores(read_json(args.scores), args.scores, args.method)
    elif args.method:
        raise UserError("--method: it says whose scores, give the summary with --scores")
    if args.license:
        extra["license"] = args.license
    registry = registry.model_copy(update={"extra": extra})
    path = write_card(args.experts, registry)
    write_json(args.experts / REGISTRY_FILE, registry.model_dump(by_alias=True))
    print(path)


def scores(summary: Any, path: Path, method: str | None) -> dict[str, dict[str, float]]:
    """The mean scores of one method over all samples, by the metrics' labels.

    Args:
        summary: what eval/rses.py wrote into summary.json.
        path: of the summary, for errors.
        method: whose; None: the only one that is an edit.

    Returns:
        "mean", "low" and "high" of every score that could be computed.

    Raises:
        UserError: not such a summary, or the method is not in it or not clear.
    """
    try:
        methods, metrics = summary["methods"], summary["metrics"]
        named = [name for name in methods if name not in ("floor", "ceiling")]
        if method is None and len(named) == 1:
            method = named[0]
        if method not in methods:
            raise UserError(f"{path}: name one of its methods with --method: {', '.join(methods)}")
        rows = methods[method]["slices"]["all"]
        return {
            metrics[name]["label"]: {key: float(row[key]) for key in ("mean", "low", "high")}
            for name, row in rows.items()
            if name in metrics and None not in (row["mean"], row["low"], row["high"])
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: this is not a summary.json of eval/rses.py ({error})") from error


if __name__ == "__main__":
    raise SystemExit(main())
