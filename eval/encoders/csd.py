"""CSD (Somepalli et al. 2024): a CLIP vision tower with a projection that was trained on style.

The authors' checkpoint has the layout of OpenAI's CLIP; here it is put into the same network of
transformers, whose attention keeps queries, keys and values apart.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.encoders.trust import tensors_hash
from regionroute.data.images import to_pil

HEAD_WIDTH = 64  # of every CLIP vision tower
_LAYER = {  # OpenAI's name of a part of a block -> transformers'
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TOP = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}


class CsdEncoder:
    """Style embeddings of images.

    Args:
        model: the vision tower (`CLIPVisionModel`).
        head: the style projection [D,E].
    """

    def __init__(self, model: Any, head: Tensor) -> None:
        from transformers import CLIPImageProcessor

        self.model = model.requires_grad_(False).eval()
        self.head = head
        side = model.config.image_size
        self.processor = CLIPImageProcessor(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    @torch.no_grad()
    def encode_image(self, images: Sequence[Tensor]) -> Tensor:
        """V images [3,h,w] in [0,1] to unit vectors [V,E]."""
        pixels = self.processor(images=[to_pil(image) for image in images], return_tensors="pt")
        pooled = self.model(pixels["pixel_values"].to(self.head.device)).pooler_output
        return F.normalize(pooled.float() @ self.head.float(), dim=1)

    def identity(self) -> dict[str, str]:
        """Name and weight hash."""
        tensors = {**self.model.state_dict(), "style": self.head}
        return {"encoder": "CSD", "weights": tensors_hash(tensors)}


def convert_csd(state: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """The vision tower and the style projection of a CSD checkpoint.

    Args:
        state: as saved by the authors: possibly under "model_state_dict", names possibly starting
            with "module.", the tower under "backbone.", the projection "last_layer_style".

    Raises:
        KeyError: a tensor is missing.
        RuntimeError: one has another shape.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    state = state.get("model_state_dict", state)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    tower = {n.removeprefix("backbone."): v for n, v in state.items() if n.startswith("backbone.")}
    patches = tower["conv1.weight"]
    width, patch = patches.shape[0], patches.shape[2]
    blocks = {int(n.split(".")[2]) for n in tower if n.startswith("transformer.resblocks.")}
    grid = round((tower["positional_embedding"].shape[0] - 1) ** 0.5)
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=tower["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        num_hidden_layers=len(blocks),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=grid * patch,
        patch_size=patch,
        hidden_act="quick_gelu",
    )
    model = CLIPVisionModel(config)
    found = _renamed(tower)
    own = model.state_dict()
    # Between releases transformers has kept the tower under "vision_model." and without.
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in own) else ""
    found = {prefix + name: value.float() for name, value in found.items()}
    found |= {name: value for name, value in own.items() if name.endswith("position_ids")}
    model.load_state_dict(found)
    return model, state["last_layer_style"].float()


def _renamed(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by transformers' names; the joint projection is taken apart."""
    found = {new: tower[old] for old, new in _TOP.items()}
    for name, value in tower.items():
        if not name.startswith("transformer.resblocks."):
            continue
        _, _, number, rest = name.split(".", 3)
        layer = f"encoder.layers.{number}."
        if rest.startswith("attn.in_proj_"):
            kind = rest.removeprefix("attn.in_proj_")
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                found[f"{layer}self_attn.{part}_proj.{kind}"] = piece
        else:
            part, kind = rest.rsplit(".", 1)
            found[f"{layer}{_LAYER[part]}.{kind}"] = value
    return found
