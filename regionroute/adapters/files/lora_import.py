"""Takes an ordinary LoRA file, trained elsewhere, as an expert."""

import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from regionroute.adapters.files.lora_file import PREFIX, read_lora_file
from regionroute.adapters.files.lora_names import modules_of, rows
from regionroute.adapters.inject import PRESETS, inject, target_names
from regionroute.adapters.lora_moe import LoRAMoELinear, adapter_layers
from regionroute.diffusion.families import Family, family_of
from regionroute.errors import UserError
from regionroute.files import read_json

PEFT_WEIGHT_NAME = "adapter_model.safetensors"
PEFT_CONFIG_NAME = "adapter_config.json"

_WEIGHT = re.compile(
    r"^(?P<module>.+)\.lora(_(?P<side>[AB])(\.default)?|[._](?P<way>down|up))\.weight$"
)
_ALPHA = re.compile(r"^(?P<module>.+)\.alpha$")


@dataclass
class Adapter:
    """One layer of the file: A [r',in], B [out,r'] and its scale, alpha/r'."""

    a: Tensor
    b: Tensor
    scale: float


def import_lora(path: str | PathLike[str], model: nn.Module, expert_index: int) -> list[str]:
    """Loads a LoRA of PEFT, diffusers, ComfyUI or sd-scripts into one expert, to compute the same.

    A lower rank leaves the rest of the expert's rank unused (B zero), another scale is folded
    into B, and layers that the file does not adapt get B = 0. A layer that is several in diffusers
    is cut into them.

    Args:
        path: a safetensors file, or a folder with ``pytorch_lora_weights.safetensors`` or
            ``adapter_model.safetensors``.
        model: a transformer with experts, or anything that contains it.
        expert_index: the expert to overwrite.

    Returns:
        The modules that the file adapts.

    Raises:
        UserError: no such file, a weight that would have to be ignored, or a rank above ours.
        ValueError: no adapted layers, or no such expert.
    """
    file, adapters = read_lora(path, family_of(model))
    layers = adapter_layers(model)
    for name, adapter in adapters.items():
        _check_fit(name, adapter, layers, file)
    for name, layer in layers.items():
        if not 0 <= expert_index < layer.num_experts:
            raise ValueError(
                f"there is no expert {expert_index}, the model has {layer.num_experts}"
            )
        # Unused ranks keep their A, or they could never be trained: with A = B = 0 neither moves.
        a, b = layer.lora_A[expert_index].detach().clone(), torch.zeros_like(layer.lora_B[0])
        if name in adapters:
            adapter = adapters[name]
            rank = adapter.a.shape[0]
            a[:rank] = adapter.a
            b[:, :rank] = adapter.b.float() * (adapter.scale * layer.rank / layer.alpha)
        layer.load_expert(expert_index, a, b)
    return list(adapters)


def experts_from_loras(transformer: nn.Module, files: Sequence[str | PathLike[str]]) -> list[str]:
    """Gives a transformer one expert a file, as wide and in as many layers as the files need.

    Args:
        transformer: without experts; may be a skeleton on the meta device, whose experts are then
            on the CPU all the same.
        files: one or more of those that `import_lora` takes.

    Returns:
        The adapted modules.

    Raises:
        UserError: see `import_lora`.
        ValueError: the transformer already has experts, or there are no files.
    """
    read = [read_lora(file, family_of(transformer)) for file in files]
    linears = {name for name, module in transformer.named_modules() if _is_linear(module)}
    for file, adapters in read:
        for name in adapters.keys() - linears:
            raise UserError(
                f'{file}: it adapts "{name}", which the base does not have: '
                "this LoRA belongs to another base"
            )
    found = [adapter for _, adapters in read for adapter in adapters.values()]
    rank = max(adapter.a.shape[0] for adapter in found)
    scales = {adapter.scale for adapter in found}
    alpha = rank * (scales.pop() if len(scales) == 1 and min(scales) > 0 else 1.0)
    names = {name for _, adapters in read for name in adapters}
    targets = _preset_of(names, transformer) or sorted(names)
    adapted = inject(transformer, targets, len(read), rank, alpha)
    for layer in adapter_layers(transformer).values():
        for name in ("lora_A", "lora_B"):
            if getattr(layer, name).is_meta:
                setattr(layer, name, nn.Parameter(torch.zeros(getattr(layer, name).shape)))
    for index, path in enumerate(files):
        import_lora(path, transformer, index)
    return adapted


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)


def _preset_of(names: Set[str], transformer: nn.Module) -> str | None:
    """The smallest preset that covers the modules, if any does."""
    for preset in PRESETS:
        if names <= set(target_names(transformer, preset)):
            return preset
    return None


