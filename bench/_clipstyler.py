"""The rival of bench/mamba_fit.py: a network on pixels like CLIPstyler's (Kwon and Ye, 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StyleNet(nn.Module):
    """CLIPstyler's network, reduced: a small U-Net on pixels that starts near the photo."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [_conv(3, width), _conv(width, 2 * width), _conv(2 * width, 4 * width)]
        )
        self.middle = nn.Sequential(*[_conv(4 * width, 4 * width) for _ in range(3)])
        self.up = nn.ModuleList([_conv(8 * width, 2 * width), _conv(4 * width, width)])
        self.leave = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1], sides multiples of 4, to the same."""
        first = self.down[0](images)
        second = self.down[1](F.avg_pool2d(first, 2))
        third = self.down[2](F.avg_pool2d(second, 2))
        x = torch.cat([self.middle(third), third], 1)
        x = torch.cat([F.interpolate(self.up[0](x), scale_factor=2), second], 1)
        x = torch.cat([F.interpolate(self.up[1](x), scale_factor=2), first], 1)
        return (images + self.leave(x).tanh()).clamp(0, 1)


def _conv(enter: int, leave: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(enter, leave, 3, padding=1, padding_mode="reflect"),
        nn.InstanceNorm2d(leave, affine=True),
        nn.ReLU(),
    )


class Pixels(nn.Module):
    """The identity codec."""

    facts = {"name": "pixels", "weights": "none", "random": False}  # noqa: RUF012

    def encode(self, images: Tensor) -> Tensor:
        """The images themselves."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """The images themselves."""
        return latents
