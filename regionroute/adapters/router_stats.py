"""What learned routers do: how evenly they use the experts, and what styles share.

Shape legend: n samples, L layers, E experts, k experts used at a time.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.adapters.routers import Routing


def chosen_experts(routings: Mapping[str, Routing], samples: int) -> Tensor:
    """The experts that each sample was sent to.

    Args:
        routings: by layer, as `routings` gives them.
        samples: n; a decision that holds for the whole batch is repeated.

    Returns:
        long [n,L,k], the layers in their order.
    """
    return torch.stack([r.index.expand(samples, -1) for r in routings.values()], 1)


def load_balance(routings: Mapping[str, Routing]) -> Tensor:
    """The auxiliary loss of Switch Transformers (Fedus et al. 2021, eq. 4), mean over layers.

    ``E · Σ_e f_e P_e`` with f_e the share of choices that fell on expert e, which has no gradient,
    and P_e its mean probability under the softmax over all experts. 1 when all are used alike, E
    when one expert takes everything.

    Args:
        routings: of learned routers, by layer, with their graph.

    Returns:
        Scalar fp32.

    Raises:
        ValueError: no learned routers.
    """
    terms = []
    for routing in routings.values():
        if routing.logits is None:
            raise ValueError("load balance is for routers with logits")
        experts = routing.logits.shape[1]
        # Not F.one_hot: it reads the values, and planning traces this on tensors without any.
        every = torch.arange(experts, device=routing.index.device)
        share = (routing.index[..., None] == every).float().mean((0, 1))
        terms.append(experts * (share * routing.logits.softmax(-1).mean(0)).sum())
    if not terms:
        raise ValueError("load balance needs a learned router")
    return torch.stack(terms).mean()


def expert_histogram(chosen: Tensor, num_experts: int) -> Tensor:
    """How the choices of each layer spread over the experts.

    Args:
        chosen: long [n,L,k].
        num_experts: E.

    Returns:
        fp32 [L,E], rows that add up to 1.
    """
    return F.one_hot(chosen, num_experts).float().mean((0, 2))


def expert_entropy(histogram: Tensor) -> Tensor:
    """Entropy of `expert_histogram`'s rows over its largest value, [L] in [0,1].

    1: all experts are used alike; 0: one takes everything.
    """
    if histogram.shape[1] == 1:
        return torch.zeros_like(histogram[:, 0])
    return torch.special.entr(histogram).sum(1) / math.log(histogram.shape[1])


def routing_overlap(chosen: Tensor, styles: Tensor) -> tuple[float, float]:
    """How alike samples are routed: intersection over union of their experts (StyleExpert spec §5).

    Two samples routed at random share (28/120)(1/3) + 1/120 = 0.086 with k = 2 of E = 16.

    Args:
        chosen: long [n,L,k].
        styles: long [n], the style of each sample.

    Returns:
        Mean over layers and pairs of samples of one style, and over pairs of different styles;
        NaN where there is no such pair.
    """
    sets = F.one_hot(chosen).amax(2).float()  # [n,L,E]
    common = torch.einsum("ale,ble->abl", sets, sets)
    size = sets.sum(2)
    iou = (common / (size[:, None] + size[None] - common)).mean(2)  # [n,n]
    pairs = torch.ones_like(iou).triu(1).bool()
    alike = styles[:, None] == styles[None]
    within, between = iou[pairs & alike], iou[pairs & ~alike]
    return float(within.mean()), float(between.mean())
