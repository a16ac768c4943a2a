"""Which experts each sample of a batch uses, and with which weights.

Shape legend: B batch, E experts, k experts used at a time, Ds width of the style
embedding. Sizes written 1|B may be 1: the same for all samples.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Routing:
    """A router's decision.

    Attributes:
        index: long [1|B,k], each in [0,E); k = 0 means no expert.
        weight: fp32 [1|B,k]; 0 switches an expert off.
        logits: fp32 [1|B,E] of a learned router, else None.
        shared: weight of the shared expert, where there is one: a number, or [1|B].
    """

    index: Tensor
    weight: Tensor
    logits: Tensor | None = None
    shared: Tensor | float = 1.0

    @property
    def samples(self) -> int:
        """For how many samples it has weights: 1 or B."""
        shared = len(self.shared) if isinstance(self.shared, Tensor) else 1
        return max(len(self.index), len(self.weight), shared)


class Router(Protocol):
    """Chooses experts; a module of its own in each adapted layer."""

    num_experts: int

    def __call__(self, context: "RouteContext") -> Routing:
        """Routes each sample of the batch."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """What it learns, as of any `nn.Module`."""


@dataclass(frozen=True, eq=False)
class RouteContext:
    """What routers know about the current batch.

    Attributes:
        expert_ids: long [B], on the model's device; -1 = no expert, the bare base.
        style_emb: style embeddings [B,Ds] of any float dtype, on the model's device.
        router: decides in place of the layers' own routers; None: they do.
        samples: B; None if the context holds for any batch.
        distinct: the different ids, ascending, read once here: a look at `expert_ids` in every
            layer would stop the GPU each time.
        styles: `style_emb` in fp32, one row if all are the same, [1|B,Ds].
        normalized: `styles` after a LayerNorm without parameters.

    Raises:
        ValueError: nothing to route by, `expert_ids` is not a non-empty vector of integers >= -1,
            `style_emb` is not a non-empty float matrix, or the two differ in B.
    """

    expert_ids: Tensor | None = None
    style_emb: Tensor | None = None
    router: Router | None = None
    samples: int | None = field(init=False)
    distinct: tuple[int, ...] = field(init=False, default=())
    styles: Tensor | None = field(init=False, repr=False, default=None)
    normalized: Tensor | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.expert_ids is None and self.style_emb is None and self.router is None:
            raise ValueError("a route needs expert_ids, style_emb or a router")
        counts = {x.shape[0] for x in (self.expert_ids, self.style_emb) if x is not None and x.ndim}
        if len(counts) > 1:
            raise ValueError(f"expert_ids and style_emb are for {sorted(counts)} samples")
        object.__setattr__(self, "samples", next(iter(counts), None))
        if self.expert_ids is not None:
            object.__setattr__(self, "distinct", _distinct(self.expert_ids))
        if self.style_emb is not None:
            styles = _rows(self.style_emb)
            object.__setattr__(self, "styles", styles)
            object.__setattr__(self, "normalized", F.layer_norm(styles, styles.shape[1:]))

    def check(self, samples: int) -> None:
        """Compares the route with a batch.

        Raises:
            ValueError: they are for different numbers of samples.
        """
        if self.samples not in (None, samples):
            raise ValueError(f"the route is for {self.samples} samples, the batch has {samples}")


def _distinct(ids: Tensor) -> tuple[int, ...]:
    if ids.ndim != 1 or ids.numel() == 0 or ids.dtype != torch.long:
        raise ValueError(f"expert_ids must be a long vector [B], got {ids.dtype} {[*ids.shape]}")
    distinct = tuple(sorted(set(ids.tolist())))
    if distinct[0] < -1:
        raise ValueError(f"expert ids start at 0 (-1: no expert), got {distinct[0]}")
    return distinct


def _rows(style_emb: Tensor) -> Tensor:
    if style_emb.ndim != 2 or style_emb.numel() == 0 or not style_emb.is_floating_point():
        raise ValueError(
            f"style_emb must be a float matrix [B,Ds], got {style_emb.dtype} {[*style_emb.shape]}"
        )
    # Equal rows share one route; with a gradient each keeps its own.
    if not style_emb.requires_grad and bool((style_emb == style_emb[:1]).all()):
        style_emb = style_emb[:1]
    return style_emb.float()


class StyleIdRouter(nn.Module):
    """Hard routing (RegionRoute spec §5): the sample's own expert, weight 1, no parameters.

    Samples with id -1 use neither an expert nor the shared one: they are the bare base.

    Args:
        num_experts: E.
    """

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, context: RouteContext) -> Routing:
        """Routes each sample to the expert it names.

        Raises:
            ValueError: the context has no ids, or one that is not below `num_experts`.
        """
        ids, distinct = context.expert_ids, context.distinct
        if ids is None:
            raise ValueError("these experts are chosen by their ids: the route needs expert_ids")
        if distinct[-1] >= self.num_experts:
            raise ValueError(f"expert {distinct[-1]} was asked for, there are {self.num_experts}")
        ids = ids[:1] if len(distinct) == 1 else ids
        if distinct == (-1,):
            return Routing(ids[:, None][:, :0], ids.new_zeros((1, 0), dtype=torch.float), None, 0.0)
        chosen = ids.ge(0).float()
        shared = chosen if distinct[0] < 0 else 1.0
        return Routing(ids.clamp(min=0)[:, None], chosen[:, None], None, shared)


class FixedRouter(nn.Module):
    """The same given weights in every layer: blends of experts.

    Args:
        weights: [E] for all samples, or [B,E]. May have a gradient.
        shared: weight of the shared expert: a number, or [B].

    Raises:
        ValueError: another number of dimensions, or weights that are not finite.
    """

    weights: Tensor
    index: Tensor

    def __init__(self, weights: Tensor, *, shared: Tensor | float = 1.0) -> None:
        super().__init__()
        if weights.ndim not in (1, 2) or weights.shape[-1] < 1:
            raise ValueError(f"weights must be [E] or [B,E], got {[*weights.shape]}")
        if not bool(weights.isfinite().all()):
            raise ValueError("weights must be finite")
        self.num_experts = weights.shape[-1]
        self.shared = shared
        weights = weights.float()
        weights = weights[None] if weights.ndim == 1 else weights
        used = torch.arange(self.num_experts, device=weights.device)
        if not weights.requires_grad:  # an expert that nobody uses need not be computed
            used = used[(weights != 0).any(0)]
        self.register_buffer("index", used[None], persistent=False)
        self.register_buffer("weights", weights[:, used], persistent=False)

    def forward(self, context: RouteContext) -> Routing:
        """The given weights, whatever the context says."""
        return Routing(self.index, self.weights, None, self.shared)


class SimilarityRouter(nn.Module):
    """Routing by the style's embedding (StyleExpert spec §3): a gate of its own in each layer.

    ``g = G · LayerNorm(e_s)``, without bias; the k experts of the largest logits, weighted by the
    softmax over these k. With k = 1 that weight would be 1 whatever the logits are, and the gate
    could not learn: there the softmax is taken over all experts.

    Args:
        style_dim: Ds.
        num_experts: E.
        top_k: k, 1 to E.
        normalize: the LayerNorm (without parameters); False takes the embedding as it is.
        compat: "released" reproduces the released layer for checkpoints that were trained with
            it: the shared expert gets the first weight, the first expert the second, and the last
            none at all (spec §3, fault 1).
        generator: CPU generator that draws G, None: the global one.

    Raises:
        ValueError: k not in 1 to E, or an unknown `compat`.
    """

    def __init__(
        self,
        style_dim: int,
        num_experts: int,
        top_k: int = 2,
        *,
        normalize: bool = True,
        compat: Literal["fixed", "released"] = "fixed",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must be 1 to {num_experts}, the number of experts: {top_k}")
        if compat not in ("fixed", "released"):
            raise ValueError(f'compat must be "fixed" or "released", not "{compat}"')
        self.style_dim, self.num_experts, self.top_k = style_dim, num_experts, top_k
        self.normalize, self.compat = normalize, compat
        self.gate = nn.Linear(style_dim, num_experts, bias=False)
        # After the LayerNorm an embedding has length sqrt(Ds): logits start with deviation 1/3,
        # unequal enough to choose by and far from a saturated softmax.
        draw = torch.randn(num_experts, style_dim, generator=generator, device="cpu")
        self.gate.weight.data = (draw / (3 * style_dim**0.5)).to(self.gate.weight.device)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"top_k={self.top_k}, normalize={self.normalize}, compat={self.compat}"

    def forward(self, context: RouteContext) -> Routing:
        """Routes each sample by its style embedding.

        Raises:
            ValueError: the context has no style embeddings, or of another width.
        """
        styles = context.normalized if self.normalize else context.styles
        if styles is None:
            raise ValueError("these experts are chosen by style: the route needs style_emb")
        if styles.shape[1] != self.style_dim:
            raise ValueError(
                f"the style embedding has width {styles.shape[1]}, the gate {self.style_dim}"
            )
        styles = styles.to(self.gate.weight.dtype)
        if torch.is_autocast_enabled(styles.device.type):  # entering it costs more than the gate
            with torch.autocast(styles.device.type, enabled=False):
                return self._routing(self.gate(styles).float())
        return self._routing(self.gate(styles).float())

    def _routing(self, logits: Tensor) -> Routing:
        chosen, index = logits.topk(self.top_k)  # sorted, the largest first
        if self.compat == "released":
            scores = chosen.softmax(-1)
            shifted = torch.cat([scores[:, 1:], torch.zeros_like(scores[:, :1])], 1)
            return Routing(index, shifted, logits, scores[:, 0])
        weight = logits.softmax(-1).gather(1, index) if self.top_k == 1 else chosen.softmax(-1)
        return Routing(index, weight, logits)
