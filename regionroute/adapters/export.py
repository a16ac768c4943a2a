"""Experts on disk: one ordinary diffusers LoRA file a style, and a registry beside them.

``folder/<style>/pytorch_lora_weights.safetensors`` loads in a stock pipeline with
``FluxKontextPipeline.load_lora_weights(folder/<style>)``; ``folder/experts.json`` is what `edit`
and the evaluation read.
"""

import json
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from regionroute.adapters.inject import inject, target_names
from regionroute.adapters.lora_moe import LoRAMoELinear, adapter_layers
from regionroute.adapters.registry import (
    REGISTRY_FILE,
    ExpertEntry,
    ExpertRegistry,
    read_registry,
)
from regionroute.errors import UserError
from regionroute.io import atomic_write, write_json
from regionroute.manifest import StyleSpec

PREFIX = "transformer."  # the pipeline part, by which diffusers sorts the keys of a LoRA file


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
    """One expert under diffusers' names, fp32 copies on the CPU.

    Under ZeRO-3 call it inside ``GatheredParameters(adapter_parameters(model))``.

    Args:
        model: the adapted transformer, or anything that contains it.
        expert_index: which expert.

    Returns:
        "transformer.<module>.lora_A.weight" [r,in] and "….lora_B.weight" [out,r] a layer.

    Raises:
        ValueError: no adapted layers, or no such expert.
    """
    return {
        f"{PREFIX}{name}.{key}": tensor
        for name, layer in _layers_with(model, expert_index).items()
        for key, tensor in layer.expert_state_dict(expert_index).items()
    }


