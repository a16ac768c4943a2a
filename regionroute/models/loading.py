"""Loads a base of any family and size, frozen, with the few facts that differ between bases.

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

import diffusers
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from regionroute.config.run import Quantize
from regionroute.data.prompts import Span
from regionroute.diffusion.families import Family, Text
from regionroute.diffusion.flow import draw_noise
from regionroute.errors import UserError
from regionroute.files import settings_hash
from regionroute.models.codec import PatchCodec
from regionroute.models.image_encoder import word_vectors
from regionroute.models.quantize import check_quantize, quantize_blocks
from regionroute.models.source import (
    BaseSettings,
    commit_of,
    default_settings,
    explained,
    family_in,
    find_index,
    is_distilled,
    read_index,
    read_settings,
    refuse_quantized,
    resolve,
)

MAX_ASPECT = 16  # beyond this the short side is a token or two
_SUREST = 4  # positions: a mean over few is steadier than the maximum


@dataclass
class Backbone:
    """A frozen base and its parts; the names are the pipeline's, those it lacks are None.

    Attributes:
        name: what the user asked for.
        family: what kind of base it is.
        settings: see :class:`BaseSettings`.
        distilled: to few steps without guidance.
        fingerprint: of the transformer's configuration and size; experts fit only their own.
        execution_device: where stages run when the networks are otherwise kept on the CPU (model
            offloading); None: the networks stay where they are.
        semantic_channels: the last latent channels, which are not decoded: they encode what
            it shows.
        revision: the commit it was loaded from, None for a local folder.
    """

    name: str
    family: Family
    transformer: Any
    vae: Any
    scheduler: FlowMatchEulerDiscreteScheduler
    settings: BaseSettings
    fingerprint: str
    tokenizer: Any
    text_encoder: Any
    tokenizer_2: Any = None
    text_encoder_2: Any = None
    distilled: bool = False
    semantic_channels: int = 0
    execution_device: torch.device | None = None
    revision: str | None = None
    _empty: Text | None = None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.execution_device or self.transformer.device

    @property
    def vae_scale(self) -> int:
        """Pixels a latent cell covers along each side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    def to(self, device: str | torch.device) -> Backbone:
        """Moves all networks, in place."""
        for network in self.networks():
            network.to(device)
        return self

    def on_device(self, *needed: nn.Module) -> None:
        """With model offloading, move the networks of a stage to the device, others to the CPU."""
        if self.execution_device is None:
            return
        for network in self.networks():
            used = any(network is one for one in needed)
            network.to(self.execution_device if used else "cpu")

    def networks(self) -> list[nn.Module]:
        """Transformer, vae and text encoders."""
        return [self.transformer, self.vae, *self.text_encoders()]

    def text_encoders(self) -> list[nn.Module]:
        """Those there are, one or two."""
        return [part for part in (self.text_encoder, self.text_encoder_2) if part is not None]

    def tokenizers(self) -> list[Any]:
        """Those there are, one or two."""
        return [part for part in (self.tokenizer, self.tokenizer_2) if part is not None]

    @property
    def text_length(self) -> int:
        """Tokens a prompt is padded or cut to."""
        return self.settings.max_text_length

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """[B,3,H,W] in [0,1] to normalised latents [B,C,h,w]; no gradients."""
        self.on_device(self.vae)
        return self.family.encode_images(self.vae, images.to(self.device))

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Normalised latents [B,C,h,w] to [B,3,H,W] float32 in [0,1]; no gradients."""
        self.on_device(self.vae)
        return self.family.decode_latents(self.vae, latents.to(self.device))

    def word_vectors(self, phrases: Sequence[str]) -> Tensor:
        """Unit vectors [N,D] of phrases from the vocabulary of the text encoder, see there."""
        encoder, tokenizer = self.text_encoders()[-1], self.tokenizers()[-1]
        return word_vectors(encoder, tokenizer, phrases)

    @torch.no_grad()
    def presence(self, context: Tensor, phrases: Sequence[Sequence[str]]) -> Tensor | None:
        """How sure the image encoder is that objects are in images.

        Args:
            context: latents of the images, [B,C,h,w].
            phrases: S object phrases for each of the B images.

        Returns:
            [B,S] in [0,1], the mean probability at the four surest positions; None for a base
            without an image encoder that is aligned with words.
        """
        encoder = getattr(self.vae, "image_encoder", None)
        if encoder is None:
            return None
        features = F.pixel_unshuffle(context[:, -self.semantic_channels :].float(), 2)
        words = torch.stack([self.word_vectors(row) for row in phrases]).to(features)
        scores: Tensor = encoder.scores(encoder.raw(features), words)
        surest = scores.sigmoid().flatten(2)
        return surest.topk(min(_SUREST, surest.shape[2])).values.mean(2)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Text:
        """Text states as the stock pipeline computes them; no gradients.

        Args:
            prompts: B texts. Whether phrases survive truncation is checked by
                :meth:`token_indices`, not here.

        Returns:
            States [B,T,D] with T = ``settings.max_text_length``, and the pooled state [B,P], P
            being 0 where the family has none.
        """
        self.on_device(*self.text_encoders())
        return self.family.encode_prompts(self, prompts)

    def token_indices(self, text: str, span: Span) -> list[int]:
        """Positions of a phrase's tokens among the T states of a prompt.

        Raises:
            UserError: see :func:`regionroute.data.prompts.token_indices`.
        """
        return self.family.token_indices(self, text, span)

    def negative(self, guidance: float) -> Text | None:
        """What `flow.guided` takes: the empty prompt's states where they are needed, else None.

        Encoded once, so that they outlive the text encoders.
        """
        if not self.family.classifier_free or self.distilled or guidance <= 1:
            return None
        if self._empty is None or self._empty[0].shape[1] != self.text_length:
            self._empty = self.encode_prompts([""])
        return self._empty

    def draw_noise(self, shape: tuple[int, ...], seed: int) -> Tensor:
        """Noise [B,C,h,w] that the stock pipeline would draw from this seed on the CPU."""
        return self.family.arranged(draw_noise(shape, seed))

    def fit_size(self, height: int, width: int) -> tuple[int, int]:
        """The size at which the model processes an image: same aspect, area near resolution².

        Args:
            height: H of the image.
            width: W of the image.

        Returns:
            (H', W'), multiples of 2 · vae scale.

        Raises:
            UserError: one side is more than 16 times the other.
        """
        if max(height, width) > MAX_ASPECT * min(height, width):
            raise UserError(
                f"the image is {width}x{height}: one side is more than {MAX_ASPECT} times the "
                "other, crop it first"
            )
        multiple = 2 * self.vae_scale
        scale = self.settings.resolution / math.sqrt(height * width)
        fitted = [
            max(multiple, round(side * scale / multiple) * multiple) for side in (height, width)
        ]
        return fitted[0], fitted[1]


def load_base(
    spec: str,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantize: Quantize | None = None,
    revision: str | None = None,
) -> Backbone:
    """Loads a base: every network frozen and in evaluation mode.

    Args:
        spec: ``nano``, a local folder in diffusers' layout of a known family's pipeline, or a hub
            id such as ``black-forest-labs/FLUX.1-Kontext-dev``. A folder wins over a hub id.
        dtype: of all networks, see :mod:`regionroute.models.quantize`.
        device: where they go.
        quantize: stores the transformer's blocks in fewer bits.
        revision: branch, tag or commit of a hub id, None: its main branch. All parts are loaded
            from the one commit that it names now, which is then `Backbone.revision`.

    Raises:
        UserError: no such base, of no known family, files missing or damaged, hub not reachable
            or not permitted.
    """
    if quantize:
        check_quantize(quantize)
    source = resolve(spec)
    with explained(spec, source):
        commit = commit_of(find_index(spec, source, revision)) or revision
        if isinstance(source, Path):
            commit = None
        index = read_index(spec, source, commit)
        refuse_quantized(spec, source, (*family_in(index).networks, "vae"), commit)
    settings = read_settings(source) if isinstance(source, Path) else default_settings(index)
    with quiet() if isinstance(source, Path) else contextlib.nullcontext():
        parts = _load_parts(spec, source, index, dtype, commit)
    backbone = Backbone(
        name=spec,
        family=family_in(index),
        settings=settings,
        fingerprint=fingerprint(parts["transformer"]),
        distilled=is_distilled(index),
        semantic_channels=int(parts["vae"].config.get("semantic_channels", 0)),
        revision=commit,
        **parts,
    )
    for network in backbone.networks():
        network.requires_grad_(False).eval()
    if quantize:
        quantize_blocks(backbone.transformer, quantize, device)
    return backbone.to(device)


def load_skeleton(spec: str) -> Any:
    """A base's transformer without its weights, for names, sizes and fingerprint.

    Args:
        spec: see `load_base`.

    Returns:
        The transformer on the meta device.

    Raises:
        UserError: see `load_base`.
    """
    source = resolve(spec)
    where = {"local_files_only": isinstance(source, Path)}
    with explained(spec, source):
        kind = family_in(read_index(spec, source)).transformer
        config = kind.load_config(source, subfolder="transformer", **where)
        with torch.device("meta"):
            return kind.from_config(config)


def fingerprint(transformer: Any) -> str:
    """Hash of a transformer's configuration and parameter count (not of its weights)."""
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    return settings_hash({"config": config, "parameters": transformer.num_parameters()})


