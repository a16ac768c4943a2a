"""Nano's parts: the same classes as FLUX.1-Kontext at small sizes, and how they are saved."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from regionroute.config.shipped import shipped_file
from regionroute.errors import UserError
from regionroute.files import atomic_write, numbered_lines, read_json, write_json
from regionroute.folders import atomic_folder
from regionroute.models.backbone import Backbone
from regionroute.models.codec import PatchCodec
from regionroute.models.tokenizers import WORD_START, build_clip_tokenizer, build_t5_tokenizer
from train.pretrain.alignment import Alignment
from train.pretrain.config import AlignmentConfig, ModelConfig, PretrainConfig
from train.pretrain.word_table import TABLE, WordTable

# Weights of channels added to a trained transformer, over those of a new one: at first they shall
# not drown what it knows.
_SHY = 0.3


@dataclass(frozen=True)
class NanoParts:
    """Parts of a base by their names in the pipeline."""

    tokenizer: CLIPTokenizer
    tokenizer_2: T5TokenizerFast
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    transformer: FluxTransformer2DModel


class NanoModel(nn.Module):
    """Transformer and text encoders, trained together; tokenizers ride along.

    Args:
        parts: what is trained, and the tokenizers.
        length: text tokens of a prompt.
        alignment: of the transformer's states with a vision network's features.
    """

    def __init__(
        self, parts: NanoParts, length: int, alignment: AlignmentConfig | None = None
    ) -> None:
        super().__init__()
        self.length = length
        self.tokenizer, self.tokenizer_2 = parts.tokenizer, parts.tokenizer_2
        self.text_encoder, self.text_encoder_2 = parts.text_encoder, parts.text_encoder_2
        self.transformer = parts.transformer
        self.alignment: Alignment | None = None
        if alignment is not None and alignment.vgg is not None:
            self.alignment = Alignment(alignment, self.transformer)

    def tokenize(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """CLIP and T5 token ids, [P,T] each, padded as the Kontext pipeline pads."""
        ids = [
            tokenizer(
                prompts,
                padding="max_length",
                max_length=self.length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            for tokenizer in (self.tokenizer, self.tokenizer_2)
        ]
        return ids[0], ids[1]

    def encode_text(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """T5 states [B,T,D] and CLIP's pooled state [B,D], as the Kontext pipeline takes them."""
        states = self.text_encoder_2(t5_ids)[0]
        pooled = self.text_encoder(clip_ids).pooler_output
        return states, pooled


def new_parts(
    cfg: ModelConfig,
    latent_channels: int,
    words: Sequence[str],
    table: WordTable | None = None,
    semantic_channels: int = 0,
) -> NanoParts:
    """Parts that have learned nothing yet.

    Args:
        cfg: sizes.
        latent_channels: of the codec; the transformer sees four times as many a token.
        words: words that get a token of their own.
        table: word vectors that the T5 encoder starts from and never changes; None: its own.
        semantic_channels: of the codec; their velocity is not trained and stays 0.
    """
    known, pieces = (words, ()) if table is None else (table.words, table.pieces)
    tokenizer = build_clip_tokenizer(words, cfg.text_length)
    tokenizer_2 = build_t5_tokenizer(known, cfg.text_length, pieces)
    text_encoder = CLIPTextModel(_clip_config(cfg, tokenizer))
    text_encoder_2 = T5EncoderModel(_t5_config(cfg, len(tokenizer_2)))
    if table is not None:
        _set_vectors(text_encoder_2, tokenizer_2, table)
    transformer = _transformer(cfg, latent_channels)
    if semantic_channels:  # tokens are packed channel by channel, these come last
        transformer.proj_out.weight.data[-4 * semantic_channels :] = 0
        transformer.proj_out.bias.data[-4 * semantic_channels :] = 0
    return NanoParts(tokenizer, tokenizer_2, text_encoder, text_encoder_2, transformer)


def parts_of(base: Backbone, cfg: ModelConfig, latent_channels: int) -> NanoParts:
    """Parts of a finished base, trained further; latent channels may be added to it.

    Args:
        base: see `PretrainConfig.init_from`.
        cfg: sizes, which have to be the base's.
        latent_channels: at least as many as the base's.

    Raises:
        UserError: other sizes.
    """
    transformer = _transformer(cfg, latent_channels)
    try:
        transformer.load_state_dict(_widened(base.transformer.state_dict(), transformer))
    except RuntimeError as error:
        raise UserError(
            f"init_from={base.name}: this base has other sizes than `model` and `codec` ask for "
            f"({_reason(error)})"
        ) from error
    for encoder in base.text_encoders():
        encoder.requires_grad_(True)
    # A table of word vectors stays what it was.
    base.text_encoder_2.get_input_embeddings().weight.requires_grad_(cfg.sentence_encoder is None)
    return NanoParts(
        base.tokenizer, base.tokenizer_2, base.text_encoder, base.text_encoder_2, transformer
    )


def _widened(state: dict[str, Tensor], transformer: FluxTransformer2DModel) -> dict[str, Tensor]:
    """The weights of a transformer of fewer latent channels: the further ones come last."""
    own = transformer.state_dict()
    into, out = "x_embedder.weight", ("proj_out.weight", "proj_out.bias")
    more = own[into].shape[1] - state[into].shape[1]
    if more <= 0:
        return state
    wide = {into: torch.cat([state[into], own[into][:, -more:] * _SHY], 1)}
    wide |= {key: torch.cat([state[key], torch.zeros_like(own[key][-more:])]) for key in out}
    return state | wide


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines()[1:]), type(error).__name__)


