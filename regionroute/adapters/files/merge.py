"""Folds experts into the base's weights: a plain model that costs what the base costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regionroute.adapters.lora_moe import LoRAMoELinear, adapter_layers
from regionroute.errors import UserError


@dataclass(frozen=True, eq=False)
class _Place:
    """An adapted layer, where it was, and the weight its base had (None: not kept)."""

    parent: nn.Module
    child: str
    layer: LoRAMoELinear
    weight: Tensor | None


class Merge:
    """Experts that have been folded into a model, and the way back.

    Made by `merge`.
    """

    def __init__(self, places: Sequence[_Place]) -> None:
        self._places: Sequence[_Place] = places

    @torch.no_grad()
    def undo(self) -> None:
        """Puts the experts back in place and the base's weights back as they were, bit for bit.

        Raises:
            RuntimeError: undone before, or merged without keeping the weights.
        """
        if not self._places:
            raise RuntimeError("this merge was already undone")
        if any(place.weight is None for place in self._places):
            raise RuntimeError("this merge is final: the base's weights were not kept")
        for place in self._places:
            assert place.weight is not None
            place.layer.base.weight.copy_(place.weight)
            setattr(place.parent, place.child, place.layer)
        self._places = []


@torch.no_grad()
def merge(
    model: nn.Module, weights: Sequence[float] | Tensor, *, shared: float = 1.0, keep: bool = True
) -> Merge:
    """Replaces every adapted layer by its base plus ``(alpha/r)(Σ w_i B_i A_i + w_s B_s A_s)``.

    The sum is computed in fp32 and rounded to the base's precision once; in bfloat16 the merged
    model therefore differs from the adapted one by that rounding.

    Args:
        model: the adapted transformer, or anything that contains it.
        weights: of the experts, E of them.
        shared: weight of the shared expert, where there is one.
        keep: keep a copy of the weights that change, for `Merge.undo`; False saves the memory and
            makes the merge final.

    Returns:
        The handle that undoes it.

    Raises:
        UserError: quantised base weights, which cannot take the sum.
        ValueError: no adapted layers, or another number of weights.
    """
    layers = adapter_layers(model)
    values = torch.as_tensor(weights, dtype=torch.float32, device="cpu")
    count = next(iter(layers.values())).num_experts
    if values.shape != (count,):
        raise ValueError(f"{count} experts need {count} weights, got {[*values.shape]}")
    for name, layer in layers.items():
        weight = layer.base.weight
        plain = type(weight) is nn.Parameter and weight.is_floating_point()
        if not plain or weight.shape != (layer.out_features, layer.in_features):
            raise UserError(
                f"{name}: its weights are quantised, load the base unquantised to merge"
            )
    places = []
    for parent in model.modules():
        for child, found in parent.named_children():
            if isinstance(found, LoRAMoELinear):
                before = found.base.weight.clone() if keep else None
                places.append(_Place(parent, child, found, before))
    for place in places:
        weight = place.layer.base.weight
        weight.copy_(weight.float() + _update(place.layer, values, shared))
        setattr(place.parent, place.child, place.layer.base)
    return Merge(places)


def _update(layer: LoRAMoELinear, weights: Tensor, shared: float) -> Tensor:
    """What the experts add to the weight, [out,in] fp32."""
    used = weights.nonzero()[:, 0].tolist()
    a = [layer.lora_A[e].float() for e in used]
    b = [layer.lora_B[e].float() * float(weights[e]) for e in used]
    if layer.shared_rank:
        a.append(layer.shared_A.float())
        b.append(layer.shared_B.float() * shared)
    if not a:
        return torch.zeros_like(layer.base.weight, dtype=torch.float32)
    return torch.cat(b, 1) @ torch.cat(a) * (layer.alpha / layer.rank)