def load_expert_state_dict(
    model: nn.Module, expert_index: int, state: Mapping[str, Tensor], source: str = "the state dict"
) -> None:
    """Overwrites one expert with what `expert_state_dict` gave; nothing may be missing or left.

    Under ZeRO-3 call it inside ``GatheredParameters(..., modifier_rank=0)``.

    Args:
        model: the adapted transformer, or anything that contains it.
        expert_index: which expert.
        state: tensors by diffusers' names.
        source: names the state in errors, such as its file.

    Raises:
        UserError: missing or unexpected keys, or other shapes.
        ValueError: no adapted layers, or no such expert.
    """
    layers = _layers_with(model, expert_index)
    sizes = {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
    _check_state(state, _shapes(sizes, next(iter(layers.values())).rank), source)
    for name, layer in layers.items():
        key = f"{PREFIX}{name}"
        layer.load_expert(
            expert_index, state[f"{key}.lora_A.weight"], state[f"{key}.lora_B.weight"]
        )


def save_experts(
    folder: str | PathLike[str],
    model: nn.Module,
    styles: Sequence[StyleSpec],
    *,
    base_name: str,
    base_fingerprint: str,
    extra: Mapping[str, Any] | None = None,
) -> ExpertRegistry:
    """Writes every expert as a LoRA file and, last, the registry.

    Under ZeRO-3 call it on one rank inside ``GatheredParameters(adapter_parameters(model))``.

    Args:
        folder: made if missing; files of the same names are replaced one by one, each at once.
        model: the adapted transformer, or anything that contains it.
        styles: one style an expert, in the order of the experts.
        base_name: what the experts were trained on, for messages.
        base_fingerprint: identity of that base, checked by `load_experts`.
        extra: anything else to remember, JSON-able (map layers, configuration, metrics).

    Returns:
        The registry as written.

    Raises:
        UserError: two styles of one name.
        ValueError: the number of styles is not the number of experts.
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
        extra=dict(extra or {}),
    )
    metadata = _lora_metadata(registry, list(layers))
    for i, entry in enumerate(registry.experts):
        with atomic_write(folder / entry.file) as temporary:
            save_file(expert_state_dict(model, i), temporary, metadata)
    write_json(folder / REGISTRY_FILE, registry.model_dump(by_alias=True))
    return registry


def load_experts(
    folder: str | PathLike[str], backbone: Base, styles: Sequence[str] | None = None
) -> ExpertRegistry:
    """Puts saved experts into a backbone's transformer; everything is checked before it changes.

    Args:
        folder: written by `save_experts`.
        backbone: the base the experts were trained on, without experts.
        styles: names to load, None: all.

    Returns:
        The registry of what was loaded: its ``index(style)`` is the expert id for `RouteContext`.

    Raises:
        UserError: no experts there, another base, an unknown style, or a damaged file.
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
    registry = registry.select(styles)
    transformer = backbone.transformer
    sizes = {}
    for name in target_names(transformer, registry.targets):
        linear: Any = transformer.get_submodule(name)
        sizes[name] = (linear.in_features, linear.out_features)
    shapes = _shapes(sizes, registry.rank)
    states = []
    for entry in registry.experts:
        state, metadata = read_lora_file(folder / entry.file)
        _check_state(state, shapes, str(folder / entry.file))
        _check_scale(metadata, registry, folder / entry.file)
        states.append(state)
    inject(transformer, registry.targets, len(states), registry.rank, registry.alpha)
    for i, state in enumerate(states):
        load_expert_state_dict(transformer, i, state)
    return registry


def read_lora_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a safetensors LoRA file, and the settings diffusers stores in its header.

    Raises:
        UserError: missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such LoRA file, check the path or export the experts again")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in list(file.keys())}
            header = file.metadata() or {}
        metadata = json.loads(header.get(LORA_ADAPTER_METADATA_KEY, "{}"))
    except (SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: this LoRA file is damaged, export it again ({error})") from error
    return tensors, metadata


def _lora_metadata(registry: ExpertRegistry, names: list[str]) -> dict[str, str]:
    """Header of a LoRA file: PEFT settings by which diffusers scales with alpha/r exactly."""
    settings = {"r": registry.rank, "lora_alpha": registry.alpha, "target_modules": names}
    prefixed = {f"{PREFIX}{key}": value for key, value in settings.items()}
    return {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(prefixed, sort_keys=True)}


def _check_scale(metadata: Mapping[str, Any], registry: ExpertRegistry, path: Path) -> None:
    found = metadata.get(f"{PREFIX}r"), metadata.get(f"{PREFIX}lora_alpha")
    if found != (registry.rank, registry.alpha):
        raise UserError(
            f"{path}: rank and alpha in the file are {found[0]} and {found[1]}, "
            f"{REGISTRY_FILE} says {registry.rank} and {registry.alpha:g}: export it again"
        )


def _shapes(sizes: Mapping[str, tuple[int, int]], rank: int) -> dict[str, tuple[int, int]]:
    """Shape by key of one expert's state, from each layer's (in, out)."""
    shapes = {}
    for name, (inputs, outputs) in sizes.items():
        shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, inputs)
        shapes[f"{PREFIX}{name}.lora_B.weight"] = (outputs, rank)
    return shapes


def _check_state(
    state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], source: str
) -> None:
    missing = [key for key in shapes if key not in state]
    if missing:
        raise UserError(f'{source}: {len(missing)} weights are missing, first "{missing[0]}"')
    unexpected = [key for key in state if key not in shapes]
    if unexpected:
        raise UserError(
            f"{source}: {len(unexpected)} weights have no place in the model, "
            f'first "{unexpected[0]}"'
        )
    for key, shape in shapes.items():
        if tuple(state[key].shape) != shape:
            raise UserError(f'{source}: "{key}" is {[*state[key].shape]}, expected {[*shape]}')


def _layers_with(model: nn.Module, expert_index: int) -> dict[str, LoRAMoELinear]:
    layers = adapter_layers(model)
    count = next(iter(layers.values())).num_experts
    if not 0 <= expert_index < count:
        raise ValueError(f"there is no expert {expert_index}, the model has {count}")
    return layers


def _file_names(styles: Sequence[StyleSpec]) -> list[str]:
    """A folder a style: its name, all but letters, digits, ``.``, ``_`` and ``-`` replaced."""
    folders = [re.sub(r"[^\w.-]+", "-", s.name).strip(".-") or "style" for s in styles]
    for i, name in enumerate(folders):
        # Compared without case: some file systems do not tell "Ink" from "ink".
        if name.casefold() in (other.casefold() for other in folders[:i]):
            raise UserError(
                f'the styles "{styles[i].name}" and another would both be saved as "{name}": '
                "rename one"
            )
    return [f"{name}/{LORA_WEIGHT_NAME_SAFE}" for name in folders]