def read_lora(path: str | PathLike[str], family: Family) -> tuple[Path, dict[str, Adapter]]:
    """Reads a LoRA of any of the formats that `import_lora` takes.

    Args:
        path: see `import_lora`.
        family: whose layers the file names.

    Returns:
        The file, and by diffusers' module name what it adds there.

    Raises:
        UserError: no such file, or a weight that would have to be ignored.
    """
    file = _weights_file(Path(path))
    tensors, metadata = read_lora_file(file)
    return file, _parse(tensors, _settings(file, metadata), file, family)


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (LORA_WEIGHT_NAME_SAFE, PEFT_WEIGHT_NAME):
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path}: neither {LORA_WEIGHT_NAME_SAFE} nor {PEFT_WEIGHT_NAME} is here, name the file"
    )


def _settings(file: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's LoraConfig values, from the file's header or the JSON file beside it; may be empty."""
    if metadata:
        return {key.removeprefix(PREFIX): value for key, value in metadata.items()}
    beside = file.with_name(PEFT_CONFIG_NAME)
    if file.name == PEFT_WEIGHT_NAME and beside.is_file():
        return dict(read_json(beside))
    return {}


def _parse(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], file: Path, family: Family
) -> dict[str, Adapter]:
    sides: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        if match := _WEIGHT.match(key):
            side = match["side"] or {"down": "A", "up": "B"}[match["way"]]
            sides.setdefault(match["module"], {})[side] = tensor
        elif match := _ALPHA.match(key):
            alphas[match["module"]] = float(tensor)
        else:
            raise UserError(
                f'{file}: "{key}" is not a weight of a plain LoRA and would be ignored: '
                "choose another file"
            )
    orphans = alphas.keys() - sides.keys()
    for module in orphans | {m for m, pair in sides.items() if pair.keys() != {"A", "B"}}:
        raise UserError(f'{file}: "{module}" lacks its lora_A or lora_B weight')
    if not sides:
        raise UserError(f"{file}: there are no LoRA weights in this file")
    adapters: dict[str, Adapter] = {}
    for layer, pair in sides.items():
        modules = modules_of(layer, family)
        scale = _scale(modules[0], pair["A"].shape[0], settings, alphas.get(layer))
        for name, adapter in _cut(modules, Adapter(pair["A"], pair["B"], scale)).items():
            if name in adapters:
                raise UserError(f'{file}: "{name}" is in it twice, by two names: choose one file')
            adapters[name] = adapter
    return adapters


def _cut(modules: list[str], adapter: Adapter) -> dict[str, Adapter]:
    """Cuts a joined layer's adapter into its modules', without ranks that are of no use to one."""
    if len(modules) == 1:
        return {modules[0]: adapter}
    sizes = rows(modules, adapter.a.shape[1], adapter.b.shape[0])
    if min(sizes) < 0 or sum(sizes) != adapter.b.shape[0]:
        return {modules[0]: adapter}  # of another base, as `_check_fit` will say
    parts = {}
    for name, b in zip(modules, adapter.b.split(sizes), strict=True):
        used = (b != 0).any(0)
        if used.any():
            parts[name] = Adapter(adapter.a[used], b[:, used], adapter.scale)
    return parts


def _scale(module: str, rank: int, settings: Mapping[str, Any], alpha: float | None) -> float:
    """alpha/r as PEFT takes it; a file that names no alpha means 1, as in diffusers."""
    if alpha is None:
        patterns: dict[str, float] = settings.get("alpha_pattern") or {}
        default: float = settings.get("lora_alpha", rank)
        alpha = patterns.get(get_pattern_key(list(patterns), module), default)
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _check_fit(
    name: str, adapter: Adapter, layers: Mapping[str, LoRAMoELinear], file: Path
) -> None:
    if name not in layers:
        raise UserError(
            f'{file}: it adapts "{name}", which has no experts here: '
            "add it to the injected targets or the weight would be ignored"
        )
    layer = layers[name]
    rank = adapter.a.shape[0]
    if rank > layer.rank:
        raise UserError(f"{file}: its rank is {rank}, the experts' only {layer.rank}: raise theirs")
    if adapter.a.shape != (rank, layer.in_features) or adapter.b.shape != (
        layer.out_features, rank,
    ):  # fmt: skip
        raise UserError(
            f'{file}: "{name}" is for a layer of another size '
            f"({[*adapter.a.shape]} and {[*adapter.b.shape]}): this LoRA belongs to another base"
        )
