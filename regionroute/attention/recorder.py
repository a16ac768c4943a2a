"""Records how much each image token attends to the words of a style, inside a transformer.

Both block types put the tokens in one row: [text, noisy target image, context image].
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from regionroute.attention.columns import attend, attend_among
from regionroute.attention.plan import AttentionPlan
from regionroute.attention.processors import BlockProcessor, replaced
from regionroute.compat import in_backward_pass
from regionroute.config.choices import BACKENDS, NORMS, Backend, Norm
from regionroute.config.sites import AttentionSite, Queries, Tokens, parse_sites, resolve_sites
from regionroute.diffusion.families import Family, find_transformer

# From query, key and value [B,N,H,D] to the attention output [B,N,H,D].
Core = Callable[[Tensor, Tensor, Tensor], Tensor]


class AttentionRecorder:
    """Swaps the attention processors of chosen blocks for recording ones, and puts them back.

    Keep the `recording` context open until the backward pass has ended: gradient checkpointing
    reruns the blocks in it, and those runs must do the same work. They do not record: a run
    inside a backward pass is a recomputation.

    ``torch.compile`` may be on, of the whole transformer or of its blocks, switched on before or
    inside the context. A recorded block runs its attention core uncompiled (a graph break), the
    rest compiled. The first recording and the first forward after it recompile; from then on
    entering and leaving, other recorders, plans, heads and tokens compile nothing, and the number
    of blocks does not matter. ``fullgraph=True`` forbids the break: with it the compiler refuses
    to record. With gradient checkpointing compile the blocks
    (``transformer.compile_repeated_blocks()``): a whole transformer is compiled around its
    checkpointed blocks, these are not.

    Args:
        layers: "all", or sites as `config.sites.parse_site` takes them: whole blocks ("double.0",
            "single.3"), some heads ("double.1:0,3") or certain image tokens
            ("double.1.context:2"). Words in them are left to the plan.
        queries: whose attention is read where a site does not say it: the noisy "target"
            tokens, the clean "context" tokens, or "both", which gives two maps a site,
            "double.0.target" and "double.0.context".
        norm: which keys share the softmax, see `columns.attend` and
            `columns.attend_among`.
        source: names `layers` in errors, such as "supervision.layers".
        backend: kernel of the recorded attention, see `columns.attend`; norm "full" only.

    Raises:
        UserError: a site that is not of the form.
        ValueError: unknown `queries`, `norm` or `backend`.
    """

    def __init__(
        self,
        layers: Sequence[str] | Literal["all"] = "all",
        queries: Queries = "target",
        norm: Norm = "full",
        source: str = "supervision.layers",
        backend: Backend = "auto",
    ) -> None:
        if queries not in ("target", "context", "both"):
            raise ValueError(f'queries must be "target", "context" or "both", got {queries!r}')
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self.layers = layers
        self.queries: Queries = queries
        self.norm: Norm = norm
        self.backend: Backend = backend
        self.source = source
        self._specs = parse_sites(layers)
        self._plan: AttentionPlan | None = None
        self._maps: dict[str, Tensor] = {}
        self._counts = torch.ones(1, 1)  # tokens of each pair, [B,S]

    def sites(self, transformer: nn.Module) -> list[AttentionSite]:
        """The sites in a model, which may be wrapped; each site's name is its map's.

        Raises:
            UserError: a block or a head that the model does not have.
            ValueError: no transformer of a known family inside.
        """
        module, family = find_transformer(transformer)
        blocks = family.blocks(module)
        heads = {name: int(attn.heads) for name, attn in blocks.items()}
        return resolve_sites(self._specs, self.queries, heads, self.source)

    @contextmanager
    def recording(self, transformer: nn.Module, plan: AttentionPlan) -> Iterator[None]:
        """Records every forward of `transformer` (or of a wrapper around it) until the exit.

        Args:
            transformer: of any family, bare, compiled, or inside DDP, DeepSpeed or another module.
            plan: tokens and masks of the batch, on the model's device.

        Raises:
            RuntimeError: this recorder is already recording.
            UserError: a block or a head that the model does not have.
            ValueError: no transformer of a known family inside, or one that computes attention in
                another way (fused projections, another processor or attention backend).
        """
        module, family = find_transformer(transformer)
        blocks = family.blocks(module)
        with self._reading(transformer, plan) as chosen:
            read = {name: blocks[name] for name in chosen}
            with replaced(
                read, family, lambda name: _RecordingProcessor(self, family, chosen[name])
            ):
                yield

    @contextmanager
    def cores(self, transformer: nn.Module, plan: AttentionPlan) -> Iterator[dict[str, Core]]:
        """Attention that records, for other processors to call, see `RowCache.full`.

        Args:
            transformer: as of `recording`.
            plan: as of `recording`.

        Yields:
            Block name -> attention [B,N,H,D] of query, key and value [B,N,H,D] after the rotary
            embedding.

        Raises:
            RuntimeError: this recorder is already recording.
            UserError: a block or a head that the model does not have.
        """
        with self._reading(transformer, plan) as chosen:
            yield {name: partial(self._core, sites) for name, sites in chosen.items()}

    @contextmanager
    def _reading(
        self, transformer: nn.Module, plan: AttentionPlan
    ) -> Iterator[dict[str, list[AttentionSite]]]:
        """Blocks and their sites, while the plan is in force."""
        if self._plan is not None:
            raise RuntimeError("this recorder is already recording")
        chosen: dict[str, list[AttentionSite]] = {}
        # Sites that differ in their words alone have one name and are read once.
        for site in {site.name: site for site in self.sites(transformer)}.values():
            chosen.setdefault(site.block, []).append(site)
        self._plan, self._maps = plan, {}
        try:
            yield chosen
        finally:
            self._plan = None

    def _core(
        self,
        sites: Sequence[AttentionSite],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """`attend` from [B,N,H,D] to [B,N,H,D]."""
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return self.attend(sites, query, key, value, mask).transpose(1, 2)

    def maps(self) -> dict[str, Tensor]:
        """The maps of the latest recorded forward, attached to its graph.

        Returns:
            Name of the site -> [B,S,h,w] in fp32: the probability of the pair's tokens, mean over
            the heads and over the tokens; 0 for a pair without tokens.

        Raises:
            RuntimeError: nothing has been recorded.
        """
        maps = self.loss_maps()
        if self.norm != "selected":
            return maps
        counts = self._counts[..., None, None]
        return {name: tokens.sum(2) / counts for name, tokens in maps.items()}

    def loss_maps(self) -> dict[str, Tensor]:
        """The maps that Focus and Cover are taken of, attached to their graph.

        Returns:
            As `maps`; with norm "selected" one map a token, name of the site -> [B,S,K,h,w]. There
            the maps of a pair's K tokens sum to 1 at every position, so their mean is constant and
            teaches nothing: the published code takes its losses per token.

        Raises:
            RuntimeError: nothing has been recorded.
        """
        if not self._maps:
            raise RuntimeError("no forward pass was recorded")
        return dict(self._maps)

    def attend(
        self,
        sites: Sequence[AttentionSite],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Attention output [B,H,N,D] of a block; its maps are kept unless this is a recomputation.

        Args:
            sites: what to read in this block.
            query: [B,H,N,D].
            key: [B,H,N,D].
            value: [B,H,N,D].
            mask: of the attention, as `columns.attend` takes it.

        Raises:
            RuntimeError: gradients are required but re-entrant checkpointing dropped the graph.
        """
        plan = self._plan
        assert plan is not None, "a recording processor was called outside its context"
        rows = _rows(sites, plan, query.shape[2])
        if self.norm == "full":
            out, probs = attend(
                query, key, value, plan.token_index, rows=rows, mask=mask, backend=self.backend
            )
        else:
            text_len = plan.text_len if self.norm == "text" else None
            out, probs = attend_among(
                query, key, value, plan.token_index, text_len=text_len, rows=rows, mask=mask
            )
        count = self._counts = plan.token_index.ge(0).sum(-1).clamp(min=1)  # [B,S]
        for site in sites:
            # Reduced even in a recomputation, which must save the same tensors as the first run.
            picked = probs if site.heads is None else probs[:, list(site.heads)]
            if self.norm == "selected":
                means = picked.mean(1).movedim(1, -1)  # [B,S,K,R]
            else:
                means = picked.mean(1).sum(-1).mT / count[..., None]  # [B,S,R]
            start = _first_row(site.tokens, plan) - rows.start
            means = means[..., start : start + plan.image_len]
            self._store(site.name, means.unflatten(-1, plan.grid))
        return out

    def _store(self, name: str, attention: Tensor) -> None:
        if not in_backward_pass():
            self._maps[name] = attention
        elif attention.requires_grad and not self._maps[name].requires_grad:
            raise RuntimeError(
                "re-entrant gradient checkpointing drops the graph of the attention maps: "
                "use use_reentrant=False, the default of diffusers"
            )


