"""Training that starts from finished experts (`experts.init_from`): each style's own, or a mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.adapters import SimilarityRouter, adapter_layers, read_registry
from regionroute.adapters.files.compress import truncated
from regionroute.adapters.files.export import (
    file_scale,
    load_expert_state_dict,
    read_expert,
)
from regionroute.adapters.files.lora_file import PREFIX
from regionroute.adapters.files.router_file import load_router_state_dict, read_router
from regionroute.errors import UserError
from regionroute.models.bundled import experts_folder

if TYPE_CHECKING:
    from torch import nn

    from regionroute.adapters.files.registry import ExpertRegistry
    from regionroute.adapters.lora_moe import LoRAMoELinear
    from regionroute.config.run import ExpertsConfig

# Of the logits, between the own expert of a style's mean embedding and the next one: weights of
# 0.95 and 0.05 at top_k=2.
GAP = 3.0


def finished_experts(
    experts: ExpertsConfig, fingerprint: str, styles: Sequence[str]
) -> ExpertRegistry:
    """The experts that a run starts from, checked by their registry alone.

    Args:
        experts: the run's settings, with `init_from`: a folder of experts by name, of the same
            base, layers, rank and alpha. Where the run has no shared expert, rank and alpha are
            those of their files, which hold theirs too. Experts without a shared one are given the
            run's new one. With `init_with` "mean" rank and alpha are free.
        fingerprint: of the base.
        styles: of the run.

    Returns:
        The folder's registry; by name cut to the run's styles, unless all make a mean.

    Raises:
        UserError: other experts than the run's: base, rank, alpha, layers, router or styles (by
            name one common style is enough, by example all must be trained).
    """
    assert experts.init_from is not None
    folder = experts_folder(experts.init_from)
    registry = read_registry(folder)
    _check(folder, registry, experts, fingerprint)
    if experts.init_with == "mean":
        return registry
    _check_sizes(folder, registry, experts)
    if experts.router == "style":
        return _select(folder, registry, styles)
    _check_all_trained(folder, registry, styles)
    return registry


def start_from(
    transformer: nn.Module,
    experts: ExpertsConfig,
    fingerprint: str,
    styles: Sequence[str],
    means: Mapping[str, Tensor] | None,
) -> None:
    """Overwrite new experts with finished ones, and gates so that styles choose their own.

    Args:
        transformer: with new experts.
        experts: see `finished_experts`.
        fingerprint: of the base.
        styles: of the run.
        means: mean embedding [Ds] of each style, for gates; None: experts by name.

    Raises:
        UserError: see `finished_experts`; more experts than the run has, or a damaged file.
    """
    assert experts.init_from is not None
    folder = experts_folder(experts.init_from)
    registry = finished_experts(experts, fingerprint, styles)
    layers = adapter_layers(transformer)
    if experts.init_with == "mean":
        _start_from_mean(layers, folder, registry)
        return
    count = next(iter(layers.values())).num_experts
    names = [entry.style for entry in registry.experts]
    wanted = styles if means is None else names
    if len(names) > count:
        raise UserError(
            f"experts.init_from={folder}: it has {len(names)} experts, set experts.num_experts "
            "to at least as many"
        )
    in_files = bool(registry.shared_rank and experts.shared_rank)
    common: dict[str, Tensor] = {}
    if (router := registry.router) and in_files:
        common = read_router(folder / router.file, _sizes(layers), router, len(names))
        load_router_state_dict(layers, common)
    for entry in registry.experts:
        state = read_expert(folder / entry.file, registry, _sizes(layers), common)
        place = wanted.index(entry.style)
        load_expert_state_dict(transformer, place, state, entry.file, shared=in_files)
    if means is not None:
        for layer in layers.values():
            assert isinstance(layer.router, SimilarityRouter)
            layer.router.gate.weight.data.copy_(
                starting_gate(names, means, layer.num_experts, layer.router.normalize)
            )


def _sizes(layers: Mapping[str, LoRAMoELinear]) -> dict[str, tuple[int, int]]:
    return {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}


def _start_from_mean(
    layers: Mapping[str, LoRAMoELinear], folder: Path, registry: ExpertRegistry
) -> None:
    """Overwrite every new expert with the mean of finished ones, cut to its rank.

    Its factors are as large as each other, as in PiSSA (Meng et al. 2024, eqs. 2 and 3).
    """
    files = [folder / entry.file for entry in registry.experts]
    states = [read_expert(file, registry, _sizes(layers), {}) for file in files]
    rank, alpha = file_scale(registry)
    for name, layer in layers.items():
        a, b = (
            torch.cat([state[f"{PREFIX}{name}.lora_{side}.weight"] for state in states], axis)
            for axis, side in enumerate("AB")
        )
        scale = (alpha / rank) / (layer.alpha / layer.rank) / len(states)
        a, b = truncated(a, b * scale, layer.rank)
        # Ranks that the mean does not need stay new: zeros in both factors would never learn.
        values = a.square().sum(1)
        used = int((values > 1e-5 * values[0]).sum())
        spare = layer.rank - used
        for place in range(layer.num_experts):
            new = layer.lora_A[place, used:]
            layer.load_expert(place, torch.cat([a[:used], new]), F.pad(b[:, :used], (0, spare)))


def starting_gate(
    names: Sequence[str], means: Mapping[str, Tensor], count: int, normalize: bool = True
) -> Tensor:
    """Gate weights [E,Ds] by which the mean embedding of a style chooses the expert of its own.

    Experts beyond the named ones are those of the styles that are least like all before.

    Args:
        names: S styles of the first experts.
        means: mean embedding [Ds] of each trained style.
        count: E, at least S.
        normalize: whether the router normalizes embeddings.
    """
    by_name = {n: F.layer_norm(x, x.shape) if normalize else x for n, x in means.items()}
    centre = torch.stack(list(by_name.values())).mean(0)
    rows = {name: F.normalize(x - centre, dim=0) for name, x in by_name.items()}
    chosen = list(names)
    while len(chosen) < min(count, len(rows)):
        known = torch.stack([rows[name] for name in chosen])
        rest = [name for name in rows if name not in chosen]
        chosen.append(min(rest, key=lambda name: float((known @ rows[name]).max())))
    gate = torch.stack([rows[name] for name in chosen])
    logits = gate @ torch.stack([by_name[name] for name in chosen]).T  # [E,E], own on the diagonal
    own = logits.diagonal()
    others = logits.masked_fill(torch.eye(len(chosen), dtype=torch.bool), -torch.inf).amax(0)
    gap = (own - others).clamp(min=0).median().clamp(min=1e-3)
    filled = gate.new_zeros(count, gate.shape[1])
    filled[: len(chosen)] = gate * (GAP / gap)
    return filled


def _select(folder: Path, registry: ExpertRegistry, styles: Sequence[str]) -> ExpertRegistry:
    """The experts of the run's styles; the others keep what they learned in their own folder."""
    common = [entry for entry in registry.experts if entry.style in styles]
    if not common:
        have = ", ".join(entry.style for entry in registry.experts)
        raise UserError(
            f"experts.init_from={folder}: it has no expert of the styles trained here, only of "
            f"{have}; name some of these in experts.styles"
        )
    return registry.model_copy(update={"experts": common})


