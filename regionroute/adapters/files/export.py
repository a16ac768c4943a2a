"""Experts on disk: one ordinary diffusers LoRA file an expert, what they share, and a registry.

``folder/<style>/pytorch_lora_weights.safetensors`` loads in a stock pipeline with
``FluxKontextPipeline.load_lora_weights(folder/<style>)``; a shared expert is part of each of these
files. ``folder/experts.json`` is what `edit` and the evaluation read, ``folder/router.safetensors``
has shared experts and gates where there are any, ``folder/README.md`` is the model card.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import Tensor, nn

from regionroute.adapters.files.card import write_card
from regionroute.adapters.files.lora_file import (
    PREFIX,
    check_state,
    read_lora_file,
    write_lora_file,
)
from regionroute.adapters.files.precision import change, rounded
from regionroute.adapters.files.registry import (
    REGISTRY_FILE,
    ExpertEntry,
    ExpertRegistry,
    read_registry,
)
from regionroute.adapters.files.router_file import (
    load_router_state_dict,
    read_router,
    router_entry,
    router_state_dict,
    write_router,
)
from regionroute.adapters.inject import inject, target_names
from regionroute.adapters.lora_moe import LoRAMoELinear, adapter_layers
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError
from regionroute.files import write_json

LARGEST_CHANGE = 0.1  # by rounding, of what an expert adds; float8 changes 3 to 4 % by its nature
_log = logging.getLogger(__name__)


class Base(Protocol):
    """What `load_experts` needs of a backbone."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def fingerprint(self) -> str:
        """Identity of the transformer's configuration and size."""

    @property
    def transformer(self) -> nn.Module:
        """The model that takes the experts."""


def expert_state_dict(model: nn.Module, expert_index: int) -> dict[str, Tensor]:
    """One expert, with the shared one, as a LoRA under diffusers' names; fp32 copies on the CPU.

    Under ZeRO-3 call it inside ``GatheredParameters(adapter_parameters(model))``.

    Args:
        model: the adapted transformer, or anything that contains it.
        expert_index: which expert.

    Returns:
        "transformer.<module>.lora_A.weight" [r+rs,in] and "….lora_B.weight" [out,r+rs] a layer.

    Raises:
        ValueError: no adapted layers, or no such expert.
    """
    return {
        f"{PREFIX}{name}.{key}": tensor
        for name, layer in _layers_with(model, expert_index).items()
        for key, tensor in layer.expert_state_dict(expert_index).items()
    }


