"""The network of the style bank: convolutions to a coarse grid, state-space blocks, and back.

The fusion module of StyleMamba works on the latents of a pretrained autoencoder, whose decoder
alone is larger than the package. Here a small encoder and decoder are trained together with the
state-space blocks, and the style enters every layer: adaptive LayerNorm in the blocks, conditional
instance normalisation in the convolutions (Dumoulin et al., "A learned representation for artistic
style", 2017).

Shapes: B batch, S styles, D width of a token and of a style code, h w rows and columns of a map.
"""

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from pseudo_labels.stylemamba.config import FusionConfig
from pseudo_labels.stylemamba.modules.fusion import FusionBlock
from regionroute.config.base import Count, Section

MULTIPLE = 8  # the sides of images are padded to multiples of this
SMALLEST = 32  # and to at least this


class PainterConfig(Section):
    """Sizes of the network."""

    channels: tuple[Count, Count, Count] = Field(
        (16, 32, 64), description="channels at full, half and quarter resolution"
    )
    residual: Annotated[int, Field(ge=0)] = Field(
        2, description="residual blocks at quarter resolution, after the state-space blocks"
    )
    fusion: FusionConfig = Field(
        FusionConfig(width=96, blocks=2, states=8, expand=1, feed_forward=True),
        description="the state-space blocks, at an eighth of the resolution",
    )


class StylePainter(nn.Module):
    """Paints photos in S styles, or in any convex combination of them.

    Args:
        styles: S.
        config: sizes.
    """

    def __init__(self, styles: int, config: PainterConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.channels
        width = config.fusion.width
        self.codes = nn.Parameter(torch.randn(styles, width))
        self.enter = _StyledConv(3, fine, width, kernel=5)
        self.down = nn.ModuleList(
            [
                _StyledConv(fine, middle, width, stride=2),
                _StyledConv(middle, coarse, width, stride=2),
                _StyledConv(coarse, width, width, stride=2),
            ]
        )
        self.blocks = nn.ModuleList(FusionBlock(config.fusion) for _ in range(config.fusion.blocks))
        self.up = nn.ModuleList(
            [
                _StyledConv(width, coarse, width),
                _StyledConv(coarse, middle, width),
                _StyledConv(middle, fine, width),
            ]
        )
        self.skips = nn.ModuleList([_StyledConv(c, c, width, kernel=1) for c in (coarse, middle)])
        self.residual = nn.ModuleList(_Residual(coarse, width) for _ in range(config.residual))
        self.leave = nn.Conv2d(fine, 3, 5, padding=2, padding_mode="replicate")

    def forward(self, images: Tensor, code: Tensor) -> Tensor:
        """Paint images whose sides are multiples of `MULTIPLE`.

        Args:
            images: [B, 3, H, W] in [0, 1].
            code: style codes [B, D], see `code`.

        Returns:
            [B, 3, H, W] in [0, 1].
        """
        x = self.enter(images * 2 - 1, code)
        half = self.down[0](x, code)
        quarter = self.down[1](half, code)
        x = self.down[2](quarter, code)
        grid = (x.shape[-2], x.shape[-1])
        tokens = x.flatten(2).mT
        for block in self.blocks:
            tokens = block(tokens, code, grid)
        x = tokens.mT.unflatten(2, grid)
        x = self.up[0](_doubled(x), code) + self.skips[0](quarter, code)
        for layer in self.residual:
            x = layer(x, code)
        x = self.up[1](_doubled(x), code) + self.skips[1](half, code)
        x = self.up[2](_doubled(x), code)
        return torch.sigmoid(self.leave(x))

    def code(self, weights: Tensor) -> Tensor:
        """Style codes [B, D] of weights [B, S] ≥ 0 that sum to 1."""
        return weights @ self.codes

    @torch.no_grad()
    def paint(self, images: Tensor, weights: Tensor) -> Tensor:
        """Paint images of any size.

        Args:
            images: [B, 3, H, W] in [0, 1].
            weights: of the styles, [S] ≥ 0 with sum 1.

        Returns:
            [B, 3, H, W] in [0, 1], a new tensor on images' device.
        """
        height, width = images.shape[-2:]
        right, below = (
            max(SMALLEST, -(-side // MULTIPLE) * MULTIPLE) - side for side in (width, height)
        )
        code = self.code(weights.to(self.codes)[None]).expand(len(images), -1)
        padded = F.pad(images.to(self.codes), (0, right, 0, below), mode="replicate")
        painted = self(padded, code)[..., :height, :width]
        return painted.to(images).contiguous()


class _StyledConv(nn.Module):
    """Convolution, instance normalisation with scale and shift from the style, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, width: int, *, kernel: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        edges: Any = {"padding": kernel // 2, "padding_mode": "replicate"}
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, bias=False, **edges)
        self.style = nn.Linear(width, 2 * outputs)
        nn.init.normal_(self.style.weight, std=0.02)
        nn.init.zeros_(self.style.bias)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """[B, C, h, w] and codes [B, D] to [B, C', h', w']."""
        return F.relu(self.normed(x, code))

    def normed(self, x: Tensor, code: Tensor) -> Tensor:
        """As `forward`, before the ReLU."""
        scale, shift = self.style(code)[..., None, None].chunk(2, 1)
        return F.instance_norm(self.conv(x)) * (1 + scale) + shift


class _Residual(nn.Module):
    """Two convolutions with a skip connection."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = _StyledConv(channels, channels, width)
        self.second = _StyledConv(channels, channels, width)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """[B, C, h, w] and codes [B, D] to [B, C, h, w]."""
        return x + self.second.normed(self.first(x, code), code)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
