"""Smaller files of finished experts: a lower rank, another precision; needs no base."""

import shutil
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from regionroute.adapters.files.card import write_card
from regionroute.adapters.files.export import file_scale
from regionroute.adapters.files.formats import Pairs, layer_sizes, read_experts
from regionroute.adapters.files.lora_file import PREFIX, write_lora_file
from regionroute.adapters.files.precision import change, rounded
from regionroute.adapters.files.registry import REGISTRY_FILE, ExpertRegistry, read_registry
from regionroute.adapters.files.router_file import read_router, write_router
from regionroute.adapters.files.style_embeddings import FILE as EMBEDDINGS_FILE
from regionroute.errors import UserError
from regionroute.files import write_json
from regionroute.folders import atomic_folder, check_new_folder


def compress(
    folder: str | PathLike[str],
    out: str | PathLike[str],
    dtype: torch.dtype,
    rank: int | None = None,
) -> dict[str, float]:
    """Writes experts again in another precision, and cut to a lower rank.

    Each expert's B A is replaced by its best approximation of that rank (truncated singular value
    decomposition). The shared expert keeps its rank, and alpha/rank stays as it was.
    ``experts.json`` remembers the rank of the training.

    Args:
        folder: written by `save_experts`.
        out: folder of the new experts, with the style encoder of `folder`; empty or missing.
        dtype: of the files.
        rank: of the new experts, at most that of the old ones; None: the same.

    Returns:
        By style, how far what it adds to the layers (with the shared expert) differs from before:
        Frobenius norm of the difference over its own.

    Raises:
        UserError: no experts there, a damaged file, a higher rank, a value beyond the type's range,
            or an `out` that is not empty or lies in `folder`.
    """
    folder, out = Path(folder), Path(out)
    registry = read_registry(folder)
    new = _registry(registry, rank)
    check_new_folder(out)
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{out}: lies in the folder of the experts, name one outside")
    experts = read_experts(folder, registry, registry.experts)
    sizes = layer_sizes(experts[0])
    states, changes = {}, {}
    for entry, pairs in zip(registry.experts, experts, strict=True):
        state = _cut(pairs, registry.rank, new.rank)
        states[entry.file] = rounded(state, dtype, str(folder / entry.file))
        exact = _cut(pairs, registry.rank, registry.rank)  # as a state dict
        changes[entry.style] = change(exact, states[entry.file])
    with atomic_folder(out, replace=False) as partial:
        _copy_style_encoder(folder, partial)
        if router := registry.router:
            common = read_router(folder / router.file, sizes, router, len(registry.experts))
            write_router(partial / router.file, common, dtype)
        for file, state in states.items():
            write_lora_file(partial / file, state, *file_scale(new), list(sizes))
        write_card(partial, new)
        write_json(partial / REGISTRY_FILE, new.model_dump(by_alias=True))
    return changes


def _copy_style_encoder(folder: Path, out: Path) -> None:
    """What experts that are chosen by example have in addition, if these do."""
    from regionroute.adapters.style_encoder import FOLDER  # imports transformers' vision models

    for source in (folder / EMBEDDINGS_FILE, *(folder / FOLDER).rglob("*")):
        if source.is_file():
            target = out / source.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def _registry(registry: ExpertRegistry, rank: int | None) -> ExpertRegistry:
    """The new experts' registry, without the scores of the old ones."""
    extra = {k: v for k, v in registry.extra.items() if k not in ("metrics", "slices")}
    if rank is None or rank == registry.rank:
        return registry.model_copy(update={"extra": extra})
    if not 1 <= rank < registry.rank:
        raise UserError(
            f"rank {rank}: the experts have rank {registry.rank}, give a lower one, of at least 1"
        )
    extra = {"trained_rank": registry.rank} | extra
    alpha = registry.alpha * rank / registry.rank
    return registry.model_copy(update={"rank": rank, "alpha": alpha, "extra": extra})


def _cut(pairs: Pairs, before: int, after: int) -> dict[str, Tensor]:
    """A file's tensors in fp32: the expert's ranks cut to `after`, the shared ones as they are."""
    state = {}
    for name, pair in pairs.items():
        a, b = (x.float() for x in pair)
        if after < before:
            low_a, low_b = truncated(a[:before], b[:, :before], after)
            a, b = torch.cat([low_a, a[before:]]), torch.cat([low_b, b[:, before:]], 1)
        state[f"{PREFIX}{name}.lora_A.weight"] = a.contiguous()
        state[f"{PREFIX}{name}.lora_B.weight"] = b.contiguous()
    return state


def truncated(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of B A by a lower rank, in the Frobenius norm.

    Args:
        a: [R,in].
        b: [out,R].
        rank: r, at most R.

    Returns:
        A [r,in] and B [out,r], each with the square roots of the singular values.
    """
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T)
    root = s[:rank].sqrt()
    return (root[:, None] * vh[:rank]) @ q_a.T, q_b @ (u[:, :rank] * root)
