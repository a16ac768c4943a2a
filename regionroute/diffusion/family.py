"""What differs between families of bases; everything else of the project is shared.

A family is the one place that knows a transformer's classes, the arguments of its call, how its
attention is computed, its text encoders and its latents. To add one: a module beside this one, and
its line in `regionroute.diffusion.families`.

Shape legend: B batch, C latent channels, H W pixels, h w latent rows and columns, N tokens,
T text tokens, D text width, P pooled width, Hn heads, Dn head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from regionroute.data.prompts import Span

Grid: TypeAlias = tuple[int, int]  # rows and columns of image tokens
# States [B,T,D] and the pooled state [B,P] of prompts; P is 0 where a family has none.
Text: TypeAlias = tuple[Tensor, Tensor]
# Query, key and value [B,N,Hn,Dn] of all tokens, and what `Family.finish` needs besides.
Projected: TypeAlias = tuple[Tensor, Tensor, Tensor, Any]


class Parts(Protocol):
    """The parts of a loaded base that a family works with, by their names in the pipeline."""

    tokenizer: Any
    tokenizer_2: Any
    text_encoder: Any
    text_encoder_2: Any
    vae: Any

    @property
    def text_length(self) -> int:
        """Tokens a prompt is padded or cut to."""


class Family(ABC):
    """One kind of base: the same classes at any size.

    All families pack 2x2 cells of latents into a token (`regionroute.diffusion.latents.pack`),
    order the tokens [text, noisy target, context], and name their blocks "double.0", ...,
    "single.0", ....

    Attributes:
        pipeline: class that ``model_index.json`` names.
        example: a hub id, for messages.
        transformer: class of the transformer.
        networks: part -> class; the autoencoder's may be another of `autoencoders`.
        autoencoders: names of the classes that may decode.
        small_parts: tokenizers and scheduler, part -> class.
        small_files: part -> files of which one has to be there.
        processors: stock attention processors that `project` and `finish` compute the same as.
        targets: preset of ``experts.targets`` -> suffixes of the blocks' linear layers.
        original: names of the original model's layers, as ComfyUI and sd-scripts use them, by
            diffusers': within "double_blocks", within "single_blocks", and outside of both ("").
            Modules of one name there are its rows from top to bottom, in this order.
        classifier_free: guidance is a second call with the empty prompt, unless the base was
            distilled to do without; else it is told to the transformer.
    """

    pipeline: ClassVar[str]
    example: ClassVar[str]
    transformer: ClassVar[Any]
    networks: ClassVar[Mapping[str, Any]]
    autoencoders: ClassVar[tuple[str, ...]]
    small_parts: ClassVar[Mapping[str, Any]]
    small_files: ClassVar[Mapping[str, tuple[str, ...]]]
    processors: ClassVar[tuple[Any, ...]]
    targets: ClassVar[Mapping[str, tuple[str, ...]]]
    original: ClassVar[Mapping[str, Mapping[str, str]]]
    classifier_free: ClassVar[bool] = False

    @abstractmethod
    def defaults(self, distilled: bool) -> dict[str, float]:
        """Values of `BaseSettings` for a base that does not say its own."""

    @abstractmethod
    def pooled_width(self, config: Mapping[str, Any]) -> int:
        """P of a transformer's configuration."""

    @abstractmethod
    def arguments(
        self,
        transformer: Any,
        embeds: Tensor,
        pooled: Tensor,
        guidance: float,
        target: Grid,
        context: Grid,
    ) -> dict[str, Any]:
        """The transformer's arguments besides tokens, text states and time.

        Args:
            transformer: see `regionroute.diffusion.flow.predict_velocity`.
            embeds: [B,T,D]; their device is that of the call.
            pooled: [B,P].
            guidance: see `regionroute.diffusion.flow.predict_velocity`.
            target: tokens of the noisy picture.
            context: tokens of the picture to edit.
        """

    @abstractmethod
    def time_shift(self, scheduler: Any, image_tokens: int, steps: int) -> float:
        """μ of the scheduler's shift for so many tokens of the noisy target and so many steps."""

    @abstractmethod
    def encode_images(self, vae: Any, images: Tensor) -> Tensor:
        """[B,3,H,W] in [0,1] to normalised latents [B,C,h,w]: the mode of the posterior."""

    @abstractmethod
    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Normalised latents [B,C,h,w] to [B,3,H,W] float32 in [0,1]."""

    @abstractmethod
    def encode_prompts(self, parts: Parts, prompts: Sequence[str]) -> Text:
        """Text states as the stock pipeline computes them."""

    @abstractmethod
    def token_indices(self, parts: Parts, text: str, span: Span) -> list[int]:
        """Positions of a phrase's tokens among the T of the encoded prompt.

        Raises:
            UserError: see `regionroute.data.prompts.token_indices`.
        """

    def text_networks(self) -> list[str]:
        """The parts that are text encoders."""
        return [part for part in self.networks if part.startswith("text_encoder")]

    def states(self, encoder: Any, ids: Tensor, mask: Tensor | None) -> Any:
        """What a text encoder gives for tokens [B,T], as `encode_prompts` asks it."""
        return encoder(ids)

    def arranged(self, noise: Tensor) -> Tensor:
        """Noise [B,C,h,w] in the order in which the stock pipeline draws it from a generator."""
        return noise

    def blocks(self, transformer: nn.Module) -> dict[str, Any]:
        """The attention module of every block, by the block's name."""
        groups = (("double", "transformer_blocks"), ("single", "single_transformer_blocks"))
        return {
            f"{kind}.{i}": block.get_submodule("attn")
            for kind, blocks in groups
            for i, block in transformer.get_submodule(blocks).named_children()
        }

    def project(self, attn: Any, hidden: Tensor, text: Tensor | None) -> Projected:
        """Queries, keys and values of a block, normalised, before the rotary embedding.

        Args:
            attn: the block's attention module.
            hidden: [B,N,width]; of the image tokens alone where the text comes apart.
            text: [B,T,width] in double blocks.
        """
        split = (-1, attn.head_dim)
        query = attn.norm_q(attn.to_q(hidden).unflatten(-1, split))
        key = attn.norm_k(attn.to_k(hidden).unflatten(-1, split))
        value = attn.to_v(hidden).unflatten(-1, split)
        if text is None:
            return query, key, value, None
        txt_query = attn.add_q_proj(text).unflatten(-1, split)
        txt_key = attn.add_k_proj(text).unflatten(-1, split)
        txt_value = attn.add_v_proj(text).unflatten(-1, split)
        query = torch.cat([attn.norm_added_q(txt_query), query], dim=1)
        key = torch.cat([attn.norm_added_k(txt_key), key], dim=1)
        value = torch.cat([txt_value, value], dim=1)
        return query, key, value, text.shape[1]

    def finish(self, attn: Any, out: Tensor, rest: Any) -> Tensor | tuple[Tensor, Tensor]:
        """What the block's attention module gives back.

        Args:
            attn: the block's attention module.
            out: [B,N,width] of all tokens.
            rest: of `project`; here the number of text tokens that come apart, or None.

        Returns:
            One tensor of all tokens, or (image, text) in double blocks.
        """
        if rest is None:
            return out
        txt, img = out.split([rest, out.shape[1] - rest], dim=1)
        img = attn.to_out[1](attn.to_out[0](img.contiguous()))
        return img, attn.to_add_out(txt.contiguous())
