"""Experts as LoRA files of other programs: diffusers, PEFT, ComfyUI (and sd-scripts).

Works on saved experts; the base is not needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from torch import Tensor

from regionroute.adapters.files.export import file_scale, file_stem
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
from regionroute.adapters.files.registry import ExpertRegistry, read_registry
from regionroute.errors import UserError

FORMATS = ("diffusers", "peft", "comfyui")


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA apart from any file.

    Attributes:
        pairs: A [R,in] and B [out,R] by diffusers' module name.
        rank: R.
        alpha: scale numerator: what it adds is (alpha/R) B A.
    """

    pairs: dict[str, tuple[Tensor, Tensor]]
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
        UserError: no experts there, an unknown style, or a damaged file.
    """
    folder = Path(folder)
    registry = read_registry(folder)
    experts = [
        (read_pairs(folder / registry.experts[registry.index(style)].file, registry), weight)
        for style, weight in weights.items()
    ]
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
        UserError: a layer that the original model's names do not cover.
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


def read_pairs(path: Path, registry: ExpertRegistry) -> dict[str, tuple[Tensor, Tensor]]:
    """A [R,in] and B [out,R] of an expert's file by module name, the shared expert's ranks last.

    Raises:
        UserError: a damaged file, or not of this registry's rank and alpha.
    """
    state, metadata = read_lora_file(path)
    found = metadata.get(f"{PREFIX}r"), metadata.get(f"{PREFIX}lora_alpha")
    if found != file_scale(registry):
        raise UserError(f"{path}: its rank and alpha are not the registry's, export it again")
    names = [key.removeprefix(PREFIX).removesuffix(".lora_A.weight") for key in state]
    try:
        return {
            name: (state[f"{PREFIX}{name}.lora_A.weight"], state[f"{PREFIX}{name}.lora_B.weight"])
            for name in names
            if not name.endswith(".lora_B.weight")
        }
    except KeyError as error:
        raise UserError(f"{path}: the weight {error} is missing, export it again") from None


def _named(lora: Lora, prefix: str) -> dict[str, Tensor]:
    """The tensors by PEFT's names behind a prefix."""
    return {
        f"{prefix}{name}.lora_{side}.weight": tensor.contiguous()
        for name, pair in lora.pairs.items()
        for side, tensor in zip("AB", pair, strict=True)
    }
