"""The style fusion module: maps latents and a style to latents of the same shape.

Reconstruction: the paper describes a conditional state-space model; later work by others says that
the style enters by adaptive LayerNorm. Sizes, four scan directions and the initialisation are ours.

Shapes: B batch, C latent channels, h w latent rows and columns, L = h·w tokens, D width,
E = expand·D channels of the scan, N states, K width of the style input.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pseudo_labels.stylemamba.config import FusionConfig
from pseudo_labels.stylemamba.modules.ssm import selective_scan

# Range of the initial, log-uniform step sizes, as in Mamba.
FIRST_STEP, LAST_STEP = 1e-3, 1e-1


class StyleFusion(nn.Module):
    """z' = z + f(z, style), with f = 0 at the start.

    Args:
        latent_channels: C.
        style_width: K.
        config: sizes and options.
    """

    def __init__(self, latent_channels: int, style_width: int, config: FusionConfig) -> None:
        super().__init__()
        self.latent_channels, self.style_width = latent_channels, style_width
        width = config.width
        self.style = nn.Sequential(
            nn.Linear(style_width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.enter = nn.Conv2d(latent_channels, width, 1)
        self.blocks = nn.ModuleList(FusionBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Conv2d(width, latent_channels, 1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)

    def forward(self, latents: Tensor, style: Tensor) -> Tensor:
        """Fuse a style into latents.

        Args:
            latents: [B, C, h, w].
            style: style inputs [B, K], see `encoders.describe`.

        Returns:
            [B, C, h, w], exactly `latents` before the first training step.
        """
        return self.fuse(latents, self.style(style))

    def fuse(self, latents: Tensor, code: Tensor) -> Tensor:
        """As `forward`, from style codes [B, D], which may be blends of styles (`blend`)."""
        height, width = latents.shape[-2:]
        tokens = self.enter(latents).flatten(2).mT  # [B, L, D]
        tokens = tokens + sine_positions(height, width, tokens.shape[-1]).to(tokens)
        for block in self.blocks:
            tokens = block(tokens, code, (height, width))
        change = self.norm(tokens).mT.unflatten(2, (height, width))
        return latents + self.leave(change)

    def blend(self, styles: Tensor, weights: Tensor) -> Tensor:
        """Convex combination of the codes of several styles.

        Args:
            styles: style inputs [S, K].
            weights: [S] ≥ 0 with a positive sum.

        Returns:
            One code [1, D].
        """
        share = weights / weights.sum()
        return share.to(styles) @ self.style(styles)[None]


class FusionBlock(nn.Module):
    """h ← h + g·SSM(LayerNorm(h)(1 + γ) + β); the style sets γ, β and the gate g.

    γ and β start at 0 and g at 1. With closed gates, output, gate and mixer would get gradients one
    after another, and half of a 40-step fit would be over.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.mixer = Mixer(config)
        self.forward_layer = GatedFeedForward(config.width) if config.feed_forward else None
        parts = 6 if config.feed_forward else 3
        self.modulation = nn.Linear(config.width, parts * config.width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        with torch.no_grad():
            self.modulation.bias.view(-1, 3, config.width)[:, 2] = 1

    def forward(self, tokens: Tensor, code: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [B, L, D] in rows of `grid`, style codes [B, D]; returns [B, L, D]."""
        width = tokens.shape[-1]
        parts = self.modulation(F.silu(code))[:, None].split(width, -1)
        gamma, beta, gate = parts[:3]
        normed = F.layer_norm(tokens, (width,)) * (1 + gamma) + beta
        tokens = tokens + gate * self.mixer(normed, code, grid)
        if self.forward_layer is not None:
            gamma, beta, gate = parts[3:]
            normed = F.layer_norm(tokens, (width,)) * (1 + gamma) + beta
            tokens = tokens + gate * self.forward_layer(normed)
        return tokens


class GatedFeedForward(nn.Module):
    """Two linear layers with a SiLU gate between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(width, 4 * width)
        self.leave = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        value, gate = self.enter(tokens).chunk(2, -1)
        out: Tensor = self.leave(value * F.silu(gate))
        return out


class Mixer(nn.Module):
    """Mamba's mixer over a grid of tokens, in one or four scan orders with shared weights.

    A single raster scan is causal: the upper left never sees the lower right. With the average of
    four orders (rows and columns, forwards and backwards), every token sees every other.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, channels = config.width, config.expand * config.width
        self.directions, self.method = config.directions, config.scan
        self.states, self.rank = config.states, math.ceil(width / 16)
        self.normalize = config.normalize
        self.enter = nn.Linear(width, 2 * channels, bias=False)
        self.conv = nn.Conv1d(
            channels, channels, config.kernel, groups=channels, padding=config.kernel - 1
        )
        self.select = nn.Linear(channels, self.rank + 2 * config.states, bias=False)
        self.step = nn.Linear(self.rank, channels)
        rates = torch.arange(1, config.states + 1, dtype=torch.float32)
        self.A_log = nn.Parameter(rates.log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.leave = nn.Linear(channels, width, bias=False)
        self.style_step = self.style_input = None
        if config.condition == "ssm":
            self.style_step = _zero_linear(width, channels)
            self.style_input = _zero_linear(width, config.states)
        self._start_steps()

    @torch.no_grad()
    def _start_steps(self) -> None:
        """Set biases so that softplus gives log-uniform step sizes, for any input."""
        bound = self.rank**-0.5
        nn.init.uniform_(self.step.weight, -bound, bound)
        low, high = math.log(FIRST_STEP), math.log(LAST_STEP)
        steps = torch.empty_like(self.step.bias).uniform_(low, high).exp()
        self.step.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # inverse softplus

    def forward(self, tokens: Tensor, code: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens [B, L, D] in rows of `grid` = (h, w), codes [B, D]; returns [B, L, D]."""
        if self.directions == 1:
            return self.scan(tokens, code)
        columns = _transposed(tokens, grid)
        orders = torch.cat([tokens, tokens.flip(1), columns, columns.flip(1)])
        scanned = self.scan(orders, code.repeat(4, 1))
        rows, rows_back, columns, columns_back = scanned.chunk(4)
        columns = _transposed(columns + columns_back.flip(1), (grid[1], grid[0]))
        return (rows + rows_back.flip(1) + columns) / 4

    def scan(self, tokens: Tensor, code: Tensor) -> Tensor:
        """One causal pass over tokens [B, L, D] in the given order; returns [B, L, D]."""
        length = tokens.shape[1]
        x, gate = self.enter(tokens).chunk(2, -1)
        x = F.silu(self.conv(x.mT)[..., :length].mT)
        rank, B, C = self.select(x).split([self.rank, self.states, self.states], -1)
        if self.normalize:
            rank, B, C = (F.rms_norm(part, part.shape[-1:]) for part in (rank, B, C))
        delta = self.step(rank)
        if self.style_step is not None and self.style_input is not None:
            delta = delta + self.style_step(code)[:, None]
            B = B + self.style_input(code)[:, None]
        A = -self.A_log.float().exp()
        y = selective_scan(x, F.softplus(delta), A, B, C, self.D, method=self.method)
        out: Tensor = self.leave(y * F.silu(gate))
        return out


def sine_positions(height: int, width: int, channels: int) -> Tensor:
    """Fixed 2-D sine positions of the tokens of a grid, rows first.

    Args:
        height: rows.
        width: columns.
        channels: D, a multiple of 4: a quarter each for the sines and cosines of row and column.

    Returns:
        [height·width, D] in [-1, 1].
    """
    rates = 10000.0 ** (-torch.arange(channels // 4) / (channels // 4))
    rows = torch.arange(height)[:, None] * rates
    columns = torch.arange(width)[:, None] * rates
    down = torch.cat([rows.sin(), rows.cos()], 1)[:, None].expand(-1, width, -1)
    across = torch.cat([columns.sin(), columns.cos()], 1)[None].expand(height, -1, -1)
    return torch.cat([down, across], 2).flatten(0, 1)


def decayed_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with and without weight decay: none on A_log, D, biases and norms."""
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        kept = parameter.ndim < 2 or name.endswith("A_log")
        (without if kept else with_decay).append(parameter)
    return with_decay, without


def _transposed(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens [B, L, D], row by row of `grid`, in column order."""
    return tokens.unflatten(1, grid).transpose(1, 2).flatten(1, 2)


def _zero_linear(width: int, out: int) -> nn.Linear:
    layer = nn.Linear(width, out, bias=False)
    nn.init.zeros_(layer.weight)
    return layer
