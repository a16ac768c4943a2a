"""Loads a Kontext pipeline of any size, frozen, with the few facts that differ between bases.

Shape legend: B batch, C latent channels, H W pixels, h w latent rows and columns, T text tokens,
D text width, P pooled width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast
from transformers.utils import logging as transformers_logging

from regionroute import latents as latent_space
from regionroute.backbones.patch_codec import PatchCodec
from regionroute.backbones.source import (
    BaseSettings,
    explained,
    read_index,
    read_settings,
    resolve,
)
from regionroute.errors import UserError
from regionroute.io import settings_hash

SMALL_PARTS: dict[str, Any] = {
    "tokenizer": CLIPTokenizer,
    "tokenizer_2": T5TokenizerFast,
    "scheduler": FlowMatchEulerDiscreteScheduler,
}
NETWORKS: dict[str, Any] = {
    "transformer": FluxTransformer2DModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": T5EncoderModel,
}
# The one part of which there are two kinds; model_index.json names the class, as for any pipeline.
AUTOENCODERS: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "PatchCodec": PatchCodec}
MAX_ASPECT = 16  # beyond this the short side is a token or two


@dataclass
class Backbone:
    """A frozen base and its parts; the names are the pipeline's.

    Attributes:
        name: what the user asked for.
        settings: see :class:`BaseSettings`.
        fingerprint: of the transformer's configuration and size; experts fit only their own.
    """

    name: str
    transformer: FluxTransformer2DModel
    vae: AutoencoderKL | PatchCodec
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    tokenizer_2: T5TokenizerFast
    text_encoder_2: T5EncoderModel
    scheduler: FlowMatchEulerDiscreteScheduler
    settings: BaseSettings
    fingerprint: str

    @property
    def device(self) -> torch.device:
        """Where the transformer is."""
        return self.transformer.device

    @property
    def vae_scale(self) -> int:
        """Pixels a latent cell covers along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def to(self, device: str | torch.device) -> Backbone:
        """Moves all networks, in place."""
        for network in self.networks():
            network.to(device)
        return self

    def networks(self) -> list[nn.Module]:
        """The four networks: transformer, vae, both text encoders."""
        return [self.transformer, self.vae, self.text_encoder, self.text_encoder_2]

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """[B,3,H,W] in [0,1] to scaled latents [B,C,h,w]; no gradients."""
        return latent_space.encode_images(self.vae, images.to(self.device))

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Scaled latents [B,C,h,w] to [B,3,H,W] float32 in [0,1]; no gradients."""
        return latent_space.decode_latents(self.vae, latents.to(self.device))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Text states as the stock pipeline computes them; no gradients.

        Args:
            prompts: B texts. Whether phrases survive truncation is checked by
                :func:`regionroute.prompts.token_indices`, not here.

        Returns:
            T5 states [B,T,D] with T = ``settings.max_text_length``, and CLIP's pooled state [B,P].
        """
        clip_ids = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        t5_ids = self.tokenizer_2(
            list(prompts),
            padding="max_length",
            max_length=self.settings.max_text_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        pooled = self.text_encoder(clip_ids.to(self.device)).pooler_output
        states = self.text_encoder_2(t5_ids.to(self.device))[0]
        return states.to(self.text_encoder_2.dtype), pooled.to(self.text_encoder.dtype)

    def fit_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which the model sees a picture: same aspect, area near resolution².

        Args:
            height: H of the picture.
            width: W of the picture.

        Returns:
            (H', W'), multiples of 2 · vae scale.

        Raises:
            UserError: one side is more than 16 times the other.
        """
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise UserError(
                f"the picture is {width}x{height}: one side is more than {MAX_ASPECT} times the "
                "other, crop it first"
            )
        multiple = 2 * self.vae_scale
        scale = self.settings.resolution / math.sqrt(height * width)
        fitted = [
            max(multiple, round(side * scale / multiple) * multiple) for side in (height, width)
        ]
        return fitted[0], fitted[1]


def load_backbone(
    spec: str, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Backbone:
    """Loads a base: every network frozen and in evaluation mode.

    Args:
        spec: ``nano``, a local folder in diffusers' ``FluxKontextPipeline`` layout, or a hub id
            such as ``black-forest-labs/FLUX.1-Kontext-dev``. A folder wins over a hub id.
        dtype: of all networks.
        device: where they go.

    Raises:
        UserError: no such base, not a Kontext pipeline, files missing or damaged, hub not
            reachable or not permitted.
    """
    source = resolve(spec)
    settings = read_settings(source) if isinstance(source, Path) else BaseSettings()
    with quiet() if isinstance(source, Path) else contextlib.nullcontext():
        parts = _load_parts(spec, source, dtype)
    backbone = Backbone(
        name=spec,
        settings=settings,
        fingerprint=fingerprint(parts["transformer"]),
        **parts,
    )
    for network in backbone.networks():
        network.requires_grad_(False).eval()
    return backbone.to(device)


def load_skeleton(spec: str) -> FluxTransformer2DModel:
    """A base's transformer without its weights: names, sizes and fingerprint, at no cost.

    Args:
        spec: see `load_backbone`.

    Returns:
        The transformer on the meta device.

    Raises:
        UserError: see `load_backbone`.
    """
    source = resolve(spec)
    where = {"local_files_only": isinstance(source, Path)}
    with explained(spec, source):
        read_index(spec, source)
        config = FluxTransformer2DModel.load_config(source, subfolder="transformer", **where)
        with torch.device("meta"):
            return FluxTransformer2DModel.from_config(config)


def fingerprint(transformer: FluxTransformer2DModel) -> str:
    """Hash of a transformer's configuration and parameter count (not of its weights)."""
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    return settings_hash({"config": config, "parameters": transformer.num_parameters()})


def _autoencoder(spec: str, index: dict[str, Any]) -> Any:
    """The autoencoder's class by its name in model_index.json."""
    name = index["vae"][1]
    if name not in AUTOENCODERS:
        raise UserError(
            f"base {spec}: its vae is a {name}, known are {' and '.join(sorted(AUTOENCODERS))}"
        )
    return AUTOENCODERS[name]


def _load_parts(spec: str, source: Path | str, dtype: torch.dtype) -> dict[str, Any]:
    """All parts by their pipeline names."""
    where = {"local_files_only": isinstance(source, Path)}
    parts: dict[str, Any] = {}
    with explained(spec, source):
        index = read_index(spec, source)
        for name, kind in SMALL_PARTS.items():
            parts[name] = kind.from_pretrained(source, subfolder=name, **where)
        for name, kind in (NETWORKS | {"vae": _autoencoder(spec, index)}).items():
            parts[name], report = kind.from_pretrained(
                source, subfolder=name, dtype=dtype, output_loading_info=True, **where
            )
            # Both libraries fill what a file lacks with random numbers and only print a line.
            if report["missing_keys"]:
                first = min(report["missing_keys"])
                raise UserError(f"base {spec}: the weights of {name} lack {first}; copy them again")
    return parts


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of the two libraries; for local files, which load in moments."""
    bars = (
        transformers_logging.is_progress_bar_enabled(),
        diffusers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars[0]:
            transformers_logging.enable_progress_bar()
        if bars[1]:
            diffusers_logging.enable_progress_bar()
