"""What differs between families of bases; everything else of the project is shared.

A family is the one place that knows a transformer's classes, the arguments of its call, how its
attention is computed, its text encoders and its latents. To add one, write a module in this folder
and list it in `regionroute.diffusion.families`.

Shape legend: B batch, C latent channels, H W pixels, h w latent rows and columns, N tokens,
T text tokens, D text width, P pooled width, Hn heads, Dn head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn

from regionroute.data.prompts import Span

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, ModelMixin, SchedulerMixin
    from diffusers.configuration_utils import FrozenDict
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils import ModelOutput

Grid: TypeAlias = tuple[int, int]  # rows and columns of image tokens
# States [B,T,D] and the pooled state [B,P] of prompts; P is 0 where a family has none.
Text: TypeAlias = tuple[Tensor, Tensor]
# What `Family.project` passes on to `Family.finish`: the number of text tokens that are projected
# separately, the feed-forward's input [B,N,F], or nothing.
Rest: TypeAlias = int | Tensor | None
# Query, key and value [B,N,Hn,Dn] of all tokens, and the rest.
Projected: TypeAlias = tuple[Tensor, Tensor, Tensor, Rest]


class Attention(Protocol):
    """The attention module of a block, as diffusers' FluxAttention and Flux2Attention are.

    Single blocks lack the text stream's layers (``add_*``, ``norm_added_*``, ``to_add_out``).
    """

    heads: int
    head_dim: int
    inner_dim: int
    fused_projections: bool
    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module
    to_out: nn.ModuleList
    norm_q: nn.Module
    norm_k: nn.Module
    add_q_proj: nn.Module
    add_k_proj: nn.Module
    add_v_proj: nn.Module
    norm_added_q: nn.Module
    norm_added_k: nn.Module
    to_add_out: nn.Module

    def get_processor(self) -> Processor:
        """The object that computes the block's attention."""

    def set_processor(self, processor: Processor) -> None:
        """Replaces it."""


class Processor(Protocol):
    """An attention processor: called with the attention module and its inputs."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One tensor of all tokens, or (image, text) in double blocks."""


class Posterior(Protocol):
    """An encoded image's distribution."""

    def mode(self) -> Tensor:
        """[B,C,h,w]."""


class Encoding(Protocol):
    """What an autoencoder's ``encode`` returns."""

    latent_dist: Posterior


class Autoencoder(Protocol):
    """The part of an autoencoder that families use; AutoencoderKL and PatchCodec have it."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""

    @property
    def config(self) -> FrozenDict:
        """Of the class's own settings."""

    def encode(self, x: Tensor) -> Encoding:
        """Images [B,3,H,W] in [-1,1] to their posterior."""

    def decode(self, z: Tensor, *, return_dict: Literal[False]) -> tuple[Tensor]:
        """Latents [B,C,h,w] to images [B,3,H,W] in [-1,1]."""


