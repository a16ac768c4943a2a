"""FLUX.2-klein: Qwen3's hidden states, batch-normalised latents, the context at time 10.

Each method restates a part of ``Flux2KleinPipeline`` and ``Flux2Transformer2DModel`` (diffusers);
tests compare them with it. Base checkpoints are guided by a second call with the empty prompt;
those distilled to four steps are not guided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
)
from diffusers.models.transformers.transformer_flux2 import (
    Flux2AttnProcessor,
    Flux2ParallelSelfAttnProcessor,
)
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor, nn
from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

from regionroute.data.prompts import Span, token_indices
from regionroute.diffusion.family import (
    Attention,
    Family,
    Grid,
    Parts,
    Projected,
    Rest,
    Text,
)
from regionroute.errors import UserError

if TYPE_CHECKING:
    from diffusers import ModelMixin, SchedulerMixin
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STATES = (9, 18, 27)  # layers of Qwen3 whose concatenated hidden states are the text
CONTEXT_TIME = 10  # of the first context image; the noisy target is at 0
_PLACEHOLDER = "\N{OBJECT REPLACEMENT CHARACTER}"


class JointAttention(Attention, Protocol):
    """Attention of a single block, which shares its projections with the feed-forward."""

    to_qkv_mlp_proj: nn.Module
    mlp_hidden_dim: int
    mlp_mult_factor: int
    mlp_act_fn: nn.Module


class Klein(Family):
    """The family of FLUX.2-klein-base-4B, its 9B sister and their distilled versions."""

    pipeline = "Flux2KleinPipeline"
    example = "black-forest-labs/FLUX.2-klein-base-4B"
    transformer = Flux2Transformer2DModel
    networks: ClassVar[Mapping[str, type[ModelMixin | PreTrainedModel]]] = {
        "transformer": Flux2Transformer2DModel,
        "vae": AutoencoderKLFlux2,
        "text_encoder": Qwen3ForCausalLM,
    }
    autoencoders = ("AutoencoderKLFlux2",)
    small_parts: ClassVar[Mapping[str, type[PreTrainedTokenizerBase | SchedulerMixin]]] = {
        "tokenizer": Qwen2TokenizerFast,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }
    small_files: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "tokenizer": ("tokenizer.json", "vocab.json"),
        "scheduler": ("scheduler_config.json",),
    }
    processors = (Flux2AttnProcessor, Flux2ParallelSelfAttnProcessor)
    # As for FLUX.1-Kontext where the layers are the same. A single block projects queries, keys,
    # values and its feed-forward in one layer, which is adapted whole.
    targets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "regionroute": ("to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj"),
        "styleexpert": (
            "to_q", "to_k", "to_v", "to_out.0",
            "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
            "ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out",
            "to_qkv_mlp_proj", "attn.to_out",
        ),
        # One modulation for all double blocks of a stream, and one for all single blocks.
        "all": (
            "to_q", "to_k", "to_v", "to_out.0",
            "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
            "ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out",
            "to_qkv_mlp_proj", "attn.to_out",
            "double_stream_modulation_img.linear", "double_stream_modulation_txt.linear",
            "single_stream_modulation.linear", "norm_out.linear",
            "x_embedder", "context_embedder", "proj_out",
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
            "ff.linear_in": "img_mlp.0",
            "ff.linear_out": "img_mlp.2",
            "ff_context.linear_in": "txt_mlp.0",
            "ff_context.linear_out": "txt_mlp.2",
        },
        "single_blocks": {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"},
        "": {
            "x_embedder": "img_in",
            "context_embedder": "txt_in",
            "proj_out": "final_layer.linear",
            "norm_out.linear": "final_layer.adaLN_modulation.1",
            "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
            "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
            "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
            "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
            "single_stream_modulation.linear": "single_stream_modulation.lin",
        },
    }
    classifier_free = True

    def defaults(self, distilled: bool) -> dict[str, float]:
        """As the model cards recommend."""
        steps, guidance = (4, 1.0) if distilled else (50, 4.0)
        return {
            "steps": steps, "guidance": guidance, "max_text_length": 512, "resolution": 1024,
        }  # fmt: skip

    def pooled_width(self, config: Mapping[str, Any]) -> int:
        """There is no pooled state."""
        return 0

    def arguments(
        self,
        transformer: ModelMixin,
        embeds: Tensor,
        pooled: Tensor,
        guidance: float,
        target: Grid,
        context: Grid,
    ) -> dict[str, Tensor | None]:
        """Position ids of four axes: time, row, column, text position; see `Family.arguments`."""
        batch, length, _ = embeds.shape
        text = _ids(0, 1, 1, length)
        image = torch.cat([_ids(0, *target), _ids(CONTEXT_TIME, *context)])
        return {
            "guidance": None,
            "txt_ids": text.expand(batch, -1, -1).to(embeds.device),
            "img_ids": image.expand(batch, -1, -1).to(embeds.device),
        }

    def time_shift(
        self, scheduler: FlowMatchEulerDiscreteScheduler, image_tokens: int, steps: int
    ) -> float:
        """The pipeline's empirical fit to the numbers of noisy-target tokens and steps."""
        return float(compute_empirical_mu(image_tokens, steps))

    def encode_images(self, vae: AutoencoderKLFlux2, images: Tensor) -> Tensor:
        """The mode of the posterior, each channel of a 2x2 patch normalised by its own statistics.

        The latents keep the autoencoder's grid, [B,C,h,w], where the pipeline leaves them as
        patches, [B,4C,h/2,w/2]; the tokens are the same.
        """
        latents = vae.encode(images.to(vae.dtype) * 2 - 1).latent_dist.mode()
        mean, std = _statistics(vae, latents)
        return unpatchify((patchify(latents) - mean) / std)

    def decode_latents(self, vae: AutoencoderKLFlux2, latents: Tensor) -> Tensor:
        """The inverse, clamped to [0,1]."""
        latents = latents.to(vae.dtype)
        mean, std = _statistics(vae, latents)
        images = vae.decode(unpatchify(patchify(latents) * std + mean), return_dict=False)[0]
        return (images.float() * 0.5 + 0.5).clamp(0, 1)

    def arranged(self, noise: Tensor) -> Tensor:
        """The pipeline draws patches, [B,4C,h/2,w/2]."""
        batch, channels, height, width = noise.shape
        return unpatchify(noise.reshape(batch, 4 * channels, height // 2, width // 2))

    def encode_prompts(self, parts: Parts, prompts: Sequence[str]) -> Text:
        """Concatenated hidden states of three layers, [B,T,3·width], and [B,0]."""
        encoder = parts.text_encoder
        rows = parts.tokenizer(
            [_chat(parts.tokenizer, prompt) for prompt in prompts],
            padding="max_length",
            max_length=parts.text_length,
            truncation=True,
            return_tensors="pt",
        )
        device = encoder.device
        hidden = self.states(encoder, rows.input_ids.to(device), rows.attention_mask.to(device))
        states = torch.cat([hidden[layer] for layer in STATES], dim=-1).to(encoder.dtype)
        return states, states.new_zeros(len(states), 0)

    def states(
        self, encoder: PreTrainedModel, ids: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Hidden states of all layers; the unused language-model head is skipped."""
        return encoder.model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states

    def token_indices(self, parts: Parts, text: str, span: Span) -> list[int]:
        """Positions among the tokens of the chat that wraps the prompt."""
        tokenizer, length = parts.tokenizer, parts.text_length
        before = _chat(tokenizer, _PLACEHOLDER).index(_PLACEHOLDER)
        chat = _chat(tokenizer, text)
        if not chat.startswith(text, before):
            raise UserError(
                f"prompt {text!r}: this base's chat template changes it; remove what it "
                "interprets, such as tags"
            )
        found = token_indices(
            tokenizer, chat, (span[0] + before, span[1] + before), length, said=text
        )
        if tokenizer.padding_side == "left":
            found = [
                index + length - min(length, len(tokenizer(chat).input_ids)) for index in found
            ]
        return found

    def project(self, attn: Attention, hidden: Tensor, text: Tensor | None) -> Projected:
        """Single blocks project attention and feed-forward in one layer."""
        if text is not None:
            return super().project(attn, hidden, text)
        width, joint = attn.inner_dim, cast("JointAttention", attn)
        query, key, value, mlp = joint.to_qkv_mlp_proj(hidden).split(
            [width, width, width, joint.mlp_hidden_dim * joint.mlp_mult_factor], dim=-1
        )
        split = (-1, attn.head_dim)
        query, key = attn.norm_q(query.unflatten(-1, split)), attn.norm_k(key.unflatten(-1, split))
        return query, key, value.unflatten(-1, split), mlp

    def finish(self, attn: Attention, out: Tensor, rest: Rest) -> Tensor | tuple[Tensor, Tensor]:
        """Single blocks project attention and feed-forward back in one layer."""
        if not isinstance(rest, Tensor):
            return super().finish(attn, out, rest)
        joint = cast("JointAttention", attn)
        result: Tensor = joint.to_out(torch.cat([out, joint.mlp_act_fn(rest)], dim=-1))
        return result


def patchify(latents: Tensor) -> Tensor:
    """[B,C,h,w] to [B,4C,h/2,w/2]: einops ``b c (h p) (w q) -> b (c p q) h w``."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 1, 3, 5, 2, 4).reshape(batch, -1, height // 2, width // 2)


def unpatchify(patches: Tensor) -> Tensor:
    """The inverse of `patchify`."""
    batch, channels, height, width = patches.shape
    latents = patches.reshape(batch, channels // 4, 2, 2, height, width)
    return latents.permute(0, 1, 4, 2, 5, 3).reshape(batch, -1, 2 * height, 2 * width)


def _statistics(vae: AutoencoderKLFlux2, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a patch's channels, [1,4C,1,1], rounded as in the pipeline."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return mean.to(like), std.to(like)


def _ids(time: int, rows: int, columns: int, length: int = 1) -> Tensor:
    """Whole numbers [rows·columns·length,4], as the pipeline gives them."""
    return torch.cartesian_prod(
        torch.tensor([time]), torch.arange(rows), torch.arange(columns), torch.arange(length)
    )


def _chat(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """What Qwen3 reads: the prompt as a user's message, with an empty thought before the answer."""
    chat: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    return chat


FAMILY = Klein()
