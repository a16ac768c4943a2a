"""Records how much each image token attends to the words of a style, inside a Flux transformer.

Both block types put the tokens in one row: [text, noisy target image, context image].
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from torch import Tensor, nn

from regionroute.attention.columns import NORMS, Norm, attend, attend_among
from regionroute.errors import UserError

Queries = Literal["target", "context", "both"]


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """What to record of one batch and where it should lie. Spans are per sample, never pooled.

    Attributes:
        token_index: long [B,S,K] positions of each pair's phrase among the text tokens, -1 pads.
        masks: [B,S,h,w] soft object masks in [0,1] on the token grid.
        valid: [B,S] bool, False for padding pairs.
        text_len: number of text tokens.
        image_len: number of noisy-target tokens, h·w.

    Raises:
        ValueError: shapes that do not belong together, or a position outside the text.
    """

    token_index: Tensor
    masks: Tensor
    valid: Tensor
    text_len: int
    image_len: int

    def __post_init__(self) -> None:
        pairs = self.token_index.shape[:2]
        if self.token_index.ndim != 3 or self.masks.ndim != 4 or self.valid.ndim != 2:
            raise ValueError("a plan needs token_index [B,S,K], masks [B,S,h,w] and valid [B,S]")
        if self.masks.shape[:2] != pairs or self.valid.shape != pairs:
            raise ValueError(
                f"token_index {list(self.token_index.shape)}, masks {list(self.masks.shape)} and "
                f"valid {list(self.valid.shape)} must agree in B and S"
            )
        if self.masks.shape[2] * self.masks.shape[3] != self.image_len:
            raise ValueError(
                f"masks on a {self.masks.shape[2]}x{self.masks.shape[3]} grid do not match "
                f"{self.image_len} image tokens"
            )
        # Where a plan is made; a look at the values later would make the GPU wait.
        on_cpu = self.token_index.device.type == "cpu"
        if on_cpu and bool((self.token_index >= self.text_len).any()):
            raise ValueError(f"a token position lies outside the {self.text_len} text tokens")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the token grid."""
        return self.masks.shape[2], self.masks.shape[3]

    def to(self, device: torch.device | str) -> "AttentionPlan":
        """The same plan on another device."""
        return replace(
            self,
            token_index=self.token_index.to(device),
            masks=self.masks.to(device),
            valid=self.valid.to(device),
        )


