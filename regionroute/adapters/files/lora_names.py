"""A transformer's layers by the names that LoRA files use for them.

diffusers and PEFT name its own modules ("transformer_blocks.0.attn.to_q"). ComfyUI, sd-scripts and
Black Forest Labs' code name those of the original model ("double_blocks.0.img_attn.qkv"), where
several of diffusers' layers are one; both also occur with "_" for ".". What is called what is the
family's, see `Family.original`.
"""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from regionroute.diffusion.families import Family, every_family
from regionroute.diffusion.flux_kontext import FAMILY as KONTEXT

MLP = "proj_mlp"  # the one part of a joined layer that is not as wide as its input
MLP_RATIO = 4  # fixed in diffusers' FluxSingleTransformerBlock
# The one layer whose rows the original models have in another order, in every family: shift above
# scale, where diffusers' AdaLayerNormContinuous has scale above shift.
SWAPPED = "final_layer.adaLN_modulation.1"

_PLACES = (("single_transformer_blocks", "single_blocks"), ("transformer_blocks", "double_blocks"))
_PREFIXES = re.compile(
    r"^(base_model\.model\.|model\.)?(transformer\.|diffusion_model\.)?"
    r"(lora_unet_|lora_transformer_|lycoris_)?"
)


def naming_family(modules: Collection[str]) -> Family:
    """The family whose names all these diffusers modules are; the first of several."""
    fits = (f for f in every_family() if all(original_name(module, f) for module in modules))
    return next(fits, KONTEXT)


def modules_of(name: str, family: Family = KONTEXT) -> list[str]:
    """The diffusers modules that a layer of a LoRA file stands for.

    Args:
        name: with any of the usual prefixes, of either model, with "." or "_".
        family: whose layers it names.

    Returns:
        Their names, from the top rows to the bottom; a name in no table is given back alone,
        without its prefix.
    """
    bare = _PREFIXES.sub("", name)
    flat = bare.replace(".", "_")
    for diffusers, original in _PLACES:
        for start in (diffusers, original):
            if match := re.fullmatch(rf"{start}_(\d+)_(.+)", flat):
                found = _lookup(match[2], family.original[original])
                return [f"{diffusers}.{match[1]}.{part}" for part in found] or [bare]
    return _lookup(flat, family.original[""]) or [bare]


def original_name(module: str, family: Family = KONTEXT) -> str | None:
    """The original model's name of the layer that a diffusers module is, or is a part of."""
    for diffusers, original in _PLACES:
        if match := re.fullmatch(rf"{diffusers}\.(\d+)\.(.+)", module):
            part = family.original[original].get(match[2])
            return part and f"{original}.{match[1]}.{part}"
    return family.original[""].get(module)


def has_swapped_rows(name: str) -> bool:
    """Whether a layer of a LoRA file is `SWAPPED`, by any of the original model's names for it."""
    return _PREFIXES.sub("", name).replace(".", "_") == SWAPPED.replace(".", "_")


def swap_halves(b: Tensor) -> Tensor:
    """B [out,r] with its lower half of rows above the upper one."""
    return torch.cat(b.chunk(2)[::-1])


def rows(modules: list[str], inputs: int, outputs: int | None = None) -> list[int]:
    """How many rows of a joined layer belong to each of its modules.

    Args:
        modules: as `modules_of` gives them.
        inputs: the layer's width.
        outputs: all its rows; None: as many as Flux has.

    Returns:
        One number a module; their sum is not `outputs` if the layer is not of a Flux model.
    """
    if len(modules) == 1:
        return [inputs if outputs is None else outputs]
    sizes = [MLP_RATIO * inputs if module.endswith(MLP) else inputs for module in modules]
    if outputs is not None and modules[-1].endswith(MLP):
        sizes[-1] = outputs - sum(sizes[:-1])
    return sizes


def _lookup(flat: str, table: Mapping[str, str]) -> list[str]:
    """The modules whose own or original name, with "_" for ".", is `flat`."""
    for module in table:
        if module.replace(".", "_") == flat:
            return [module]
    return [module for module, name in table.items() if name.replace(".", "_") == flat]
