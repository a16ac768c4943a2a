"""Takes an ordinary LoRA file, trained elsewhere, as an expert."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import Tensor, nn

from regionroute.adapters.files.lora_file import read_lora_file
from regionroute.adapters.files.lora_names import has_swapped_rows, modules_of, rows, swap_halves
from regionroute.adapters.files.lora_settings import PEFT_WEIGHT_NAME, LoraSettings, read_settings
from regionroute.adapters.inject import PRESETS, inject, target_names
from regionroute.adapters.lora_moe import LoRAMoELinear, adapter_layers
from regionroute.diffusion.families import Family, family_of
from regionroute.errors import UserError

_WEIGHT = re.compile(
    r"^(?P<module>.+)\.lora(_(?P<side>[AB])(\.default)?|[._](?P<way>down|up))\.weight$"
)
_ALPHA = re.compile(r"^(?P<module>.+)\.alpha$")
_TEXT_ENCODER = re.compile(r"^(base_model\.model\.)?(lora_te\d?_|text_encoder(_\d)?\.|te\d?\.)")
_OTHER_KINDS = (  # what its keys say of a file that is no plain LoRA
    (re.compile(r"\.processor\..*lora\d?\.(down|up)\.weight$"), "an XLabs LoRA"),
    (re.compile(r"hada_w"), "a LoHa"),
    (re.compile(r"lokr_w"), "a LoKr"),
    (re.compile(r"dora_scale|lora_magnitude_vector"), "a DoRA"),
    (re.compile(r"oft_|\.boft_"), "an OFT"),
    (re.compile(r"lora_mid"), "a LoCon with a middle layer"),
    (re.compile(r"\.diff(_b)?$|\.set_weight$"), "a file of weight differences"),
    (re.compile(r"ip_adapter"), "an IP-Adapter"),
)
_SHOWN = 8  # names in an error
_log = logging.getLogger(__name__)


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
    return _load(file, adapters, model, expert_index)


def _load(
    file: Path, adapters: Mapping[str, Adapter], model: nn.Module, expert_index: int
) -> list[str]:
    layers = adapter_layers(model)
    if strange := adapters.keys() - layers.keys():
        raise UserError(
            f"{file}: it adapts {_listed(strange)}, which has no experts here: "
            "add it to the injected targets or the weight would be ignored"
        )
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
        if strange := adapters.keys() - linears:
            raise UserError(
                f"{file}: it adapts {_listed(strange)}, which the base does not have: "
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
    for index, (file, adapters) in enumerate(read):
        _load(file, adapters, transformer, index)
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
    own = {key: tensor for key, tensor in tensors.items() if not _TEXT_ENCODER.match(key)}
    if skipped := len(tensors) - len(own):
        if not own:
            raise UserError(
                f"{file}: all its weights are of the text encoder, style experts adapt the "
                "transformer: choose another file"
            )
        _log.warning(
            "%s: %d weights of the text encoder are skipped, experts adapt the transformer only",
            file, skipped,
        )  # fmt: skip
    return file, _parse(own, read_settings(file, metadata), file, family)


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (LORA_WEIGHT_NAME_SAFE, PEFT_WEIGHT_NAME):
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path}: neither {LORA_WEIGHT_NAME_SAFE} nor {PEFT_WEIGHT_NAME} is here, name the file"
    )


def _parse(
    tensors: Mapping[str, Tensor], settings: LoraSettings, file: Path, family: Family
) -> dict[str, Adapter]:
    sides, alphas = _sorted_weights(tensors, file)
    adapters: dict[str, Adapter] = {}
    for layer, pair in sides.items():
        a, b = pair["A"], pair["B"]
        _check_pair(layer, a, b, file)
        b = swap_halves(b) if has_swapped_rows(layer) else b
        modules = modules_of(layer, family)
        try:
            scale = settings.scale(modules[0], a.shape[0], alphas.get(layer))
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        for name, adapter in _cut(modules, Adapter(a, b, scale)).items():
            if name in adapters:
                raise UserError(f'{file}: "{name}" is in it twice, by two names: choose one file')
            adapters[name] = adapter
    return adapters


def _sorted_weights(
    tensors: Mapping[str, Tensor], file: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """The two sides of each layer, and the alphas of those that have one."""
    sides: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for kind, name in _OTHER_KINDS:
        if key := next((key for key in tensors if kind.search(key)), None):
            raise UserError(
                f'{file}: this is {name} ("{key}") and not a plain LoRA: convert it to the form '
                "of diffusers or PEFT, or choose another file"
            )
    strange = [key for key in tensors if not (_WEIGHT.match(key) or _ALPHA.match(key))]
    if strange:
        raise UserError(
            f"{file}: {_listed(strange)} is not a weight of a plain LoRA and would be ignored: "
            "choose another file"
        )
    for key, tensor in tensors.items():
        if match := _WEIGHT.match(key):
            side = match["side"] or {"down": "A", "up": "B"}[match["way"]]
            sides.setdefault(match["module"], {})[side] = tensor
        elif match := _ALPHA.match(key):
            if tensor.numel() != 1:
                raise UserError(f'{file}: "{key}" must be one number, it has {tensor.numel()}')
            alphas[match["module"]] = float(tensor)
    orphans = alphas.keys() - sides.keys()
    for module in orphans | {m for m, pair in sides.items() if pair.keys() != {"A", "B"}}:
        raise UserError(f'{file}: "{module}" lacks its lora_A or lora_B weight')
    if not sides:
        raise UserError(f"{file}: there are no LoRA weights in this file")
    return sides, alphas


def _listed(names: Iterable[str]) -> str:
    """All names, those beyond the first few counted."""
    found = sorted(names)
    text = ", ".join(f'"{name}"' for name in found[:_SHOWN])
    return text + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")


def _check_pair(layer: str, a: Tensor, b: Tensor, file: Path) -> None:
    shown = f"{[*a.shape]} and {[*b.shape]}"
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise UserError(
            f'{file}: "{layer}" has weights of {shown}, expected [rank, in] and [out, rank]'
        )
    if 0 in (*a.shape, *b.shape):
        raise UserError(f'{file}: "{layer}" has rank 0 or no size ({shown}), choose another file')


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


def _check_fit(
    name: str, adapter: Adapter, layers: Mapping[str, LoRAMoELinear], file: Path
) -> None:
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