class AttentionRecorder:
    """Swaps the attention processors of chosen blocks for recording ones, and puts them back.

    Keep the `recording` context open until the backward pass has ended: gradient checkpointing
    runs the blocks again in it, and those runs must do the same work. They do not record: only
    what happens inside the transformer's own forward does.

    Args:
        layers: "all" or block names as `layer_names` gives them ("double.0", "single.3").
        queries: whose attention is read: the noisy "target" tokens, the clean "context" tokens, or
            "both", which gives two maps a block, "double.0.target" and "double.0.context".
        norm: which keys share the softmax, see `columns.attend` and
            `columns.attend_among`.

    Raises:
        ValueError: unknown `queries` or `norm`.
    """

    def __init__(
        self,
        layers: Sequence[str] | Literal["all"] = "all",
        queries: Queries = "target",
        norm: Norm = "full",
    ) -> None:
        if queries not in ("target", "context", "both"):
            raise ValueError(f'queries must be "target", "context" or "both", got {queries!r}')
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        self.layers = layers
        self.queries = queries
        self.norm: Norm = norm
        self._plan: AttentionPlan | None = None
        self._maps: dict[str, Tensor] = {}
        self._armed = False  # inside the transformer's forward, not in a recomputation
        self._wants_grad = False

    @contextmanager
    def recording(self, transformer: nn.Module, plan: AttentionPlan) -> Iterator[None]:
        """Records every forward of `transformer` (or of a wrapper around it) until the exit.

        Args:
            transformer: a FluxTransformer2DModel, bare or inside DDP, DeepSpeed or another module.
            plan: tokens and masks of the batch, on the model's device.

        Raises:
            RuntimeError: this recorder is already recording.
            UserError: a layer name the model does not have.
            ValueError: no Flux transformer inside, or one that computes attention in another way
                (fused projections, another processor or attention backend).
        """
        if self._plan is not None:
            raise RuntimeError("this recorder is already recording")
        flux = find_flux(transformer)
        blocks = self._chosen_blocks(flux)
        stock = {name: _stock_processor(name, attn) for name, attn in blocks.items()}
        hooks = [
            flux.register_forward_pre_hook(self._begin),
            flux.register_forward_hook(self._end, always_call=True),
        ]
        self._plan, self._maps = plan, {}
        try:
            for name, attn in blocks.items():
                attn.set_processor(_RecordingProcessor(self, name))
            yield
        finally:
            for name, attn in blocks.items():
                attn.set_processor(stock[name])
            for hook in hooks:
                hook.remove()
            self._plan, self._armed = None, False

    def maps(self) -> dict[str, Tensor]:
        """The maps of the latest recorded forward, attached to its graph.

        Returns:
            Layer -> [B,S,h,w] in fp32: the probability of the pair's tokens, mean over heads and
            over the tokens; 0 for a pair without tokens.

        Raises:
            RuntimeError: nothing has been recorded.
        """
        if not self._maps:
            raise RuntimeError("no forward pass was recorded")
        return dict(self._maps)

    def attend(self, layer: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention output [B,H,N,D] of one block; its map is kept unless this is a recomputation.

        Raises:
            RuntimeError: a graph is wanted but re-entrant checkpointing took it away.
        """
        plan = self._plan
        assert plan is not None, "the recording processors outlived their context"
        rows = self._rows(plan, query.shape[2])
        if self.norm == "full":
            out, probs = attend(query, key, value, plan.token_index, rows=rows)
        else:
            text_len = plan.text_len if self.norm == "text" else None
            out, probs = attend_among(
                query, key, value, plan.token_index, text_len=text_len, rows=rows
            )
        # Reduced even in a recomputation, which must save the same tensors as the first run.
        count = plan.token_index.ge(0).sum(-1).clamp(min=1)  # [B,S]
        means = probs.mean(1).sum(-1).mT / count[..., None]  # [B,S,R]
        if self._armed:
            self._store(layer, means, plan)
        return out

    def _store(self, layer: str, means: Tensor, plan: AttentionPlan) -> None:
        if self._wants_grad and not torch.is_grad_enabled():
            raise RuntimeError(
                "re-entrant gradient checkpointing drops the graph of the attention maps: "
                "use use_reentrant=False, the default of diffusers"
            )
        if self.queries != "both":
            self._maps[layer] = means.unflatten(-1, plan.grid)
            return
        target, context = means.split(plan.image_len, dim=-1)
        self._maps[f"{layer}.target"] = target.unflatten(-1, plan.grid)
        self._maps[f"{layer}.context"] = context.unflatten(-1, plan.grid)

    def _rows(self, plan: AttentionPlan, tokens: int) -> slice:
        """Query rows to read among [text, target, context]."""
        target = plan.text_len
        context = target + plan.image_len
        if tokens < context or (self.queries != "target" and tokens != context + plan.image_len):
            raise ValueError(
                f"the plan speaks of {plan.text_len} text and {plan.image_len} image tokens, the "
                f"model sees {tokens} tokens (context queries need a context of the target's size)"
            )
        if self.queries == "target":
            return slice(target, context)
        return slice(context if self.queries == "context" else target, tokens)

    def _chosen_blocks(self, flux: nn.Module) -> dict[str, Any]:
        blocks = _attention_blocks(flux)
        if self.layers == "all":
            return blocks
        for name in self.layers:
            if name not in blocks:
                near = difflib.get_close_matches(name, blocks, n=1, cutoff=0.0)
                hint = f', the nearest is "{near[0]}"' if near else ""
                raise UserError(f'supervision.layers: the model has no block "{name}"{hint}')
        return {name: blocks[name] for name in blocks if name in self.layers}

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._maps = {}
        self._armed, self._wants_grad = True, torch.is_grad_enabled()

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._armed = False


class _RecordingProcessor:
    """The stock Flux attention step by step, with its core handed to the recorder."""

    def __init__(self, recorder: AttentionRecorder, layer: str) -> None:
        self.recorder = recorder
        self.layer = layer

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if attention_mask is not None:
            raise ValueError("attention cannot be recorded under an attention mask")
        split = (-1, attn.head_dim)
        query = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, split))  # [B,N,H,D]
        key = attn.norm_k(attn.to_k(hidden_states).unflatten(-1, split))
        value = attn.to_v(hidden_states).unflatten(-1, split)
        if encoder_hidden_states is not None:  # a double block: the text comes apart, goes first
            txt_query = attn.add_q_proj(encoder_hidden_states).unflatten(-1, split)
            txt_key = attn.add_k_proj(encoder_hidden_states).unflatten(-1, split)
            txt_value = attn.add_v_proj(encoder_hidden_states).unflatten(-1, split)
            query = torch.cat([attn.norm_added_q(txt_query), query], dim=1)
            key = torch.cat([attn.norm_added_k(txt_key), key], dim=1)
            value = torch.cat([txt_value, value], dim=1)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb, sequence_dim=1)
            key = apply_rotary_emb(key, image_rotary_emb, sequence_dim=1)

        out = self.recorder.attend(
            self.layer, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        out = out.transpose(1, 2).flatten(2, 3).to(query.dtype)
        if encoder_hidden_states is None:
            return out
        text_len = encoder_hidden_states.shape[1]
        txt, img = out.split([text_len, out.shape[1] - text_len], dim=1)
        img = attn.to_out[1](attn.to_out[0](img.contiguous()))
        return img, attn.to_add_out(txt.contiguous())


def find_flux(model: nn.Module) -> nn.Module:
    """The FluxTransformer2DModel that `model` is or contains (DDP, DeepSpeed, own wrappers).

    Raises:
        ValueError: there is none.
    """
    for module in model.modules():
        if isinstance(module, FluxTransformer2DModel):
            return module
    raise ValueError(f"there is no FluxTransformer2DModel in {type(model).__name__}")


def layer_names(transformer: nn.Module) -> list[str]:
    """Names of the blocks that can be recorded: "double.0", ..., "single.0", ..."""
    return list(_attention_blocks(find_flux(transformer)))


def mean_map(maps: Mapping[str, Tensor]) -> Tensor:
    """Mean [B,S,h,w] of several layers' maps."""
    return torch.stack(list(maps.values())).mean(0)


def region_map(attention: Tensor) -> Tensor:
    """Where the style will go: M / (M + mean of M), scale-free.

    Args:
        attention: map M [...,h,w], >= 0.

    Returns:
        [...,h,w] in [0,1]. 0.5 is the decision boundary of Cover's "logratio" mode, of which this
        is the sigmoid at alpha 1; an all-zero map gives 0.5 everywhere.
    """
    attention = attention.float()
    mean = attention.mean((-2, -1), keepdim=True)
    tiny = torch.finfo(attention.dtype).tiny
    return (attention + tiny) / (attention + mean + 2 * tiny)


def _attention_blocks(flux: nn.Module) -> dict[str, Any]:
    groups = (("double", "transformer_blocks"), ("single", "single_transformer_blocks"))
    return {
        f"{kind}.{i}": block.get_submodule("attn")
        for kind, blocks in groups
        for i, block in flux.get_submodule(blocks).named_children()
    }


def _stock_processor(name: str, attn: Any) -> FluxAttnProcessor:
    """The block's processor, refused when ours would not compute the same."""
    processor = attn.get_processor()
    if type(processor) is not FluxAttnProcessor:
        raise ValueError(f"{name}: cannot record beside a {type(processor).__name__}")
    if attn.fused_projections:
        raise ValueError(f"{name}: cannot record fused projections, call unfuse_qkv_projections()")
    if processor._attention_backend is not None or processor._parallel_config is not None:
        raise ValueError(f"{name}: cannot record another attention backend than PyTorch's own")
    return processor
