"""The mean of the weights of finished bases that one run made from another.

    python train/pretrain/average.py runs/first/base runs/second/base --out runs/mean/base

Runs that resume from each other end near each other, and between them there may be weights better
than both (Wortsman et al., arXiv:2203.05482); measure before you keep them. What the bases have
beside weights, and weights that are no fractions, they must have in common; the card is the last
one's, with a line on the mean.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from regionroute.errors import Parser, UserError, command
from regionroute.folders import atomic_folder, check_atomic_folder

CARD = "README.md"
EXPERTS = "experts"  # theirs are the base's that they were trained on


@command
def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = Parser(
        prog="train/pretrain/average.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bases", nargs="+", type=Path, help="folders of two or more bases")
    parser.add_argument("--out", type=Path, required=True, help="folder of the mean")
    args = parser.parse_args(argv)
    if len(args.bases) < 2:
        raise UserError("bases: give two or more folders")
    check_atomic_folder(args.out)
    mean_of_bases(args.bases, args.out)
    print(f"mean of {len(args.bases)} bases saved in {args.out}")
    return 0


def mean_of_bases(bases: list[Path], out: Path) -> None:
    """Writes a base with the mean weights; an older one is replaced when it is complete.

    Raises:
        UserError: a folder that is not a base, or bases of different kinds.
    """
    for folder in bases:
        if not (folder / "model_index.json").is_file():
            raise UserError(f"{folder}: no base, it has no model_index.json")
    with atomic_folder(out) as partial:
        shutil.copytree(bases[-1], partial, ignore=shutil.ignore_patterns(EXPERTS))
        for path in sorted(path for path in partial.rglob("*") if path.is_file()):
            name = path.relative_to(partial)
            others = [folder / name for folder in bases[:-1]]
            if path.suffix == ".safetensors":
                mean = _mean([_weights(file) for file in (*others, path)], name)
                save_file(mean, path, metadata={"format": "pt"})
            elif str(name) == CARD:
                told = f"Its weights are the mean of {len(bases)} runs, the last of them:\n"
                path.write_text(f"{told}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
            else:
                _check_same(path, others, bases, name)


def _weights(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read ({error}), give bases of one kind") from error


def _mean(each: list[dict[str, Tensor]], name: Path) -> dict[str, Tensor]:
    last = each[-1]
    found: dict[str, Tensor] = {}
    for key, tensor in last.items():
        tensors = [weights.get(key) for weights in each]
        if any(t is None or t.shape != tensor.shape or t.dtype != tensor.dtype for t in tensors):
            raise UserError(f"{name}: {key} is not the same in all bases, give bases of one kind")
        stacked = torch.stack([t for t in tensors if t is not None])
        if tensor.is_floating_point():
            found[key] = stacked.float().mean(0).to(tensor.dtype)
        elif bool((stacked == tensor).all()):
            found[key] = tensor
        else:
            raise UserError(f"{name}: {key} is of whole numbers and differs, it has no mean")
    return found


def _check_same(path: Path, others: list[Path], bases: list[Path], name: Path) -> None:
    for folder, other in zip(bases, others, strict=False):
        if not other.is_file() or not filecmp.cmp(path, other, shallow=False):
            raise UserError(f"{name}: differs between {folder} and {bases[-1]}: no mean of these")


if __name__ == "__main__":
    raise SystemExit(main())
