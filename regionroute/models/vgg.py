"""VGG feature maps from torchvision's weights: for content, textures and alignment."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from regionroute.errors import UserError, first_line

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
CONTENT_LAYERS = ("conv4_2", "conv5_2")
# Convolutions of each of the five stages, by their number in all.
STAGES = {13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)  # channels of each stage
_KEY = re.compile(r"(?:features\.)?(\d+)\.(weight|bias)")


class VggFeatures(nn.Module):
    """Feature maps of a VGG16 or VGG19 by their usual names (Simonyan and Zisserman, 2015).

    Frozen, but differentiable in the images. "conv4_2" is a convolution's output, "relu4_2" the
    same after its ReLU.

    Args:
        weights: torchvision's, keys ``features.N.weight`` and ``features.N.bias``; others are
            ignored. The number of convolutions distinguishes VGG16 from VGG19.

    Raises:
        ValueError: these are not the weights of a VGG16 or VGG19.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        found: dict[int, dict[str, Tensor]] = {}
        for key, value in weights.items():
            match = _KEY.fullmatch(key)
            if match:
                found.setdefault(int(match[1]), {})[match[2]] = value
        if len(found) not in STAGES:
            raise ValueError(f"{len(found)} convolutions, where VGG16 has 13 and VGG19 16")
        self.kind = f"VGG{len(found) + 3}"
        names = [
            f"conv{stage}_{number}"
            for stage, count in enumerate(STAGES[len(found)], start=1)
            for number in range(1, count + 1)
        ]
        self.convolutions = nn.ModuleDict(
            {name: _convolution(found[i]) for name, i in zip(names, sorted(found), strict=True)}
        )
        self.requires_grad_(False).eval()

    def channels(self, layer: str) -> int:
        """Number of channels of a layer "convS_N"."""
        convolution = self.convolutions[layer]
        assert isinstance(convolution, nn.Conv2d)
        return convolution.out_channels

    def forward(self, images: Tensor, layers: Sequence[str] = CONTENT_LAYERS) -> list[Tensor]:
        """Feature maps of images.

        Args:
            images: [B, 3, H, W] in [0, 1].
            layers: names such as "conv4_2" and "relu4_2"; nothing above the highest is computed.

        Returns:
            [B, c, h, w] of each layer, in the order of `layers`.
        """
        mean, std = (images.new_tensor(v)[:, None, None] for v in (MEAN, STD))
        x, stage, maps = (images - mean) / std, 1, {}
        for name, convolution in self.convolutions.items():
            if int(name[4]) != stage:
                x, stage = F.max_pool2d(x, 2), int(name[4])
            x = convolution(x)
            rectified = name.replace("conv", "relu")
            if name in layers:
                maps[name] = x
            x = F.relu(x)
            if rectified in layers:
                maps[rectified] = x
            if len(maps) == len(set(layers)):
                break
        return [maps[name] for name in layers]


def load_vgg(path: str | Path, setting: str = "--vgg ") -> VggFeatures:
    """VGG16 or VGG19 from a safetensors file of torchvision's convolution weights.

    Args:
        path: the file.
        setting: what named it, for errors.

    Raises:
        UserError: no such file, or not such weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"{setting}{path}: no such file, give safetensors of torchvision's VGG16 or 19"
        )
    try:
        return VggFeatures(load_file(path))
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{setting}{path}: not torchvision's VGG16 or VGG19 as safetensors "
            f"({first_line(error)}), give another file"
        ) from error


def empty_weights() -> dict[str, Tensor]:
    """Weights of VGG16's names and sizes without contents, for planning a run."""
    widths = [width for width, count in zip(WIDTHS, STAGES[13], strict=True) for _ in range(count)]
    found = {}
    for number, (before, width) in enumerate(zip([3, *widths], widths, strict=False)):
        found[f"features.{number}.weight"] = torch.empty(width, before, 3, 3)
        found[f"features.{number}.bias"] = torch.empty(width)
    return found


def _convolution(weights: dict[str, Tensor]) -> nn.Conv2d:
    weight = weights["weight"].float()
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"a weight of {list(weight.shape)} is no 3x3 convolution")
    layer = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(weights["bias"].float())  # type: ignore[union-attr]
    return layer
