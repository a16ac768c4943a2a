"""A frozen base of any family and size, with the few facts that differ between bases.

Shape legend: B batch, C latent channels, H W pixels, h w latent rows and columns, T text tokens,
D text width, P pooled width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from regionroute.config.choices import Quantize
from regionroute.data.images import resize
from regionroute.data.prompts import Span
from regionroute.diffusion.families import Family, Text
from regionroute.diffusion.flow import draw_noise
from regionroute.errors import UserError
from regionroute.models.image_encoder import ImageEncoder, word_vectors
from regionroute.models.source import BaseSettings

MAX_ASPECT = 16  # beyond this the short side is a token or two


@dataclass
class Backbone:
    """A frozen base and its parts; the names are the pipeline's, those it lacks are None.

    Attributes:
        name: what the user asked for, without a revision.
        family: what kind of base it is.
        settings: see :class:`BaseSettings`.
        distilled: to few steps without guidance.
        fingerprint: of the transformer's configuration and size; experts fit only their own.
        execution_device: where stages run when the networks are otherwise kept on the CPU (model
            offloading); None: the networks stay where they are.
        semantic_channels: the last latent channels, which are not decoded: they encode what
            it shows.
        revision: the commit it was loaded from, None for a local folder.
        quantized: how the transformer's blocks are stored, None: in the dtype of the rest.
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
    quantized: Quantize | None = None
    _empty: Text | None = None

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        network = self.vae if self.is_skeleton else self.transformer
        return self.execution_device or network.device

    @property
    def is_skeleton(self) -> bool:
        """Whether the transformer's weights were left out, see `load_base`."""
        return bool(self.transformer.device.type == "meta")

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
        """Transformer, vae and text encoders; without a transformer that has no weights."""
        transformer = [] if self.is_skeleton else [self.transformer]
        return [*transformer, self.vae, *self.text_encoders()]

    def text_encoders(self) -> list[nn.Module]:
        """Those there are, one or two."""
        return [part for part in (self.text_encoder, self.text_encoder_2) if part is not None]

    def tokenizers(self) -> list[Any]:
        """Those there are, one or two."""
        return [part for part in (self.tokenizer, self.tokenizer_2) if part is not None]

    @property
    def image_encoder(self) -> ImageEncoder | None:
        """The codec's; None: the base has none."""
        return getattr(self.vae, "image_encoder", None)

    @property
    def text_length(self) -> int:
        """Tokens a prompt is padded or cut to."""
        return self.settings.max_text_length

    @torch.no_grad()
    def encode_images(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Images to normalised latents; no gradients.

        Args:
            images: [B,3,H,W] in [0,1].
            size: (H',W') at which the model sees them, as `fit_size` gives it; None: as they are.
                An image encoder sees them in their own detail.

        Returns:
            [B,C,h,w].
        """
        self.on_device(self.vae)
        images = images.to(self.device)
        fitted = images if size is None else resize(images, size)
        if self.image_encoder is None:
            return self.family.encode_images(self.vae, fitted)
        # Such a codec scales and shifts nothing, see `PatchCodec`.
        fitted, images = (part.to(self.vae.dtype) * 2 - 1 for part in (fitted, images))
        latents: Tensor = self.vae.encode(fitted, photos=images).latent_dist.mode()
        return latents

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
    def presence(self, images: Tensor, phrases: Sequence[Sequence[str]]) -> Tensor | None:
        """How sure the image encoder is that objects are in images.

        Args:
            images: [B,3,H,W] in [0,1], of any size.
            phrases: S object phrases for each of the B images.

        Returns:
            [B,S] in [0,1], see `ImageEncoder.presence`; None for a base without an image encoder
            that is aligned with words.
        """
        encoder = self.image_encoder
        if encoder is None:
            return None
        self.on_device(self.vae)
        size = self.fit_size(images.shape[-2], images.shape[-1])
        images = images.to(encoder.mean) * 2 - 1
        words = torch.stack([self.word_vectors(row) for row in phrases]).to(images)
        return encoder.presence(images, size, words, phrases)

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
        """What `flow.sample` takes: the empty prompt's states where they are needed, else None.

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
