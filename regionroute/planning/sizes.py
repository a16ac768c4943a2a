"""Sizes of a base without its weights: transformer, autoencoder and text encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPTextModel

from regionroute.diffusion.families import Family, family_of_config
from regionroute.errors import UserError
from regionroute.files import read_json
from regionroute.models.formats.packed import plain_config
from regionroute.models.loading import autoencoder_class
from regionroute.models.source import BaseSettings, family_in, read_index, read_settings, resolve
from regionroute.planning.counter import counted

KONTEXT = "black-forest-labs/FLUX.1-Kontext-dev"
# Public sizes of FLUX.1-Kontext-dev; its files need an accepted licence and network access.
KONTEXT_PARTS: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_layers": 19,
        "num_single_layers": 38,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "in_channels": 64,
        "guidance_embeds": True,
        "axes_dims_rope": [16, 56, 56],
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 16,
        "layers_per_block": 2,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "text_encoder_2": {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    },
}
# Sizes of FLUX.2-klein-base-4B and its distilled version; the autoencoder has its class's defaults.
KLEIN_PARTS: dict[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "Flux2Transformer2DModel",
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 7680,
        "in_channels": 128,
        "guidance_embeds": False,
    },
    "vae": {"block_out_channels": [128, 256, 512, 512], "latent_channels": 32},
    "text_encoder": {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
KLEIN, KLEIN_DISTILLED = (f"black-forest-labs/FLUX.2-klein-{x}4B" for x in ("base-", ""))
PUBLIC = {KONTEXT: KONTEXT_PARTS, KLEIN: KLEIN_PARTS, KLEIN_DISTILLED: KLEIN_PARTS}


@dataclass(frozen=True)
class BaseSizes:
    """A base's configurations, by the parts' names in the pipeline.

    Attributes:
        name: as the user gave it.
        origin: source of the configurations, in words.
        folder: of a local base.
        settings: see `BaseSettings`.
        parts: part -> its ``config.json``.
        vae_class: the autoencoder's.
    """

    name: str
    origin: str
    folder: Path | None
    settings: BaseSettings
    parts: dict[str, dict[str, Any]]
    vae_class: Any = AutoencoderKL

    @property
    def family(self) -> Family:
        """Family of the base."""
        return family_of_config(self.parts["transformer"])

    @property
    def vae_scale(self) -> int:
        """Pixels a latent cell covers along each side."""
        return int(2 ** (len(self.parts["vae"]["block_out_channels"]) - 1))

    @property
    def latent_channels(self) -> int:
        """C: a token is 2x2 cells of them."""
        return int(self.parts["transformer"]["in_channels"]) // 4

    def autoencoder(self) -> nn.Module:
        """A new autoencoder; without data where tensors are made fake."""
        made: nn.Module = self.vae_class.from_config(self.parts["vae"])
        return made

    def latent_size(self, resolution: int) -> int:
        """Latent rows of a square image; other aspects have the same area."""
        return 2 * max(1, round(resolution / (2 * self.vae_scale)))


@dataclass(frozen=True)
class CachingSizes:
    """Memory of the encoders while the cache is filled, one image or prompt at a time.

    Attributes:
        values: parameters of autoencoder and text encoders.
        weights: bytes of these.
        activations: bytes at the peak, over the weights.
    """

    values: int
    weights: int
    activations: int


def read_sizes(spec: str) -> BaseSizes:
    """The configurations of a base.

    Args:
        spec: ``nano``, a local folder, or a hub id of `PUBLIC`, which needs no network.

    Raises:
        UserError: no such base, or a hub id whose sizes are not known here.
    """
    source = resolve(spec)
    if isinstance(source, Path):
        index = read_index(spec, source)
        family, vae = family_in(index), index["vae"][1]
        parts = {
            part: plain_config(read_json(source / part / "config.json")) for part in family.networks
        }
        vae_class = autoencoder_class(vae) if vae in family.autoencoders else AutoencoderKL
        return BaseSizes(
            spec, f"the files in {source}", source, read_settings(source), parts, vae_class
        )
    if source not in PUBLIC:
        raise UserError(
            f"base.name={spec}: only the sizes of {', '.join(PUBLIC)} are known without their "
            "files; download this base and give its folder"
        )
    parts = PUBLIC[source]
    family = family_of_config(parts["transformer"])
    values: dict[str, Any] = family.defaults(source == KLEIN_DISTILLED)
    return BaseSizes(
        spec, "the public description of it", None, BaseSettings(**values), parts,
        autoencoder_class(family.autoencoders[0]),
    )  # fmt: skip


def caching_sizes(base: BaseSizes, dtype: torch.dtype, resolution: int, text: int) -> CachingSizes:
    """Runs the encoders on fake tensors.

    Args:
        base: whose encoders.
        dtype: of their weights.
        resolution: side of the image in pixels.
        text: tokens of a prompt.
    """
    side = base.latent_size(resolution) * base.vae_scale

    def encode(vae: Any) -> None:
        vae.encode(torch.empty(1, 3, side, side))

    runs: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [(base.autoencoder, encode)]
    runs += [_text_run(base, part, text) for part in base.family.text_networks()]
    values = weights = peak = 0
    for make, run in runs:
        with counted(dtype) as counter, torch.no_grad():
            model: nn.Module = make()
            for parameter in model.parameters():
                counter.add(parameter)
            before = counter.now
            values += sum(p.numel() for p in model.parameters())
            weights += sum(p.numel() * p.element_size() for p in model.parameters())
            counter.peak = before  # initialisation does not count
            run(model.eval())
            peak = max(peak, counter.peak - before)
    return CachingSizes(values, weights, peak)


def _text_run(
    base: BaseSizes, part: str, text: int
) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """Makes a text encoder, and runs it for one prompt."""
    kind = base.family.networks[part]
    config = kind.config_class(**_plain(base.parts[part]))
    # CLIP pads to a length of its own.
    length = config.max_position_embeddings if kind is CLIPTextModel else text

    def run(model: Any) -> None:
        base.family.states(model, torch.zeros(1, length, dtype=torch.long), None)

    return lambda: kind(config), run


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the keys that only the library's own files have."""
    left_out = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version")
    return {key: value for key, value in settings.items() if key not in left_out}