class _RecordingProcessor(BlockProcessor):
    """Hands the attention to the recorder."""

    def __init__(
        self, recorder: AttentionRecorder, family: Family, sites: Sequence[AttentionSite]
    ) -> None:
        super().__init__(family)
        self.recorder = recorder
        self.sites = sites

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rotary: Any
    ) -> Tensor:
        """See `BlockProcessor`."""
        if rotary is not None:
            query = apply_rotary_emb(query, rotary, sequence_dim=1)
            key = apply_rotary_emb(key, rotary, sequence_dim=1)
        if mask is not None and mask.ndim == 2:
            mask = mask[:, None, None]  # [B,N]: of the keys
        return self._attend(query, key, value, mask)

    # A method of the processor: the compiler then sees nothing of what differs between blocks and
    # recorders, and one compiled block serves them all.
    @torch.compiler.disable(
        reason="maps are stored outside the graph: to record, compile without fullgraph=True"
    )
    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """From [B,N,H,D] to [B,N,H,D]."""
        return self.recorder._core(self.sites, query, key, value, mask)


def _first_row(tokens: Tokens, plan: AttentionPlan) -> int:
    """Where the target's or the context's tokens begin among [text, target, context]."""
    return plan.text_len + (plan.image_len if tokens == "context" else 0)


def _rows(sites: Sequence[AttentionSite], plan: AttentionPlan, tokens: int) -> slice:
    """The query rows that hold all that the sites of a block ask for."""
    asked = {site.tokens for site in sites}
    end = plan.text_len + 2 * plan.image_len
    if tokens < end - plan.image_len or ("context" in asked and tokens != end):
        raise ValueError(
            f"the plan has {plan.text_len} text and {plan.image_len} image tokens, the "
            f"model sees {tokens} tokens (context queries need a context of the target's size)"
        )
    starts = [_first_row(one, plan) for one in asked]
    return slice(min(starts), max(starts) + plan.image_len)
