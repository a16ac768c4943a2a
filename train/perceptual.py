"""A perceptual loss on the images that a model's predictions decode to.

Where an edit is one step from noise, a squared error alone makes that step the mean of all that
fits: brush strokes come out as a blur. Distances of a vision network's features (Johnson et al.,
arXiv:1603.08155; channels normalised as in LPIPS, Zhang et al., arXiv:1801.03924, without its
learned weights) ask for strokes that look right instead of strokes in the right pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regionroute.models.perceptual import load_features

if TYPE_CHECKING:
    from regionroute.config.losses import PerceptualConfig


class PerceptualLoss:
    """Distance, in the features of a frozen network, of the images that latents decode to.

    Args:
        cfg: names the network.
        decode: latents [B,C,h,w] to images [B,3,H,W] in [0,1], differentiable.
        setting: what named the network, for errors.
        network: a network that is loaded already, in place of the named one.

    Raises:
        UserError: the weights cannot be read.
    """

    def __init__(
        self,
        cfg: PerceptualConfig,
        decode: Callable[[Tensor], Tensor],
        setting: str = "flow.perceptual.network=",
        network: nn.Module | None = None,
    ) -> None:
        self.decode, self.bfloat16 = decode, cfg.bfloat16
        self.network = load_features(str(cfg.network), setting) if network is None else network

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Squared distance of normalised features, mean over places, summed over layers.

        Args:
            predicted: latents [B,C,h,w] with their graph.
            target: latents [B,C,h,w].

        Returns:
            [B] fp32, unweighted, at most 2 a layer.
        """
        with torch.no_grad():
            wanted = self._features(target)
        found = self._features(predicted)
        distances = [
            (a - b).square().sum(1).mean((1, 2)) for a, b in zip(found, wanted, strict=True)
        ]
        return torch.stack(distances).sum(0)

    def _features(self, latents: Tensor) -> list[Tensor]:
        """Maps [B,c,h,w] with channels of length 1 at every place."""
        pictures, network = self.decode(latents), self.network
        if next(network.parameters()).device != latents.device:
            network.to(latents.device)
        with (
            torch.autocast(pictures.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()
        ):
            maps = network(pictures)
        return [F.normalize(m.float(), dim=1, eps=1e-6) for m in maps]
