"""A frozen linear layer with a stack of LoRA experts, routed per sample.

Shape legend: B batch, N tokens, E experts, r rank, k experts used at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regionroute.adapters.routers import RouteContext, Router, Routing, StyleIdRouter


@dataclass(eq=False)
class AdapterGroup:
    """What the adapted layers of one transformer share: how they were made, and the routing now.

    A plain object and no context variable or thread-local: on CUDA gradient checkpointing runs
    the layers again in autograd's own thread.

    Attributes:
        targets: the preset's name or the module suffixes that were adapted.
        context: the routing of the current step, None outside `routed`.
    """

    targets: str | list[str] = ""
    context: RouteContext | None = None


class LoRAMoELinear(nn.Module):
    """Frozen linear layer plus the sample's LoRA experts i with weights w.

    ``y = base(h) + (alpha/r) · Σ_j w_j B_{i_j} A_{i_j} h``. `lora_A` [E,r,in] is drawn from
    N(0, (1/r)²) and `lora_B` [E,out,r] is zero, as PEFT's "gaussian" initialisation; both are
    fp32 whatever the base's dtype and are cast to the activations' in the forward pass. The
    routing comes from the context set by `routed`. Parameters are touched in this module's own
    forward only: ZeRO-3 gathers them there.

    Args:
        base: linear layer to adapt.
        num_experts: E >= 1.
        rank: r >= 1.
        alpha: scale numerator.
        router: chooses the experts, None: `StyleIdRouter`.
        dropout: probability of dropping an input of the adapters while training.
        name: the base's module name in the transformer, used in files.
        group: shared with the other layers of the transformer, None: a group of its own.
        generator: CPU generator that draws A, None: the global one.

    Raises:
        ValueError: E or r below 1, or alpha not above 0.
    """

    def __init__(
        self,
        base: nn.Linear,
        num_experts: int,
        rank: int,
        alpha: float,
        *,
        router: Router | None = None,
        dropout: float = 0.0,
        name: str = "",
        group: AdapterGroup | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if num_experts < 1 or rank < 1 or alpha <= 0:
            raise ValueError(
                "experts need a number and a rank of at least 1 and an alpha above 0, "
                f"got {num_experts}, {rank} and {alpha}"
            )
        self.base = base.requires_grad_(False)
        self.num_experts, self.rank, self.alpha = num_experts, rank, alpha
        self.in_features, self.out_features = base.in_features, base.out_features
        self.name = name
        self.group = group or AdapterGroup()
        self.router = router or StyleIdRouter(num_experts)
        self.dropout = nn.Dropout(dropout)
        # Drawn on the CPU: the same experts whatever the device.
        a = torch.randn(num_experts, rank, self.in_features, generator=generator, device="cpu")
        b = torch.zeros(num_experts, self.out_features, rank)
        self.lora_A = nn.Parameter((a / rank).to(base.weight.device))
        self.lora_B = nn.Parameter(b.to(base.weight.device))
        self.train(base.training)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"experts={self.num_experts}, rank={self.rank}, alpha={self.alpha:g}"

    def forward(self, h: Tensor) -> Tensor:
        """Adapted output.

        Args:
            h: [B,N,in] or [B,in].

        Returns:
            [B,N,out] or [B,out] in the base output's dtype.

        Raises:
            RuntimeError: no route context is set.
            ValueError: the context is for another batch size or names an unknown expert.
        """
        context = self.group.context
        if context is None:
            raise RuntimeError(
                f"{self.name or 'LoRAMoELinear'} was run without a route: "
                "call the model inside `with routed(model, RouteContext(...))`"
            )
        samples = context.expert_ids.shape[0]
        if samples != h.shape[0]:
            raise ValueError(f"the route is for {samples} samples, the batch has {h.shape[0]}")
        routing = self.router(context)
        out = self.base(h)
        # While training even a batch without experts touches the parameters: data-parallel
        # workers wait for each other's gradients.
        if routing.shared == -1 and not torch.is_grad_enabled():
            return out
        return out + self._delta(self.dropout(h), routing)

    def _delta(self, h: Tensor, routing: Routing) -> Tensor:
        scaling = self.alpha / self.rank
        if routing.shared is not None and routing.shared >= 0:  # one expert: plain LoRA
            a, b = self.lora_A[routing.shared], self.lora_B[routing.shared]
            return F.linear(F.linear(h, a.to(h.dtype)) * scaling, b.to(h.dtype))
        # The k chosen experts of a sample lie side by side as one adapter of rank k·r.
        a = self.lora_A[routing.index].flatten(1, 2)  # [B,k·r,in]
        b = self.lora_B[routing.index].mT.flatten(1, 2)  # [B,k·r,out]
        weight = (routing.weight * scaling).repeat_interleave(self.rank, dim=1)[:, None]
        tokens = h if h.ndim == 3 else h[:, None]
        hidden = torch.bmm(tokens, a.mT.to(h.dtype))  # [B,N,k·r]
        delta = torch.bmm(hidden * weight.to(hidden.dtype), b.to(h.dtype))
        return delta if h.ndim == 3 else delta[:, 0]

    def expert_state_dict(self, expert: int) -> dict[str, Tensor]:
        """Copies of an expert, fp32 on the CPU: "lora_A.weight" [r,in], "lora_B.weight" [out,r]."""
        return {
            "lora_A.weight": _copy(self.lora_A[expert]),
            "lora_B.weight": _copy(self.lora_B[expert]),
        }

    @torch.no_grad()
    def load_expert(self, expert: int, a: Tensor, b: Tensor) -> None:
        """Overwrites one expert with A [r,in] and B [out,r]."""
        self.lora_A[expert].copy_(a)
        self.lora_B[expert].copy_(b)


def adapter_layers(model: nn.Module) -> dict[str, LoRAMoELinear]:
    """The adapted layers in `model` or in what it wraps, by module name in the transformer.

    Raises:
        ValueError: there are none.
    """
    layers = {m.name: m for m in model.modules() if isinstance(m, LoRAMoELinear)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no adapted layers: call inject first")
    return layers


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters to train: A and B of every adapted layer, in the order of the layers.

    Raises:
        ValueError: the model has no adapted layers.
    """
    return [p for layer in adapter_layers(model).values() for p in (layer.lora_A, layer.lora_B)]


@contextmanager
def routed(model: nn.Module, context: RouteContext) -> Iterator[None]:
    """Routes every adapted layer of `model` by `context`; on exit the previous route is back.

    The backward pass belongs inside: checkpoint recomputation runs the layers again.

    Args:
        model: the adapted transformer, or anything that contains it.
        context: for the batches run inside.

    Raises:
        ValueError: the model has no adapted layers.
    """
    groups = list(
        {id(layer.group): layer.group for layer in adapter_layers(model).values()}.values()
    )
    previous = [group.context for group in groups]
    for group in groups:
        group.context = context
    try:
        yield
    finally:
        for group, before in zip(groups, previous, strict=True):
            group.context = before


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
