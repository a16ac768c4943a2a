"""Nano's parts: the same classes as FLUX.1-Kontext at small sizes, and how they are saved."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from regionroute.backbones.patch_codec import PatchCodec
from regionroute.backbones.tokenizers import (
    WORD_START,
    build_clip_tokenizer,
    build_t5_tokenizer,
)
from regionroute.io import numbered_lines, write_json
from train.alignment import Alignment
from train.folders import replace_folder
from train.nano_config import AlignmentConfig, ModelConfig, PretrainConfig
from train.word_table import WordTable


class NanoModel(nn.Module):
    """Transformer and text encoders, trained together; tokenizers ride along.

    Args:
        cfg: sizes.
        latent_channels: of the codec; the transformer sees four times as many a token.
        words: words that get a token of their own.
        table: word vectors that the T5 encoder starts from and never changes; None: its own.
        alignment: of the transformer's states with a vision network's features.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        latent_channels: int,
        words: Sequence[str],
        table: WordTable | None = None,
        alignment: AlignmentConfig | None = None,
    ) -> None:
        super().__init__()
        self.length = cfg.text_length
        known, pieces = (words, ()) if table is None else (table.words, table.pieces)
        self.tokenizer: CLIPTokenizer = build_clip_tokenizer(words, cfg.text_length)
        self.tokenizer_2: T5TokenizerFast = build_t5_tokenizer(known, cfg.text_length, pieces)
        self.text_encoder = CLIPTextModel(_clip_config(cfg, self.tokenizer))
        self.text_encoder_2 = T5EncoderModel(_t5_config(cfg, len(self.tokenizer_2)))
        if table is not None:
            _set_vectors(self.text_encoder_2, self.tokenizer_2, table)
        self.transformer = FluxTransformer2DModel(
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
        _initialise(self.transformer)
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


def vocabulary(prompts: Sequence[str], words_file: str | None) -> list[str]:
    """Words of the prompts (hyphenated ones whole) and of a word file, sorted, each once.

    Raises:
        UserError: the word file is missing or not text.
    """
    words = {
        word for prompt in prompts for word in re.findall(r"[a-z]+(?:-[a-z]+)*", prompt.lower())
    }
    if words_file is not None:
        words |= {word for _, line in numbered_lines(words_file) for word in line.split()}
    return sorted(words)


def save_base(
    model: NanoModel, codec: PatchCodec, folder: Path, cfg: PretrainConfig, card: str
) -> None:
    """Write a diffusers Kontext folder in half precision, with the base's own settings.

    Args:
        model: trained parts.
        codec: the fitted autoencoder.
        folder: target folder; an older one is replaced when the new one is complete.
        cfg: names the side of the pictures and how they are edited by default.
        card: text of the README beside the weights.
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
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for tokenizer in (model.tokenizer, model.tokenizer_2):
        # What the last call asked for is no property of the tokenizer.
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    # fp16 rather than bf16: these weights are of moderate size and three more bits are free.
    pipeline.to(torch.float16).save_pretrained(partial, safe_serialization=True)
    pipeline.to(torch.float32)
    settings = {
        "steps": cfg.edit_steps,
        "guidance": 1.0,
        "max_text_length": model.length,
        "resolution": cfg.corpus.resolution,
        "closer": cfg.closer,
    }
    write_json(partial / "regionroute.json", settings)
    (partial / "README.md").write_text(card, encoding="utf-8")
    replace_folder(partial, folder)


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
