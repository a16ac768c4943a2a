"""A frozen linear layer with a stack of LoRA experts, routed per sample.

Shape legend: B batch, N tokens, E experts, r rank, rs rank of the shared expert, k experts used at
a time, R = k·r + rs. Sizes written 1|B may be 1: the same for all samples.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regionroute.adapters.group import ActiveRoute, AdapterGroup, Stack
from regionroute.adapters.routers import Router, Routing, SimilarityRouter, StyleIdRouter


class LoRAMoELinear(nn.Module):
    """Frozen linear layer plus LoRA experts i with weights w, and one expert for all samples.

    ``y = base(h) + (alpha/r) · (B_s A_s h + Σ_j w_j B_{i_j} A_{i_j} h)``. `lora_A` [E,r,in] is
    drawn from N(0, (1/r)²) and `lora_B` [E,out,r] is zero, as PEFT's "gaussian" initialisation;
    likewise `shared_A` [rs,in] and `shared_B` [out,rs]. All are fp32 whatever the base's dtype and
    are cast to the activations' in the forward pass. The routing comes from the context set by
    `routed`. Parameters are touched in this module's own forward only: ZeRO-3 gathers them there.

    Args:
        base: linear layer to adapt.
        num_experts: E >= 1.
        rank: r >= 1.
        alpha: scale numerator.
        router: chooses the experts, None: `StyleIdRouter`.
        shared_rank: rs, 0: no shared expert. Its weight is 1 whatever the router says of the
            others, unless a sample takes the bare base (`StyleIdRouter`).
        dropout: probability of dropping an input of the adapters while training.
        name: the base's module name in the transformer, used in files.
        group: shared with the other layers of the transformer, None: a group of its own.
        generator: CPU generator that draws A, None: the global one.

    Raises:
        ValueError: E or r below 1, alpha not above 0, or a router that does not fit.
    """

    def __init__(
        self,
        base: nn.Linear,
        num_experts: int,
        rank: int,
        alpha: float,
        *,
        router: Router | None = None,
        shared_rank: int = 0,
        dropout: float = 0.0,
        name: str = "",
        group: AdapterGroup | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if num_experts < 1 or rank < 1 or alpha <= 0 or shared_rank < 0:
            raise ValueError(
                "experts need a number and a rank of at least 1 and an alpha above 0, "
                f"got {num_experts}, {rank} and {alpha}"
            )
        self.base = base.requires_grad_(False)
        self.num_experts, self.rank, self.alpha = num_experts, rank, alpha
        self.shared_rank = shared_rank
        self.in_features, self.out_features = base.in_features, base.out_features
        self.name = name
        self.group = group or AdapterGroup()
        self.router = router or StyleIdRouter(num_experts)
        if isinstance(router, SimilarityRouter) and router.compat == "released" and not shared_rank:
            raise ValueError("the released routing gives a shared expert its weight: there is none")
        self.dropout = nn.Dropout(dropout)
        device = base.weight.device
        self.lora_A = _gaussian(num_experts, rank, self.in_features, device, generator)
        self.lora_B = nn.Parameter(torch.zeros(num_experts, self.out_features, rank, device=device))
        if shared_rank:
            a = _gaussian(1, shared_rank, self.in_features, device, generator)
            self.shared_A = nn.Parameter(a.detach()[0])
            self.shared_B = nn.Parameter(torch.zeros(self.out_features, shared_rank, device=device))
        if isinstance(self.router, nn.Module):
            self.router.to(device)
        self.train(base.training)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        shared = f", shared_rank={self.shared_rank}" if self.shared_rank else ""
        return f"experts={self.num_experts}, rank={self.rank}, alpha={self.alpha:g}{shared}"

    def adapter_parameters(self) -> list[nn.Parameter]:
        """What is trained: A and B, those of the shared expert, the router's own."""
        shared = [self.shared_A, self.shared_B] if self.shared_rank else []
        return [self.lora_A, self.lora_B, *shared, *self.router.parameters()]

    def forward(self, h: Tensor) -> Tensor:
        """Adapted output.

        Args:
            h: [B,N,in] or [B,in].

        Returns:
            [B,N,out] or [B,out] in the base output's dtype.

        Raises:
            RuntimeError: no route context is set.
            ValueError: the context is for another batch size, lacks what the router reads, or
                names an unknown expert.
        """
        active = self.group.active
        if active is None:
            raise RuntimeError(
                f"{self.name or 'LoRAMoELinear'} was run without a route: "
                "call the model inside `with routed(model, RouteContext(...))`"
            )
        active.context.check(h.shape[0])
        out = self.base(h)
        stack = self._stack(active, h.shape[0], out.dtype)
        if stack is None:
            return out
        h = self.dropout(h) if self.dropout.p else h
        return self._add(out, h.to(out.dtype), stack)

    def _add(self, out: Tensor, h: Tensor, stack: Stack) -> Tensor:
        """``out + (alpha/r) · h Aᵀ (w ⊙ B)``; the sum is part of the last product."""
        scaling = self.alpha / self.rank
        tokens = h if h.ndim == 3 else h[:, None]  # [B,N,in]
        if stack.a.shape[0] == 1:
            hidden = F.linear(tokens, stack.a[0])  # [B,N,R]
        else:
            hidden = torch.bmm(tokens, stack.a.mT)
        if stack.b.shape[0] == 1:
            flat = out.reshape(-1, self.out_features)
            total = _plus_product(flat, hidden.flatten(0, 1), stack.b[0], scaling)
        else:
            total = _plus_product(out if out.ndim == 3 else out[:, None], hidden, stack.b, scaling)
        return total.view_as(out)

    def _stack(self, active: ActiveRoute, samples: int, dtype: torch.dtype) -> Stack | None:
        """The experts of this batch, None if there is nothing to add; remembered without grad."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._gather(self._routing(active, samples), dtype)
        versions = [(p.data_ptr(), _version(p)) for p in self.adapter_parameters()]
        state = (samples, dtype, *versions)
        known = active.stacks.get(id(self))
        if known is None or known[0] != state:
            stack = self._gather(self._routing(active, samples), dtype)
            known = active.stacks[id(self)] = state, stack
        return known[1]

    def _routing(self, active: ActiveRoute, samples: int) -> Routing:
        router = active.context.router or self.router
        if router.num_experts != self.num_experts:
            raise ValueError(
                f"the router chooses among {router.num_experts} experts, there are "
                f"{self.num_experts}"
            )
        routing = router(active.context)
        if routing.samples not in (1, samples):
            raise ValueError(f"the route is for {routing.samples} samples, the batch has {samples}")
        if routing.logits is not None:  # not again when checkpointing runs the layer once more
            active.routings.setdefault(self.name, routing)
        return routing

    def _gather(self, routing: Routing, dtype: torch.dtype) -> Stack | None:
        index = routing.index
        bare = not self.shared_rank or (isinstance(routing.shared, float) and routing.shared == 0)
        if not index.shape[1] and bare:
            if not torch.is_grad_enabled():
                return None
            # While training even a batch without experts touches the parameters: data-parallel
            # workers wait for each other's gradients.
            index, zero = index.new_zeros(1, 1), routing.weight.new_zeros(1, 1)
            routing = Routing(index, zero, shared=0.0)
        a = self.lora_A[index].flatten(1, 2)  # [1|B,k·r,in]
        b = self.lora_B[index] * routing.weight[..., None, None]  # [1|B,k,out,r]
        b = b.mT.flatten(1, 2)  # [1|B,k·r,out]
        if self.shared_rank:
            shared = self.shared_B.mT[None]
            if isinstance(routing.shared, Tensor):
                shared = shared * routing.shared[:, None, None]
            elif routing.shared != 1:
                shared = shared * routing.shared
            a = torch.cat([a, self.shared_A.expand(len(a), -1, -1)], 1)
            rows = max(len(b), len(shared))
            b = torch.cat([x.expand(rows, -1, -1) for x in (b, shared)], 1)
        return Stack(a.to(dtype), b.to(dtype))

    def expert_state_dict(self, expert: int) -> dict[str, Tensor]:
        """What an expert and the shared one add, as one LoRA of rank r+rs: fp32 copies on the CPU.

        Returns:
            "lora_A.weight" [r+rs,in] and "lora_B.weight" [out,r+rs], the shared expert last.
        """
        a, b = self.lora_A[expert], self.lora_B[expert]
        if self.shared_rank:
            a, b = torch.cat([a, self.shared_A]), torch.cat([b, self.shared_B], 1)
        return {"lora_A.weight": _copy(a), "lora_B.weight": _copy(b)}

    @torch.no_grad()
    def load_expert(self, expert: int, a: Tensor, b: Tensor) -> None:
        """Overwrites one expert with A [r,in] and B [out,r]."""
        self.lora_A[expert].copy_(a)
        self.lora_B[expert].copy_(b)

    def router_state_dict(self) -> dict[str, Tensor]:
        """Fp32 copies on the CPU of what is not of one expert: the shared one and the router."""
        parameters = dict(self.named_parameters())
        return {
            name: _copy(parameter)
            for name, parameter in parameters.items()
            if name.startswith(("shared_", "router."))
        }

    @torch.no_grad()
    def load_router_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Overwrites the shared expert and the router with what `router_state_dict` gave."""
        parameters = dict(self.named_parameters())
        for name, tensor in state.items():
            parameters[name].copy_(tensor)


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
    """The parameters to train, in the order of the layers: experts, shared experts, routers.

    Raises:
        ValueError: the model has no adapted layers.
    """
    return [p for layer in adapter_layers(model).values() for p in layer.adapter_parameters()]


def _gaussian(
    experts: int,
    rank: int,
    inputs: int,
    device: torch.device,
    generator: torch.Generator | None,
) -> nn.Parameter:
    """[experts,rank,inputs] from N(0, (1/rank)²), drawn on the CPU: the same on every device."""
    if device.type == "meta":
        return nn.Parameter(torch.empty(experts, rank, inputs, device=device))
    a = torch.randn(experts, rank, inputs, generator=generator, device="cpu")
    return nn.Parameter((a / rank).to(device))


def _plus_product(total: Tensor, x: Tensor, y: Tensor, scale: float) -> Tensor:
    """``total + scale · x y`` of matrices or batches; `total`, ours alone, is used up."""
    if torch.is_grad_enabled():
        add = torch.addmm if y.ndim == 2 else torch.baddbmm
        return add(total, x, y, alpha=scale)
    if y.ndim == 2:
        return total.addmm_(x, y, alpha=scale)
    return total.baddbmm_(x, y, alpha=scale)


def _version(parameter: Tensor) -> int:
    """Counts changes in place; tensors made in inference mode cannot be changed outside of it."""
    return -1 if parameter.is_inference() else parameter._version


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