def _transformer(cfg: ModelConfig, latent_channels: int) -> FluxTransformer2DModel:
    transformer = FluxTransformer2DModel(
        in_channels=4 * latent_channels,
        num_layers=cfg.num_layers,
        num_single_layers=cfg.num_single_layers,
        attention_head_dim=cfg.attention_head_dim,
        num_attention_heads=cfg.num_attention_heads,
        joint_attention_dim=cfg.text_dim,
        pooled_projection_dim=cfg.text_dim,
        axes_dims_rope=tuple(cfg.axes_dims_rope),
        guidance_embeds=False,
    )
    _initialise(transformer)
    return transformer


def vocabulary(prompts: Sequence[str], words_file: str | None) -> list[str]:
    """Words of the prompts (hyphenated ones whole) and of a word file, sorted, each once.

    Raises:
        UserError: the word file is missing or not text.
    """
    words = {
        word for prompt in prompts for word in re.findall(r"[a-z]+(?:-[a-z]+)*", prompt.lower())
    }
    if words_file is not None:
        lines = numbered_lines(shipped_file(words_file))
        words |= {word for _, line in lines for word in line.split()}
    return sorted(words)


def save_base(
    model: NanoModel, codec: PatchCodec, folder: Path, cfg: PretrainConfig, card: str
) -> None:
    """Write a diffusers Kontext folder in half precision, with the base's own settings.

    Args:
        model: trained parts.
        codec: the fitted autoencoder.
        folder: target folder; an older one is replaced when the new one is complete.
        cfg: names the side of the images and how they are edited by default.
        card: text of the README next to the weights.
    """
    pipeline = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False),
        vae=codec,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=model.tokenizer_2,
        transformer=model.transformer,
    )
    with atomic_folder(folder) as partial:
        for tokenizer in (model.tokenizer, model.tokenizer_2):
            # What the last call asked for is no property of the tokenizer.
            tokenizer.backend_tokenizer.no_truncation()
            tokenizer.backend_tokenizer.no_padding()
        # fp16 rather than bf16: these weights are of moderate size and three more bits are free.
        pipeline.to(torch.float16).save_pretrained(partial, safe_serialization=True)
        pipeline.to(torch.float32)
        if cfg.model.sentence_encoder:
            store_in_float8(partial / "text_encoder_2" / "model.safetensors", TABLE)
        if cfg.model.float8:
            store_in_float8(partial / "transformer" / "diffusion_pytorch_model.safetensors")
        for path in partial.glob("tokenizer*/tokenizer.json"):
            # Laid out for reading a vocabulary takes three times the space.
            text = json.dumps(read_json(path), ensure_ascii=False, separators=(",", ":"))
            path.write_text(text, encoding="utf-8")
        settings = {
            "steps": cfg.edit_steps,
            "guidance": 1.0,
            "max_text_length": model.length,
            "resolution": cfg.corpus.resolution,
            "refine_crop": cfg.refine_crop,
        }
        write_json(partial / "regionroute.json", settings)
        (partial / "README.md").write_text(card, encoding="utf-8")


def store_in_float8(file: Path, names: str = "*") -> None:
    """Store the matrices of a saved network in float8 (E4M3), at half the size of float16.

    diffusers and transformers cast them to the precision that they load in. Rounding changes a
    matrix by 2.7 % (Frobenius norm) and turns a word vector by about two degrees. Biases and norms,
    half a percent of the weights, stay as they are.

    Args:
        file: safetensors, replaced.
        names: pattern of the matrices, "*": all.
    """
    state = load_file(file)
    for name, weight in state.items():
        if weight.ndim == 2 and fnmatchcase(name, names):
            state[name] = weight.to(torch.float8_e4m3fn)
    with atomic_write(file) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})


def _set_vectors(encoder: T5EncoderModel, tokenizer: T5TokenizerFast, table: WordTable) -> None:
    """Put the table into the encoder's embedding and freeze it; other tokens keep theirs."""
    tokens = [WORD_START + word for word in table.words] + table.pieces
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(tokens))
    embedding = encoder.get_input_embeddings()
    embedding.weight.data[ids] = table.vectors
    embedding.weight.requires_grad_(False)


def _initialise(transformer: FluxTransformer2DModel) -> None:
    """Start near a working residual network: open gates, small modulation, small output.

    With the library's defaults a model this small learns to copy late; gates open at .5 and small
    modulation weights let information through from the first step.
    """
    width = transformer.inner_dim
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            nn.init.normal_(norm.linear.weight, std=0.01)
            nn.init.zeros_(norm.linear.bias)
            for gate in (2, 5):  # order: shift, scale, gate of attention, then of the MLP
                norm.linear.bias.data[gate * width : (gate + 1) * width] = 0.5
    for block in transformer.single_transformer_blocks:
        nn.init.normal_(block.norm.linear.weight, std=0.01)
        nn.init.zeros_(block.norm.linear.bias)
        block.norm.linear.bias.data[2 * width :] = 0.5
    nn.init.normal_(transformer.norm_out.linear.weight, std=0.01)
    nn.init.zeros_(transformer.norm_out.linear.bias)


def _clip_config(cfg: ModelConfig, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=cfg.text_dim,
        intermediate_size=2 * cfg.text_dim,
        num_hidden_layers=cfg.text_layers,
        num_attention_heads=4,
        max_position_embeddings=cfg.text_length,
        projection_dim=cfg.text_dim,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _t5_config(cfg: ModelConfig, vocab_size: int) -> T5Config:
    return T5Config(
        vocab_size=vocab_size,
        d_model=cfg.text_dim,
        d_kv=cfg.text_dim // 4,
        d_ff=2 * cfg.text_dim,
        num_layers=cfg.text_layers,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
