"""A Flux transformer's layers by the names that LoRA files use for them.

diffusers and PEFT name its own modules ("transformer_blocks.0.attn.to_q"). ComfyUI, sd-scripts and
Black Forest Labs' code name those of the original model ("double_blocks.0.img_attn.qkv"), where
several of diffusers' layers are one; both also occur with "_" for ".".
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

# The module's name in diffusers -> in the original model. Modules of one name there are its rows
# from top to bottom, in this order.
DOUBLE = {
    "attn.to_q": "img_attn.qkv",
    "attn.to_k": "img_attn.qkv",
    "attn.to_v": "img_attn.qkv",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.add_k_proj": "txt_attn.qkv",
    "attn.add_v_proj": "txt_attn.qkv",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
}
SINGLE = {
    "attn.to_q": "linear1",
    "attn.to_k": "linear1",
    "attn.to_v": "linear1",
    "proj_mlp": "linear1",
    "proj_out": "linear2",
    "norm.linear": "modulation.lin",
}
OTHERS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
}
MLP = "proj_mlp"  # the one part of a joined layer that is not as wide as its input
MLP_RATIO = 4  # fixed in diffusers' FluxSingleTransformerBlock


class _Blocks(NamedTuple):
    diffusers: str
    original: str
    table: Mapping[str, str]


_KINDS = (
    _Blocks("single_transformer_blocks", "single_blocks", SINGLE),
    _Blocks("transformer_blocks", "double_blocks", DOUBLE),
)
_PREFIXES = re.compile(
    r"^(base_model\.model\.|model\.)?(transformer\.|diffusion_model\.)?"
    r"(lora_unet_|lora_transformer_|lycoris_)?"
)


def modules_of(name: str) -> list[str]:
    """The diffusers modules that a layer of a LoRA file stands for.

    Args:
        name: with any of the usual prefixes, of either model, with "." or "_".

    Returns:
        Their names, from the top rows to the bottom; a name in no table is given back alone,
        without its prefix.
    """
    bare = _PREFIXES.sub("", name)
    flat = bare.replace(".", "_")
    for blocks in _KINDS:
        for start in (blocks.diffusers, blocks.original):
            if match := re.fullmatch(rf"{start}_(\d+)_(.+)", flat):
                found = _lookup(match[2], blocks.table)
                return [f"{blocks.diffusers}.{match[1]}.{part}" for part in found] or [bare]
    return _lookup(flat, OTHERS) or [bare]


def original_name(module: str) -> str | None:
    """The original model's name of the layer that a diffusers module is, or is a part of."""
    for blocks in _KINDS:
        if match := re.fullmatch(rf"{blocks.diffusers}\.(\d+)\.(.+)", module):
            part = blocks.table.get(match[2])
            return part and f"{blocks.original}.{match[1]}.{part}"
    return OTHERS.get(module)


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
