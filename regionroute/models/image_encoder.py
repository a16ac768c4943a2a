"""The image encoder of an embedded base.

A small residual network (bottleneck blocks, He et al., arXiv:1512.03385) at one eighth and one
sixteenth of the image's size, trained by `train/pretrain/train_image_encoder.py`, then frozen:
batch normalisation is folded into the convolutions, whose weights are stored in 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 8  # pixels between outputs
_SQUEEZE = 3  # a block's width over the width of the convolution inside
WIDTHS = DEPTHS = 4  # how many numbers `VisionNet` takes of each

Layer = Callable[[int, int, int, int], nn.Module]  # channels in, channels out, kernel, stride


class EightBitConv(nn.Module):
    """Convolution with 8-bit weights and one scale per channel, padded by half the kernel."""

    weight: Tensor

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        shape = out, channels, kernel, kernel
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int8))
        self.scale = nn.Parameter(torch.zeros(out, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out))

    @torch.no_grad()
    def set(self, weight: Tensor, bias: Tensor) -> None:
        """Round weights [out,in,k,k] to 8 bits; bias [out]."""
        scale = weight.flatten(1).abs().amax(1)[:, None, None, None] / 127
        self.scale.copy_(scale)
        self.weight.copy_((weight / scale.clamp(min=1e-12)).round())
        self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,H,W] to [B,out,H/stride,W/stride]."""
        weight = self.weight * self.scale
        return F.conv2d(x, weight, self.bias, self.stride, padding=weight.shape[-1] // 2)


class VisionNet(nn.Module):
    """Images to features, one for every 8x8 pixels.

    Args:
        channels: of the features.
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the image's size.
        depths: residual blocks at 1/4, 1/8, 1/16, and at 1/8 after both are merged.
        layer: builds a convolution, ``layer(channels, out, kernel, stride)``; in training one
            followed by a normalisation.

    Raises:
        ValueError: not four widths and four depths.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        depths: Sequence[int],
        layer: Layer = EightBitConv,
    ) -> None:
        super().__init__()
        if len(widths) != WIDTHS or len(depths) != DEPTHS:
            raise ValueError(
                f"{len(widths)} widths and {len(depths)} depths, expected {WIDTHS} and {DEPTHS}"
            )
        # The arguments that build a network of the same sizes.
        self.sizes: dict[str, Any] = {
            "channels": channels, "widths": [*widths], "depths": [*depths],
        }  # fmt: skip

        def blocks(width: int, depth: int) -> nn.Sequential:
            return nn.Sequential(*(Bottleneck(width, layer) for _ in range(depth)))

        self.stem = layer(3, widths[0], 5, 2)
        self.quarter = layer(widths[0], widths[1], 3, 2)
        self.quarter_blocks = blocks(widths[1], depths[0])
        self.eighth = layer(widths[1], widths[2], 3, 2)
        self.eighth_blocks = blocks(widths[2], depths[1])
        self.sixteenth = layer(widths[2], widths[3], 3, 2)
        self.sixteenth_blocks = blocks(widths[3], depths[2])
        self.back = layer(widths[3], widths[2], 1, 1)
        self.last_blocks = blocks(widths[2], depths[3])
        self.head = layer(widths[2], channels, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [-1,1], sides multiples of 8, to [B,channels,H/8,W/8]."""
        x = self.quarter_blocks(self.quarter(self.stem(images).relu()).relu())
        near = self.eighth_blocks(self.eighth(x).relu())
        far = self.back(self.sixteenth_blocks(self.sixteenth(near).relu()))
        size = near.shape[-2:]
        far = F.interpolate(far, size, mode="bilinear", align_corners=False)
        features: Tensor = self.head(self.last_blocks((near + far).relu()))
        return features


class Bottleneck(nn.Module):
    """x + project(filter(squeeze(x))), a third as wide inside."""

    def __init__(self, width: int, layer: Layer) -> None:
        super().__init__()
        narrow = max(1, width // _SQUEEZE)
        self.squeeze = layer(width, narrow, 1, 1)
        self.filter = layer(narrow, narrow, 3, 1)
        self.project = layer(narrow, width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B,width,h,w], as given."""
        changed: Any = self.project(self.filter(self.squeeze(x).relu()).relu())
        return (x + changed).relu()