class Parts(Protocol):
    """The parts of a loaded base that a family works with, by their names in the pipeline."""

    tokenizer: PreTrainedTokenizerBase
    tokenizer_2: PreTrainedTokenizerBase
    text_encoder: PreTrainedModel
    text_encoder_2: PreTrainedModel
    vae: Autoencoder

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
        autoencoders: names of the autoencoder classes that a base may have.
        small_parts: tokenizers and scheduler, part -> class.
        small_files: part -> files of which one has to be there.
        processors: stock attention processors that `project` and `finish` compute the same as.
        targets: preset of ``experts.targets`` -> suffixes of linear layers; those of "all" are of
            the whole transformer, others of its blocks.
        original: names of the original model's layers, as ComfyUI and sd-scripts use them, by
            diffusers': within "double_blocks", within "single_blocks", and outside of both ("").
            Modules with the same name there are its rows from top to bottom, in this order.
        classifier_free: guidance is a second call with the empty prompt, unless the base was
            distilled to need none; otherwise its strength is an input of the transformer.
    """

    pipeline: ClassVar[str]
    example: ClassVar[str]
    transformer: ClassVar[type[ModelMixin]]
    networks: ClassVar[Mapping[str, type[ModelMixin | PreTrainedModel]]]
    autoencoders: ClassVar[tuple[str, ...]]
    small_parts: ClassVar[Mapping[str, type[PreTrainedTokenizerBase | SchedulerMixin]]]
    small_files: ClassVar[Mapping[str, tuple[str, ...]]]
    processors: ClassVar[tuple[type[Processor], ...]]
    targets: ClassVar[Mapping[str, tuple[str, ...]]]
    original: ClassVar[Mapping[str, Mapping[str, str]]]
    classifier_free: ClassVar[bool] = False

    @abstractmethod
    def defaults(self, distilled: bool) -> dict[str, float]:
        """Values of `BaseSettings` for a base without values of its own."""

    @abstractmethod
    def pooled_width(self, config: Mapping[str, Any]) -> int:
        """P of a transformer's configuration."""

    @abstractmethod
    def arguments(
        self,
        transformer: ModelMixin,
        embeds: Tensor,
        pooled: Tensor,
        guidance: float,
        target: Grid,
        context: Grid,
    ) -> dict[str, Tensor | None]:
        """The transformer's arguments besides tokens, text states and time.

        Args:
            transformer: see `regionroute.diffusion.flow.predict_velocity`.
            embeds: [B,T,D]; their device is that of the call.
            pooled: [B,P].
            guidance: see `regionroute.diffusion.flow.predict_velocity`.
            target: tokens of the noisy image.
            context: tokens of the image to edit.
        """

    @abstractmethod
    def time_shift(
        self, scheduler: FlowMatchEulerDiscreteScheduler, image_tokens: int, steps: int
    ) -> float:
        """μ of the scheduler's shift for so many tokens of the noisy target and so many steps."""

    @abstractmethod
    def encode_images(self, vae: Autoencoder, images: Tensor) -> Tensor:
        """[B,3,H,W] in [0,1] to normalised latents [B,C,h,w]: the mode of the posterior."""

    @abstractmethod
    def decode_latents(self, vae: Autoencoder, latents: Tensor) -> Tensor:
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

    def states(
        self, encoder: PreTrainedModel, ids: Tensor, mask: Tensor | None
    ) -> ModelOutput | tuple[Tensor, ...]:
        """A text encoder's output for tokens [B,T], as `encode_prompts` calls it."""
        return encoder(ids)

    def arranged(self, noise: Tensor) -> Tensor:
        """Noise [B,C,h,w] in the order in which the stock pipeline draws it from a generator."""
        return noise

    def blocks(self, transformer: nn.Module) -> dict[str, Attention]:
        """The attention module of every block, by the block's name."""
        groups = (("double", "transformer_blocks"), ("single", "single_transformer_blocks"))
        return {
            f"{kind}.{i}": cast("Attention", block.get_submodule("attn"))
            for kind, blocks in groups
            for i, block in transformer.get_submodule(blocks).named_children()
        }

    def project(self, attn: Attention, hidden: Tensor, text: Tensor | None) -> Projected:
        """Queries, keys and values of a block, normalised, before the rotary embedding.

        Args:
            attn: the block's attention module.
            hidden: [B,N,width]; of the image tokens only where the text is separate.
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

    def finish(self, attn: Attention, out: Tensor, rest: Rest) -> Tensor | tuple[Tensor, Tensor]:
        """The output of the block's attention module.

        Args:
            attn: the block's attention module.
            out: [B,N,width] of all tokens.
            rest: of `project`; here the number of text tokens that are separate, or None.

        Returns:
            One tensor of all tokens, or (image, text) in double blocks.
        """
        if rest is None:
            return out
        count = cast("int", rest)
        txt, img = out.split([count, out.shape[1] - count], dim=1)
        img = attn.to_out[1](attn.to_out[0](img.contiguous()))
        return img, attn.to_add_out(txt.contiguous())
