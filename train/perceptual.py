"""A perceptual loss on the pictures that a base's predictions decode to.

An edit is one step from noise here, and a squared error alone makes that step the mean of all that
fits: brush strokes come out as a blur. Distances of a vision network's features (Johnson et al.,
arXiv:1603.08155; channels normalised as in LPIPS, Zhang et al., arXiv:1801.03924, without its
learned weights) ask for strokes that look right instead of strokes in the right pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.vgg import load_vgg
from train.nano_config import PerceptualConfig

LAYERS = ("conv1_2", "conv2_2", "conv3_3", "conv4_3")


class PerceptualLoss:
    """Distance of pictures in the features of a frozen VGG16.

    Args:
        cfg: weights of the network, weight of the loss.

    Raises:
        UserError: the weights cannot be read.
    """

    def __init__(self, cfg: PerceptualConfig) -> None:
        self.weight = cfg.weight
        self.network = load_vgg(str(cfg.vgg), "base.perceptual.vgg=")

    def __call__(self, pictures: Tensor, target: Tensor) -> Tensor:
        """Mean squared distance of normalised features, summed over layers, weighted; a scalar.

        Args:
            pictures: [B,3,H,W] in [0,1], with their graph.
            target: [B,3,H,W] in [0,1].
        """
        with torch.no_grad():
            wanted = [_normalised(maps) for maps in self.network(target, LAYERS)]
        found = [_normalised(maps) for maps in self.network(pictures, LAYERS)]
        distances = [(a - b).square().sum(1).mean() for a, b in zip(found, wanted, strict=True)]
        return self.weight * torch.stack(distances).sum()


def _normalised(maps: Tensor) -> Tensor:
    """Feature maps [B,c,h,w] with channels of length 1 at every place, float32."""
    return F.normalize(F.relu(maps.float()), dim=1, eps=1e-6)