def load_expert_state_dict(
    model: nn.Module,
    expert_index: int,
    state: Mapping[str, Tensor],
    source: str = "the state dict",
    *,
    shared: bool = True,
) -> None:
    """Overwrites one expert with what `expert_state_dict` gave; nothing may be missing or left.

    Under ZeRO-3 call it inside ``GatheredParameters(..., modifier_rank=0)``.

    Args:
        model: the adapted transformer, or anything that contains it.
        expert_index: which expert.
        state: tensors by diffusers' names.
        source: names the state in errors, such as its file.
        shared: whether the last rs ranks of the state are the model's shared expert.

    Raises:
        UserError: missing or unexpected keys, other shapes, or another shared expert.
        ValueError: no adapted layers, or no such expert.
    """
    layers = _layers_with(model, expert_index)
    first = next(iter(layers.values()))
    sizes = {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
    check_state(state, _shapes(sizes, first.rank + shared * first.shared_rank), source)
    if shared:
        common = {f"{PREFIX}{n}.{k}": x for n, m in layers.items() for k, x in _shared(m).items()}
        _check_shared(state, common, source)
    for name, layer in layers.items():
        a, b = (state[f"{PREFIX}{name}.lora_{side}.weight"] for side in "AB")
        layer.load_expert(expert_index, a[: layer.rank], b[:, : layer.rank])


def save_experts(
    folder: str | PathLike[str],
    model: nn.Module,
    styles: Sequence[StyleSpec],
    *,
    base_name: str,
    base_fingerprint: str,
    extra: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> ExpertRegistry:
    """Writes every expert as a LoRA file, what they share, the model card and, last, the registry.

    Under ZeRO-3 call it on one rank inside ``GatheredParameters(adapter_parameters(model))``.

    Args:
        folder: made if missing; files of the same names are replaced one by one, each at once.
        model: the adapted transformer, or anything that contains it.
        styles: one style an expert, in the order of the experts; see `expert_names` where a
            learned router chooses them.
        base_name: what the experts were trained on, for messages.
        base_fingerprint: identity of that base, checked by `load_experts`.
        extra: anything else to remember, JSON-able (map layers, configuration, and what
            `regionroute.adapters.files.card` shows).
        dtype: precision of the files, of `regionroute.adapters.files.precision.FILE_DTYPES`. A
            warning says if it changes what an expert adds by more than 10 %, as float8 does to
            values below 0.01.

    Returns:
        The registry as written.

    Raises:
        UserError: two styles of one name, or a value beyond the type's range.
        ValueError: the number of styles is not the number of experts, or routers that cannot be
            saved.
    """
    folder = Path(folder)
    layers = adapter_layers(model)
    first = next(iter(layers.values()))
    if len(styles) != first.num_experts:
        raise ValueError(f"{first.num_experts} experts cannot be saved as {len(styles)} styles")
    registry = ExpertRegistry(
        base=base_name,
        fingerprint=base_fingerprint,
        rank=first.rank,
        alpha=first.alpha,
        targets=first.group.targets or list(layers),
        experts=[
            ExpertEntry(style=s.name, phrase=s.phrase, file=file)
            for s, file in zip(styles, _file_names(styles), strict=True)
        ],
        router=router_entry(model),
        extra=dict(extra or {}),
    )
    states, changes = {}, {}  # all of them before a file is replaced
    for i, entry in enumerate(registry.experts):
        exact = expert_state_dict(model, i)
        states[entry.file] = rounded(exact, dtype, entry.file)
        changes[entry.style] = change(exact, states[entry.file])
    if registry.router:
        write_router(folder / registry.router.file, router_state_dict(model), dtype)
    rank, alpha = file_scale(registry)
    for file, state in states.items():
        write_lora_file(folder / file, state, rank, alpha, list(layers))
    worst = max(changes, key=lambda style: changes[style])
    if changes[worst] > LARGEST_CHANGE:
        _log.warning(
            'rounding changes the expert "%s" by %.0f %%, its weights are too small for this '
            "precision: choose a wider experts.dtype", worst, 100 * changes[worst],
        )  # fmt: skip
    write_card(folder, registry)
    write_json(folder / REGISTRY_FILE, registry.model_dump(by_alias=True))
    return registry


def load_experts(folder: str | PathLike[str], backbone: Base) -> ExpertRegistry:
    """Puts saved experts into a backbone's transformer; everything is checked before it changes.

    Args:
        folder: written by `save_experts`.
        backbone: the base the experts were trained on, without experts.

    Returns:
        The registry of what was loaded: its ``index(style)`` is the expert id for `RouteContext`.

    Raises:
        UserError: no experts there, another base, or a damaged file.
        ValueError: the transformer already has experts.
    """
    folder = Path(folder)
    registry = read_registry(folder)
    if registry.fingerprint != backbone.fingerprint:
        raise UserError(
            f'{folder}: these experts were trained on base "{registry.base}" '
            f'({registry.fingerprint}), not on "{backbone.name}" ({backbone.fingerprint}): '
            "choose that base or other experts"
        )
    transformer = backbone.transformer
    sizes = {}
    for name in target_names(transformer, registry.targets):
        linear: Any = transformer.get_submodule(name)
        sizes[name] = (linear.in_features, linear.out_features)
    count, router = len(registry.experts), registry.router
    common = read_router(folder / router.file, sizes, router, count) if router else {}
    states = [
        read_expert(folder / entry.file, registry, sizes, common) for entry in registry.experts
    ]
    inject(
        transformer, registry.targets, count, registry.rank, registry.alpha,
        shared_rank=registry.shared_rank,
        router=(lambda: router.make_router(count)) if router else None,
    )  # fmt: skip
    load_router_state_dict(adapter_layers(transformer), common)
    for i, state in enumerate(states):
        load_expert_state_dict(transformer, i, state)
    return registry


def read_expert(
    path: Path,
    registry: ExpertRegistry,
    sizes: Mapping[str, tuple[int, int]],
    common: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """One expert's file, checked against the base, the registry and the router's file.

    Args:
        path: of the file.
        registry: of its folder.
        sizes: each layer's (in, out).
        common: what `read_router` gave; empty where the folder has no router's file.

    Returns:
        Float32 tensors by diffusers' names.

    Raises:
        UserError: a damaged file, or one that does not fit the others.
    """
    state, metadata = read_lora_file(path)
    check_state(state, _shapes(sizes, file_scale(registry)[0]), str(path))
    found = metadata.get(f"{PREFIX}r"), metadata.get(f"{PREFIX}lora_alpha")
    if found != file_scale(registry):
        rank, alpha = file_scale(registry)
        raise UserError(
            f"{path}: rank and alpha in the file are {found[0]} and {found[1]}, "
            f"{REGISTRY_FILE} says {rank} and {alpha:g}: export it again"
        )
    state = {key: tensor.float() for key, tensor in state.items()}
    _check_shared(state, common, str(path))
    return state


def file_scale(registry: ExpertRegistry) -> tuple[int, float]:
    """Rank and alpha of an expert's file, which holds it and the shared one under one scale."""
    rank = registry.rank + registry.shared_rank
    return rank, registry.alpha * rank / registry.rank


def _check_shared(state: Mapping[str, Tensor], common: Mapping[str, Tensor], source: str) -> None:
    """The last ranks of an expert's file are the expert for all samples, as in the common file."""
    for key, wanted in common.items():
        name, _, side = key.rpartition(".shared_")
        if not name:
            continue
        found = state[f"{name}.lora_{side}.weight"]
        tail = found[-len(wanted) :] if side == "A" else found[:, -wanted.shape[1] :]
        if not torch.equal(tail, wanted):
            raise UserError(
                f'{source}: the shared expert in "{name}" is not that of the other experts: '
                "export them together again"
            )


def _shared(layer: LoRAMoELinear) -> dict[str, Tensor]:
    state = layer.router_state_dict() if layer.shared_rank else {}
    return {key: tensor for key, tensor in state.items() if key.startswith("shared_")}


def _shapes(sizes: Mapping[str, tuple[int, int]], rank: int) -> dict[str, tuple[int, int]]:
    """Shape by key of one expert's state, from each layer's (in, out)."""
    shapes = {}
    for name, (inputs, outputs) in sizes.items():
        shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, inputs)
        shapes[f"{PREFIX}{name}.lora_B.weight"] = (outputs, rank)
    return shapes


def _layers_with(model: nn.Module, expert_index: int) -> dict[str, LoRAMoELinear]:
    layers = adapter_layers(model)
    count = next(iter(layers.values())).num_experts
    if not 0 <= expert_index < count:
        raise ValueError(f"there is no expert {expert_index}, the model has {count}")
    return layers


def expert_names(count: int) -> list[StyleSpec]:
    """Names for experts that stand for no style of their own: "expert-00", "expert-01" and on."""
    return [StyleSpec(f"expert-{index:02d}") for index in range(count)]


def _file_names(styles: Sequence[StyleSpec]) -> list[str]:
    """A folder a style: its name, all but letters, digits, ``.``, ``_`` and ``-`` replaced."""
    folders = [file_stem(s.name) for s in styles]
    for i, name in enumerate(folders):
        # Compared without case: some file systems do not tell "Ink" from "ink".
        if name.casefold() in (other.casefold() for other in folders[:i]):
            raise UserError(
                f'the styles "{styles[i].name}" and another would both be saved as "{name}": '
                "rename one"
            )
    return [f"{name}/{LORA_WEIGHT_NAME_SAFE}" for name in folders]


def file_stem(style: str) -> str:
    """A style's name as the name of a file."""
    return re.sub(r"[^\w.-]+", "-", style).strip(".-") or "style"
