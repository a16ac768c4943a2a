"""All losses of a stylised image, on frozen networks, for fitting and training.

The networks are frozen but differentiable: gradients flow through the codec's decoder and the
encoders into the fusion module, and nowhere else.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from pseudo_labels.stylemamba.codecs import Codec
from pseudo_labels.stylemamba.config import LossConfig
from pseudo_labels.stylemamba.encoders import StyleEncoder
from pseudo_labels.stylemamba.losses import (
    content_loss,
    directional_loss,
    hide,
    masked_directional_loss,
    patch_clip_loss,
    random_patches,
    second_order_loss,
    total_variation,
)
from regionroute.models.vgg import VggFeatures


@dataclass(frozen=True)
class Parts:
    """The frozen networks.

    Attributes:
        codec: images to latents and back.
        encoder: embeds images and styles.
        vgg: for the content loss; None: the content loss compares latents.
    """

    codec: Codec
    encoder: StyleEncoder
    vgg: VggFeatures | None = None

    @property
    def random(self) -> list[str]:
        """Names of the networks with random weights, whose results are meaningless."""
        facts = {"vae": self.codec.facts, "encoder": self.encoder.facts}
        return [name for name, values in facts.items() if values["random"]]


@dataclass(frozen=True)
class ContentBatch:
    """Photos with what the losses need of them, without gradients.

    Attributes:
        latents: z [B, C, h, w].
        pictures: X, the reconstruction by the codec [B, 3, H, W]: then Y = X at the start, and the
            error of the codec does not count as an edit.
        embeddings: E(X) [B, K].
        features: content features of X, a list of [B, c, h', w']; empty without a VGG.
        outside: [B, 1, H, W], one where the style terms do not apply; None: they apply everywhere.
    """

    latents: Tensor
    pictures: Tensor
    embeddings: Tensor
    features: tuple[Tensor, ...]
    outside: Tensor | None = None

    def rows(self, index: Tensor) -> "ContentBatch":
        """The photos with these indices [b]."""
        return ContentBatch(
            self.latents[index],
            self.pictures[index],
            self.embeddings[index],
            tuple(maps[index] for maps in self.features),
            None if self.outside is None else self.outside[index],
        )


@dataclass(frozen=True)
class Result:
    """The losses of a step.

    Attributes:
        total: weighted sum, a scalar.
        terms: each loss before its weight, detached scalars.
        embeddings: E(Y) [B, K], detached: the next step's previous state.
        pictures: Y [B, 3, H, W], detached.
    """

    total: Tensor
    terms: dict[str, Tensor]
    embeddings: Tensor
    pictures: Tensor


class Objective:
    """The weighted sum of all losses.

    Args:
        parts: the frozen networks.
        config: weights; a loss of weight 0 is not computed.
    """

    def __init__(self, parts: Parts, config: LossConfig) -> None:
        self.parts, self.config = parts, config

    @torch.no_grad()
    def source(self, images: Tensor, region: Tensor | None = None) -> ContentBatch:
        """Prepare photos.

        Args:
            images: [B, 3, H, W] in [0, 1].
            region: [B, 1, H, W] in {0, 1}, where the style is applied; None: everywhere.
        """
        latents = self.parts.codec.encode(images)
        pictures = self.parts.codec.decode(latents)
        features = () if self.parts.vgg is None else tuple(self.parts.vgg(pictures))
        source = ContentBatch(latents, pictures, pictures.new_zeros(0), features)
        if region is not None:
            source = replace(source, outside=1 - region)
        return replace(source, embeddings=self.embed(pictures, source))

    def embed(self, images: Tensor, source: ContentBatch) -> Tensor:
        """E of images [B, 3, H, W] with the outside of the region hidden: [B, K]."""
        return self.parts.encoder.embed(self._visible(images, source))

    def __call__(
        self,
        latents: Tensor,
        source: ContentBatch,
        direction: Tensor,
        generator: Generator,
        *,
        previous: Tensor | None = None,
        neutral: Tensor | None = None,
    ) -> Result:
        """Losses of stylised latents.

        Args:
            latents: z' [B, C, h, w].
            source: the photos.
            direction: ΔT [B, K]; ignored in neutral rows.
            generator: of masks and crops, on the CPU.
            previous: E of the previous states [B, K]; None: no second-order term.
            neutral: [B] bool, rows that must not change: instead of the style terms they get the
                mean squared change of their latents.
        """
        styled = self.parts.codec.decode(latents)
        now = self.embed(styled, source)
        style = self._style_terms(styled, now, source, direction, generator, previous)
        rest = self._other_terms(styled, latents, source)
        weights = self.config.model_dump()
        if neutral is None:
            terms = {name: rows.mean() for name, rows in (style | rest).items()}
        else:
            moved = F.mse_loss(latents, source.latents, reduction="none").mean((1, 2, 3))
            share = (~neutral).float() / (~neutral).sum().clamp(min=1)
            terms = {name: (rows * share).sum() for name, rows in style.items()}
            terms |= {name: rows.mean() for name, rows in rest.items()}
            terms["neutral"] = (moved * neutral).sum() / neutral.sum().clamp(min=1)
            weights["neutral"] = 1.0
        return Result(
            torch.stack([weights[name] * value for name, value in terms.items()]).sum(),
            {name: value.detach() for name, value in terms.items()},
            now.detach(),
            styled.detach(),
        )

    def _style_terms(
        self,
        styled: Tensor,
        now: Tensor,
        source: ContentBatch,
        direction: Tensor,
        generator: Generator,
        previous: Tensor | None,
    ) -> dict[str, Tensor]:
        config, embed = self.config, self.parts.encoder.embed
        start, softening, terms = source.embeddings, config.softening, {}
        if config.directional:
            terms["directional"] = directional_loss(start, now, direction, softening)
        if config.second_order and previous is not None:
            terms["second_order"] = second_order_loss(start, previous, now, direction, softening)
        before, after = (self._visible(x, source) for x in (source.pictures, styled))
        if config.masked:
            size = (styled.shape[-2], styled.shape[-1])
            masks = random_patches(
                config.mask_grid, config.mask_ratio, config.masks, size, generator
            )
            masks = masks.to(styled.device)
            terms["masked"] = masked_directional_loss(
                embed, before, after, direction, masks, softening
            )
        if config.patch_clip:
            terms["patch_clip"] = patch_clip_loss(
                *(embed, before, after, direction),
                crops=config.crops,
                share=config.crop_share,
                reject=config.crop_reject,
                generator=generator,
                softening=softening,
            )
        return terms

    def _other_terms(
        self, styled: Tensor, latents: Tensor, source: ContentBatch
    ) -> dict[str, Tensor]:
        terms = {}
        if self.config.content and self.parts.vgg is not None:
            terms["content"] = content_loss(source.features, self.parts.vgg(styled))
        elif self.config.content:
            terms["content"] = content_loss([source.latents], [latents])
        if self.config.tv:
            terms["tv"] = total_variation(styled)
        return terms

    def _visible(self, images: Tensor, source: ContentBatch) -> Tensor:
        if source.outside is None:
            return images
        fill = source.pictures.mean((2, 3), keepdim=True)
        return hide(images, source.outside, fill)
