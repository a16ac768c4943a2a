"""Experts as LoRA files of other programs: diffusers, PEFT, ComfyUI (and sd-scripts).

Works on saved experts; the base is not needed.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import Tensor

from regionroute.adapters.files.export import file_scale, file_stem, read_expert
from regionroute.adapters.files.lora_file import (
    PREFIX,
    read_lora_file,
    write_lora_file,
    write_tensors,
)
from regionroute.adapters.files.lora_names import (
    SWAPPED,
    modules_of,
    naming_family,
    original_name,
    rows,
    swap_halves,
)
from regionroute.adapters.files.lora_settings import PEFT_WEIGHT_NAME
from regionroute.adapters.files.registry import ExpertEntry, ExpertRegistry, read_registry
from regionroute.adapters.files.router_file import read_router
from regionroute.errors import UserError

FORMATS = ("diffusers", "peft", "comfyui")
Pairs = dict[str, tuple[Tensor, Tensor]]  # A [R,in] and B [out,R] by module name
_KEY = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_[AB]\.weight")


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA apart from any file.

    Attributes:
        pairs: by diffusers' module name.
        rank: R.
        alpha: scale numerator: what it adds is (alpha/R) B A.
    """

    pairs: Pairs
    rank: int
    alpha: float


def read_blend(folder: str | PathLike[str], weights: Mapping[str, float]) -> Lora:
    """Saved experts, each with a weight, and the shared expert as one LoRA.

    Args:
        folder: written by `save_experts`.
        weights: by the style's name, see `parse_blend`.

    Returns:
        For one expert at weight 1 exactly its file; else its rank is k·r + rs.

    Raises:
        UserError: no experts there, an unknown style, a damaged file, or experts of other layers
            than each other.
    """
    folder = Path(folder)
    registry = read_registry(folder)
    entries = [registry.experts[registry.index(style)] for style in weights]
    experts = list(zip(read_experts(folder, registry, entries), weights.values(), strict=True))
    rank, shared = registry.rank, registry.shared_rank
    pairs = {}
    for name, (a, b) in experts[0][0].items():
        parts = [(pairs_of[name], weight) for pairs_of, weight in experts]
        pairs[name] = (
            torch.cat([*[pair[0][:rank] for pair, _ in parts], a[rank:]]),
            torch.cat([*[pair[1][:, :rank] * weight for pair, weight in parts], b[:, rank:]], 1),
        )
    total = len(experts) * rank + shared
    return Lora(pairs, total, registry.alpha * total / rank)


def write_lora(
    lora: Lora, out: str | PathLike[str], style: str, form: str, *, base: str = ""
) -> Path:
    """Writes a LoRA in the form of another program.

    Args:
        lora: what to write.
        out: folder; made if missing.
        style: names the file.
        form: "diffusers": ``<style>/pytorch_lora_weights.safetensors``; "peft": the folder
            ``<style>`` with ``adapter_model.safetensors`` and its configuration; "comfyui":
            ``<style>.safetensors`` with the original Flux model's layers and alpha tensors, which
            sd-scripts' users and diffusers read as well.
        base: the base's name, for PEFT's configuration.

    Returns:
        The file.

    Raises:
        UserError: an unknown form, or a layer that it has no name for.
    """
    folder, stem = Path(out), file_stem(style)
    if form == "diffusers":
        path = folder / stem / LORA_WEIGHT_NAME_SAFE
        write_lora_file(path, _named(lora, PREFIX), lora.rank, lora.alpha, list(lora.pairs))
    elif form == "peft":
        from peft import LoraConfig  # imported here: slow, and edits do without

        path = folder / stem / PEFT_WEIGHT_NAME
        write_tensors(path, _named(lora, "base_model.model."), {})
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=sorted(lora.pairs),
            base_model_name_or_path=base,
            inference_mode=True,
        ).save_pretrained(str(path.parent))
    elif form == "comfyui":
        path = folder / f"{stem}.safetensors"
        write_tensors(path, to_original(lora), {})
    else:
        raise UserError(f'there is no format "{form}", known: {", ".join(FORMATS)}')
    return path


def to_original(lora: Lora) -> dict[str, Tensor]:
    """A LoRA by the names of the original Flux model, as ComfyUI and sd-scripts write them.

    Where several of diffusers' layers are one, their A lie below each other and their B along a
    diagonal; rows of layers without an adapter are 0. Rows that the original model has in another
    order are in its order, see `SWAPPED`.

    Raises:
        UserError: a layer that the original model's names do not cover, or layers that are one
            there and take inputs of different sizes.
    """
    joined: dict[str, list[str]] = {}
    family = naming_family(lora.pairs)
    for name in lora.pairs:
        original = original_name(name, family)
        if original is None:
            raise UserError(f'"{name}" has no name in ComfyUI: export to diffusers or peft instead')
        joined.setdefault(original, []).append(name)
    state = {}
    for original, names in joined.items():
        a, b = _join(lora.pairs, modules_of(original, family), names)
        b = swap_halves(b) if original == SWAPPED else b
        key = f"lora_unet_{original.replace('.', '_')}"
        state[f"{key}.lora_down.weight"] = a
        state[f"{key}.lora_up.weight"] = b
        state[f"{key}.alpha"] = torch.tensor(lora.alpha / lora.rank * a.shape[0])
    return state