def autoencoder_class(name: str) -> Any:
    """The autoencoder's class of this name in ``model_index.json``; diffusers' load lazily."""
    return PatchCodec if name == PatchCodec.__name__ else getattr(diffusers, name)


def _autoencoder(spec: str, index: dict[str, Any]) -> Any:
    """The autoencoder's class of a base, if its family knows it."""
    name, known = index["vae"][1], family_in(index).autoencoders
    if name not in known:
        raise UserError(f"base {spec}: its vae is a {name}, known are {' and '.join(known)}")
    return autoencoder_class(name)


def _load_parts(
    spec: str, source: Path | str, index: dict[str, Any], dtype: torch.dtype, revision: str | None
) -> dict[str, Any]:
    """All parts by their pipeline names."""
    where: dict[str, Any] = {"local_files_only": isinstance(source, Path)}
    if revision is not None:
        where["revision"] = revision
    family = family_in(index)
    parts: dict[str, Any] = {}
    with explained(spec, source):
        for name, kind in family.small_parts.items():
            parts[name] = kind.from_pretrained(source, subfolder=name, **where)
        for name, kind in (dict(family.networks) | {"vae": _autoencoder(spec, index)}).items():
            parts[name], report = kind.from_pretrained(
                source, subfolder=name, dtype=dtype, output_loading_info=True, **where
            )
            # Both libraries fill missing weights with random numbers and only print a line.
            if report["missing_keys"]:
                first = min(report["missing_keys"])
                raise UserError(f"base {spec}: the weights of {name} lack {first}; copy them again")
    return parts


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Disables progress bars of both libraries, for local files, which load quickly."""
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
