"""EfficientNet-Lite0 without its head: the teacher of the image encoder.

EfficientNet (Tan and Le, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6, as its
authors published it for small devices. Batch normalisation is folded into the convolutions;
`train/pretrain/image_encoder/teacher.py` reads published weights.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """The first blocks of EfficientNet-Lite0.

    Args:
        blocks: how many of its 16 inverted residual blocks.

    Raises:
        ValueError: not 1 to 16 blocks.
    """

    def __init__(self, blocks: int = DEPTH) -> None:
        super().__init__()
        if not 1 <= blocks <= DEPTH:
            raise ValueError(f"{blocks} blocks, EfficientNet-Lite0 has {DEPTH}")
        self.stem = SameConv(3, STEM, 3, stride=2)
        rows, channels = [], STEM
        for out, repeats, expansion, stride, kernel in STAGES:
            for repeat in range(repeats):
                rows.append((channels, out, expansion, stride if repeat == 0 else 1, kernel))
                channels = out
        self.blocks = nn.ModuleList(_Block(*row) for row in rows[:blocks])

    @staticmethod
    def channels(block: int) -> int:
        """How many feature maps a block gives; 0 is the first."""
        return [out for out, repeats, *_ in STAGES for _ in range(repeats)][block]

    def forward(self, pictures: Tensor, wanted: Collection[int]) -> list[Tensor]:
        """Outputs of blocks, in the order of the blocks.

        Args:
            pictures: [B,3,H,W] in [-1,1].
            wanted: numbers of blocks, 0 is the first.

        Returns:
            [B,c,H/s,W/s] each, s = 2 (block 0), 4 (1 and 2), 8 (3, 4), 16 (5 to 10) or 32.
        """
        x, found = F.relu6(self.stem(pictures)), []
        for number, block in enumerate(self.blocks):
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