def _join(
    pairs: Mapping[str, tuple[Tensor, Tensor]], modules: list[str], present: list[str]
) -> tuple[Tensor, Tensor]:
    if len(modules) == 1:
        return pairs[modules[0]]
    width = pairs[present[0]][0].shape[1]
    for name in present:
        own = pairs[name][0].shape[1]
        if own != width:
            raise UserError(
                f'"{name}" takes {own} inputs and "{present[0]}" {width}, which are one layer in '
                "ComfyUI: export the experts again from their training"
            )
    sizes = [
        pairs[name][1].shape[0] if name in pairs else size
        for name, size in zip(modules, rows(modules, width), strict=True)
    ]
    a = torch.cat([pairs[name][0] for name in modules if name in pairs])
    b, top, left = a.new_zeros(sum(sizes), a.shape[0]), 0, 0
    for name, size in zip(modules, sizes, strict=True):
        if name in pairs:
            part = pairs[name][1]
            b[top : top + size, left : left + part.shape[1]] = part
            left += part.shape[1]
        top += size
    return a, b


def check_experts(folder: Path, registry: ExpertRegistry) -> None:
    """Reads every file that a registry names, as `load_experts` does, but needs no base.

    Raises:
        UserError: a file is missing or damaged, or does not fit the registry or the others.
    """
    sizes = layer_sizes(read_pairs(folder / registry.experts[0].file, registry))
    router, count = registry.router, len(registry.experts)
    common = read_router(folder / router.file, sizes, router, count) if router else {}
    for entry in registry.experts:
        read_expert(folder / entry.file, registry, sizes, common)


def read_experts(
    folder: Path, registry: ExpertRegistry, entries: Iterable[ExpertEntry]
) -> list[Pairs]:
    """What `read_pairs` gives, of several experts with the same layers.

    Raises:
        UserError: a damaged file, or one with other layers than those before it.
    """
    experts: list[Pairs] = []
    for entry in entries:
        path = folder / entry.file
        pairs = read_pairs(path, registry)
        wanted = layer_sizes(experts[0] if experts else pairs)
        odd = wanted.items() ^ layer_sizes(pairs).items()
        if odd:
            raise UserError(
                f'{path}: other layers than the experts before it, first "{min(odd)[0]}": '
                "export it again"
            )
        experts.append(pairs)
    return experts


def layer_sizes(pairs: Pairs) -> dict[str, tuple[int, int]]:
    """The layers' numbers of inputs and outputs."""
    return {name: (a.shape[1], b.shape[0]) for name, (a, b) in pairs.items()}


def read_pairs(path: Path, registry: ExpertRegistry) -> Pairs:
    """A [R,in] and B [out,R] of an expert's file by module name, the shared expert's ranks last.

    Raises:
        UserError: a damaged file, not of this registry's rank and alpha, with a tensor that is
            missing, has another shape or is no expert's, or without any.
    """
    state, metadata = read_lora_file(path)
    found = metadata.get(f"{PREFIX}r"), metadata.get(f"{PREFIX}lora_alpha")
    if found != file_scale(registry):
        raise UserError(f"{path}: its rank and alpha are not the registry's, export it again")
    rank = file_scale(registry)[0]
    names: list[str] = []
    for key in state:
        match = _KEY.fullmatch(key)
        if match is None:
            raise UserError(f'{path}: "{key}" is no weight of an expert, export it again')
        names.append(match[1])
    if not names:
        raise UserError(f"{path}: there are no weights in this file, export it again")
    pairs = {}
    for name in dict.fromkeys(names):
        keys = [f"{PREFIX}{name}.lora_{side}.weight" for side in "AB"]
        for key, axis, shape in zip(keys, (0, 1), (f"[{rank}, in]", f"[out, {rank}]"), strict=True):
            if key not in state:
                raise UserError(f'{path}: the weight "{key}" is missing, export it again')
            size = state[key].shape
            if len(size) != 2 or size[axis] != rank:
                raise UserError(f'{path}: "{key}" is {[*size]}, expected {shape}: export it again')
        pairs[name] = (state[keys[0]], state[keys[1]])
    return pairs


def _named(lora: Lora, prefix: str) -> dict[str, Tensor]:
    """The tensors by PEFT's names behind a prefix."""
    return {
        f"{prefix}{name}.lora_{side}.weight": tensor.contiguous()
        for name, pair in lora.pairs.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
