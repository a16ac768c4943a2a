"""The parts of a base that lead from an object's word to its image tokens in the first block.

In the first block the tokens of the context image still are what the image encoder found, so that
a head whose query and key maps agree with the encoder's word map attends to the named object. One
head has too few rotary frequencies that are slow enough for this (about 24 of 32 channels turn
little over an image); the heads share the features, and their geometric mean adds up their logits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regionroute.attention import AttentionPlan, AttentionRecorder, combine_maps
from regionroute.diffusion.flow import predict_velocity
from regionroute.errors import UserError
from regionroute.models.backbone import Backbone
from train.pretrain.word_attention.prompts import Named, phrase_tokens, token_ids

BLOCK = "double.0"


class WordHeads(nn.Module):
    """What is trained: rows of the first block's projections, its norms, and the text layers.

    Args:
        base: changed in place.
        heads: of the first block.
        text_share: factor on what the T5 layers add to the word vectors.

    Attributes:
        numbers: of the heads.
        sites: the attention sites, for a map choice.

    Raises:
        UserError: a base of another kind, or a head that it does not have.
    """

    def __init__(self, base: Backbone, heads: Sequence[int], text_share: float) -> None:
        super().__init__()
        transformer, encoder = base.transformer, base.text_encoder_2
        if encoder is None or base.image_encoder is None:
            raise UserError(f"base={base.name}: needs an image encoder that is aligned with words")
        self.base, self.numbers = base, tuple(heads)
        self.attention = transformer.transformer_blocks[0].attn
        self.sites = [f"{BLOCK}.context:{head}" for head in heads]
        self.recorder = AttentionRecorder(self.sites, "context", source="heads")
        self.recorder.sites(transformer)
        self.encoder, self.embedder = encoder, transformer.context_embedder
        self._kept = copy.deepcopy(encoder), copy.deepcopy(self.embedder)
        width = self.attention.head_dim
        rows = torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])
        attention = self.attention
        for linear in (attention.to_q, attention.to_k, attention.add_k_proj):
            _train_rows(linear, rows)
        with torch.no_grad():
            for norm in (attention.norm_q, attention.norm_added_k):
                norm.requires_grad_(True)
            for name, weight in encoder.named_parameters():
                weight.requires_grad_("shared" not in name and "embed_tokens" not in name)
                if name.endswith(("SelfAttention.o.weight", "DenseReluDense.wo.weight")):
                    weight.mul_(text_share)
        self.embedder.requires_grad_(True)

    def head_weights(self) -> list[nn.Parameter]:
        """Trained weights of the first block."""
        return [weight for weight in self.attention.parameters() if weight.requires_grad]

    def text_weights(self) -> list[nn.Parameter]:
        """Trained weights of the text layers."""
        both = [*self.encoder.parameters(), *self.embedder.parameters()]
        return [weight for weight in both if weight.requires_grad]

    def maps(self, batch: Named, noise: Tensor) -> Tensor:
        """The heads' combined map of each image's word.

        Args:
            batch: images with words.
            noise: [B,C,h,w].

        Returns:
            Attention [B,h/2,w/2] in [0,1].
        """
        context = batch.context
        clip, t5 = token_ids(self.base, [prompt.text for prompt in batch.prompts])
        tokens = phrase_tokens(self.base, batch.prompts)
        states = self.encoder(t5)[0]
        pooled = self.base.text_encoder(clip).pooler_output.detach()
        longest = max(map(len, tokens))
        index = torch.tensor([[*row, *[-1] * (longest - len(row))] for row in tokens])
        grid = context.shape[2] // 2, context.shape[3] // 2
        plan = AttentionPlan(
            index[:, None],
            torch.zeros(len(context), 1, *grid),
            torch.ones(len(context), 1, dtype=torch.bool),
            t5.shape[1],
            grid[0] * grid[1],
        )
        transformer = self.base.transformer
        with _first_block_only(transformer), self.recorder.recording(transformer, plan):
            sigma = torch.ones(len(context))
            predict_velocity(transformer, noise, context, states, pooled, sigma, 1.0)
        return combine_maps(list(self.recorder.maps().values()), "geometric")[:, 0]

    @contextmanager
    def inputs(self) -> Iterator[dict[str, Tensor]]:
        """Keeps what enters the first block's attention: "image" [B,2N,D] and "text" [B,T,D]."""
        seen: dict[str, Tensor] = {}

        def keep(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            seen["image"], seen["text"] = given["hidden_states"], given["encoder_hidden_states"]

        hook = self.attention.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield seen
        finally:
            hook.remove()

    def moved(self, t5: Tensor) -> Tensor:
        """Distance of the text states from those of the base, relative to their variance.

        Args:
            t5: token ids [P,T].
        """
        encoder, embedder = self._kept
        with torch.no_grad():
            before = _normalised(embedder(encoder(t5)[0]))
            variance = (before - before.mean((0, 1))).square().mean()
        now = _normalised(self.embedder(self.encoder(t5)[0]))
        return (now - before).square().mean() / variance


def context_features(base: Backbone, context: Tensor) -> Tensor:
    """The image encoder's features in latents [B,C,h,w], standardised: [B,c,h/2,w/2]."""
    return F.pixel_unshuffle(context[:, -base.semantic_channels :].float(), 2)


def _train_rows(linear: nn.Linear, rows: Tensor) -> None:
    """Trains some rows of a linear layer; the others get no gradient."""
    chosen = torch.zeros(linear.out_features)
    chosen[rows] = 1
    linear.requires_grad_(True)
    linear.weight.register_hook(lambda gradient: gradient * chosen[:, None])
    linear.bias.register_hook(lambda gradient: gradient * chosen)


@contextmanager
def _first_block_only(transformer: Any) -> Iterator[None]:
    """A transformer without the blocks after the first, whose attention nothing depends on."""
    double, single = transformer.transformer_blocks, transformer.single_transformer_blocks
    transformer.transformer_blocks = nn.ModuleList(list(double)[:1])
    transformer.single_transformer_blocks = nn.ModuleList()
    try:
        yield
    finally:
        transformer.transformer_blocks, transformer.single_transformer_blocks = double, single


def _normalised(states: Tensor) -> Tensor:
    """As the blocks' norms see them."""
    return F.layer_norm(states, states.shape[-1:], eps=1e-6)
