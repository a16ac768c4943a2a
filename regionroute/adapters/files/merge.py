"""Folds experts into the base's weights: a plain model that costs what the base costs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regionroute.adapters.lora_moe import LoRAMoELinear, adapter_layers
from regionroute.errors import UserError


@torch.no_grad()
def merge(model: nn.Module, weights: Sequence[float] | Tensor) -> None:
    """Replaces every adapted layer by its base plus ``(alpha/r)(Σ w_i B_i A_i + B_s A_s)``.

    The sum is computed in fp32 and rounded to the base's precision once; in bfloat16 the merged
    model therefore differs from the adapted one by that rounding.

    Args:
        model: the adapted transformer, or anything that contains it.
        weights: of the experts, E of them.

    Raises:
        UserError: quantised base weights, which cannot take the sum.
        ValueError: no adapted layers, or another number of weights.
    """
    layers = adapter_layers(model)
    values = torch.as_tensor(weights, dtype=torch.float32, device="cpu")
    count = next(iter(layers.values())).num_experts
    if values.shape != (count,):
        raise ValueError(f"{count} experts need {count} weights, got {[*values.shape]}")
    for name, adapted in layers.items():
        weight = adapted.base.weight
        plain = type(weight) is nn.Parameter and weight.is_floating_point()
        if not plain or weight.shape != (adapted.out_features, adapted.in_features):
            raise UserError(
                f"{name}: its weights are quantised, load the base unquantised to merge"
            )
    for parent in [*model.modules()]:
        for child, layer in [*parent.named_children()]:
            if isinstance(layer, LoRAMoELinear):
                layer.base.weight.copy_(layer.base.weight.float() + _update(layer, values))
                setattr(parent, child, layer.base)


def _update(layer: LoRAMoELinear, weights: Tensor) -> Tensor:
    """What the experts add to the weight, [out,in] fp32."""
    used = weights.nonzero()[:, 0].tolist()
    a = [layer.lora_A[e].float() for e in used]
    b = [layer.lora_B[e].float() * float(weights[e]) for e in used]
    if layer.shared_rank:
        a.append(layer.shared_A.float())
        b.append(layer.shared_B.float())
    if not a:
        return torch.zeros_like(layer.base.weight, dtype=torch.float32)
    return torch.cat(b, 1) @ torch.cat(a) * (layer.alpha / layer.rank)