def _check_all_trained(folder: Path, registry: ExpertRegistry, styles: Sequence[str]) -> None:
    """Raises `UserError` unless a run by example has the style of each of them."""
    for name in (entry.style for entry in registry.experts):
        if name not in styles:
            raise UserError(
                f"experts.init_from={folder}: its style {name!r} is not trained here, add it to "
                "the manifest and, where that is set, to experts.styles"
            )


def _check(
    folder: Path, registry: ExpertRegistry, experts: ExpertsConfig, fingerprint: str
) -> None:
    """Raises `UserError` unless the experts fit the run."""
    where = f"experts.init_from={folder}"
    facts = {
        "base": (f"{registry.base}, {registry.fingerprint}", f"{registry.base}, {fingerprint}"),
        "router": (registry.learned, False),
        "targets": (registry.targets, experts.targets),
    }
    for name, (found, wanted) in facts.items():
        if found != wanted:
            what = "they are not selected by name" if name == "router" else f"{name} {found}"
            raise UserError(
                f"{where}: these experts have another {name} than this run ({what}); give experts "
                "by name of the same base and layers"
            )


def _check_sizes(folder: Path, registry: ExpertRegistry, experts: ExpertsConfig) -> None:
    """Raises `UserError` unless the experts have the run's rank and alpha."""
    # An expert's file holds the shared one too; a new one may start beside experts without any.
    alone = (*file_scale(registry), 0)
    own = (registry.rank, registry.alpha, registry.shared_rank or experts.shared_rank)
    run = (experts.rank, experts.alpha, experts.shared_rank)
    if not (_same(run, alone) or _same(run, own)):
        sizes = " ".join(
            f"experts.{name}={value:g}"
            for name, value in zip(("rank", "alpha", "shared_rank"), alone, strict=True)
        )
        raise UserError(
            f"experts.init_from={folder}: these experts have rank {registry.rank}, alpha "
            f"{registry.alpha:g} and shared_rank {registry.shared_rank}, this run {experts.rank}, "
            f"{experts.alpha:g} and {experts.shared_rank}; set "
            f"{'the same, or ' if registry.shared_rank else ''}{sizes}"
        )


def _same(found: Sequence[float], wanted: Sequence[float]) -> bool:
    """As near as a message shows them: six digits."""
    return all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(found, wanted, strict=True))
