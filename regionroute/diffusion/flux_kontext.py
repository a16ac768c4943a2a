"""FLUX.1-Kontext: T5 and CLIP, embedded guidance, the context in frame 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from regionroute.data.prompts import Span, token_indices
from regionroute.diffusion import latents as latent_space
from regionroute.diffusion.family import Autoencoder, Family, Grid, Parts, Text
from regionroute.diffusion.latents import CONTEXT_FRAME, TARGET_FRAME, image_ids, text_ids

if TYPE_CHECKING:
    from diffusers import ModelMixin, SchedulerMixin
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Kontext(Family):
    """The family of FLUX.1-Kontext-dev and of the embedded bases."""

    pipeline = "FluxKontextPipeline"
    example = "black-forest-labs/FLUX.1-Kontext-dev"
    transformer = FluxTransformer2DModel
    networks: ClassVar[Mapping[str, type[ModelMixin | PreTrainedModel]]] = {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
    }
    autoencoders = ("AutoencoderKL", "PatchCodec")
    small_parts: ClassVar[Mapping[str, type[PreTrainedTokenizerBase | SchedulerMixin]]] = {
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": T5TokenizerFast,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }
    small_files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "tokenizer": ("tokenizer.json", "vocab.json"),
        "tokenizer_2": ("tokenizer.json", "spiece.model"),
        "scheduler": ("scheduler_config.json",),
    }
    processors = (FluxAttnProcessor,)
    # "regionroute" is its paper's choice: the image stream's attention projections of double blocks
    # and the joint ones of single blocks (which have no to_out); 190 layers and 4,669,440
    # parameters an expert at rank 4 on FLUX.1-Kontext. "styleexpert": self-attention and
    # feed-forward of both streams, 418 layers there. "all" adds the adaLN modulation of every block
    # and of the output, and the layers before the first and after the last block.
    targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "regionroute": ("to_q", "to_k", "to_v", "to_out.0"),
        "styleexpert": (
            "to_q", "to_k", "to_v", "to_out.0",
            "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
            "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
            "proj_mlp", "proj_out",
        ),
        "all": (
            "to_q", "to_k", "to_v", "to_out.0",
            "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
            "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
            "proj_mlp", "proj_out",
            "norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear",
            "x_embedder", "context_embedder",
        ),
    }  # fmt: skip
    original: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "double_blocks": {
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
        },
        "single_blocks": {
            "attn.to_q": "linear1",
            "attn.to_k": "linear1",
            "attn.to_v": "linear1",
            "proj_mlp": "linear1",
            "proj_out": "linear2",
            "norm.linear": "modulation.lin",
        },
        "": {
            "x_embedder": "img_in",
            "context_embedder": "txt_in",
            "proj_out": "final_layer.linear",
            "norm_out.linear": "final_layer.adaLN_modulation.1",
            "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
            "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
            "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
            "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
            "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
            "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        },
    }

    def defaults(self, distilled: bool) -> dict[str, float]:
        """The pipeline's defaults."""
        return {"steps": 28, "guidance": 3.5, "max_text_length": 512, "resolution": 1024}

    def pooled_width(self, config: Mapping[str, Any]) -> int:
        """Width of CLIP's pooled state."""
        return int(config["pooled_projection_dim"])

    def arguments(
        self,
        transformer: ModelMixin,
        embeds: Tensor,
        pooled: Tensor,
        guidance: float,
        target: Grid,
        context: Grid,
    ) -> dict[str, Tensor | None]:
        """Guidance, pooled state and ids, see `Family.arguments`."""
        device = embeds.device
        strength = None
        if transformer.config.guidance_embeds:
            strength = torch.full([len(embeds)], guidance, device=device, dtype=torch.float32)
        ids = torch.cat([image_ids(*target, TARGET_FRAME), image_ids(*context, CONTEXT_FRAME)])
        return {
            "guidance": strength,
            "pooled_projections": pooled.to(embeds),
            "txt_ids": text_ids(embeds.shape[1]).to(device),
            "img_ids": ids.to(device),
        }

    def time_shift(
        self, scheduler: FlowMatchEulerDiscreteScheduler, image_tokens: int, steps: int
    ) -> float:
        """Linear in the number of noisy-target tokens."""
        config = scheduler.config
        base_tokens, max_tokens = config.base_image_seq_len, config.max_image_seq_len
        slope = (config.max_shift - config.base_shift) / (max_tokens - base_tokens)
        return float(image_tokens * slope + config.base_shift - slope * base_tokens)

    def encode_images(self, vae: Autoencoder, images: Tensor) -> Tensor:
        """See `latents.encode_images`."""
        return latent_space.encode_images(vae, images)

    def decode_latents(self, vae: Autoencoder, latents: Tensor) -> Tensor:
        """See `latents.decode_latents`."""
        return latent_space.decode_latents(vae, latents)

    def encode_prompts(self, parts: Parts, prompts: Sequence[str]) -> Text:
        """T5 states [B,T,D], and CLIP's pooled state [B,P]."""
        clip_ids = parts.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=parts.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        t5_ids = parts.tokenizer_2(
            list(prompts),
            padding="max_length",
            max_length=parts.text_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        pooled = parts.text_encoder(clip_ids.to(parts.text_encoder.device)).pooler_output
        states = parts.text_encoder_2(t5_ids.to(parts.text_encoder_2.device))[0]
        return states.to(parts.text_encoder_2.dtype), pooled.to(parts.text_encoder.dtype)

    def token_indices(self, parts: Parts, text: str, span: Span) -> list[int]:
        """Positions among T5's tokens."""
        return token_indices(parts.tokenizer_2, text, span, parts.text_length)


FAMILY = Kontext()
