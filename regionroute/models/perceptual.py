"""Frozen networks whose features a perceptual loss compares."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn

from regionroute.models.efficientnet_lite import EfficientNetLite, load_efficientnet_lite
from regionroute.models.vgg import VggFeatures, empty_weights, load_vgg

EFFICIENTNET = "efficientnet-lite0"  # in place of a file with VGG16's weights
LAYERS = ("conv1_2", "conv2_2", "conv3_3", "conv4_3")  # of VGG16
BLOCKS = (0, 2, 4, 10)  # of EfficientNet-Lite0: the last ones at strides 2, 4, 8 and 16


class VggMaps(nn.Module):
    """Four layers of VGG16, after their ReLU."""

    def __init__(self, network: VggFeatures) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B,3,H,W] in [0,1] to maps [B,c,h,w]."""
        return [F.relu(maps) for maps in self.network(images, LAYERS)]


class EfficientNetMaps(nn.Module):
    """Four blocks of EfficientNet-Lite0, whose outputs are linear."""

    def __init__(self, network: EfficientNetLite) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [B,3,H,W] in [0,1] to maps [B,c,h,w]."""
        return self.network.features(2 * images - 1, BLOCKS)


def load_features(name: str, setting: str) -> nn.Module:
    """A network whose call gives the maps of images.

    Args:
        name: `EFFICIENTNET`, whose weights are installed, or a file with torchvision's VGG16.
        setting: what named it, for errors.

    Raises:
        UserError: its weights cannot be read.
    """
    if name == EFFICIENTNET:
        # The image encoder moves the one that it shares to other devices and precisions.
        return EfficientNetMaps(copy.deepcopy(load_efficientnet_lite()))
    return VggMaps(load_vgg(name, setting))


def empty_features(name: str) -> nn.Module:
    """The same without trained weights, for planning."""
    if name == EFFICIENTNET:
        return EfficientNetMaps(EfficientNetLite().eval().requires_grad_(False))
    return VggMaps(VggFeatures(empty_weights()))
