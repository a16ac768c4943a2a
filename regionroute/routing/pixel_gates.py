"""Upsample gates from the token grid to pixels, along the edges and colours of the image.

Shape legend: B batch, S (object, style) pairs per image, h w image tokens, H W pixels, P pixels
in a row, F features of a colour.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.config.run import RoutingConfig
from regionroute.routing.gates import normalize_gates

_SMALLEST = 1e-12
_FINE_RADIUS = 8  # pixels; larger windows are fitted on a smaller image
_MAX_GAIN = 4.0  # bound on the factor that restores the height of a small gate
_ROUNDS = 2  # of fitting the colour model; more change little
_NEWTON_STEPS = 6
_RIDGE = 1e-4  # keeps slopes finite for colours that occur on one side only


def pixel_gates(gates: Tensor, images: Tensor, config: RoutingConfig) -> Tensor:
    """Upsample gates from the token grid to pixels, along the edges of the image.

    A guided filter (He et al., TPAMI 2013) with a colour guide: in every window the gate becomes
    the linear function of the colours that fits it best, which moves its boundary to the object's.
    With `colour`, a colour model of region and background corrects the gates first, see
    `_by_colour`.

    Args:
        gates: [B,S,h,w] in [0,1].
        images: [B,3,H,W] in [0,1].
        config: radius, edge, contrast and colour.

    Returns:
        [B,S,H,W] in [0,1], with a sum over the pairs of at most 1.
    """
    gates = gates.to(images)
    radius = round(config.radius * images.shape[-2] / gates.shape[-2])
    if radius < 1:
        return _resized(gates, images)
    # Fitted on smaller images and applied at full size: the fast guided filter (He and Sun,
    # arXiv:1505.00996).
    coarser = max(1, radius // _FINE_RADIUS)
    small = _shrunk(images, coarser)
    windows = _Windows(small, round(radius / coarser), config.edge)
    smooth = _resized(gates, small)
    wanted, fit = gates, windows.fit(smooth)
    for _ in range(_ROUNDS if config.colour else 0):
        found = _steepened(_applied(*fit, small), wanted, config.contrast)
        wanted = _by_colour(found, smooth, small, config.colour)
        fit = windows.fit(wanted)
    return normalize_gates(_steepened(_applied(*fit, images), wanted, config.contrast))


def _by_colour(found: Tensor, gates: Tensor, images: Tensor, weight: float) -> Tensor:
    """Correct gates by Bayes' rule: the map is the prior, the colour of a pixel the likelihood.

    The likelihood ratio comes from a logistic regression on the colours and their products, fitted
    on this image to `found` with equal weight on the region and on the rest. Its log-odds are
    added to those of the gates, so that gates of 0 and 1 stay.

    Args:
        found: the current estimate of the regions, [B,S,H,W] in [0,1].
        gates: [B,S,H,W] in [0,1].
        images: [B,3,H,W] in [0,1].
        weight: factor on the log-odds of the colours.

    Returns:
        [B,S,H,W] in [0,1].
    """
    # In double: how these sums are rounded depends on the batch, and where colours are nearly
    # collinear the small ridge lets the difference grow until one sees it.
    seen = _colour_features(images.double())  # [B,F,P]
    region = found.double().flatten(2)
    share = region.mean(-1, keepdim=True)
    inside = region / share.clamp(min=_SMALLEST)
    outside = (1 - region) / (1 - share).clamp(min=_SMALLEST)
    pixels, many = inside.shape[-1], seen.shape[1]
    ridge = _RIDGE * torch.eye(many, dtype=seen.dtype, device=seen.device)
    slopes = inside.new_zeros(*inside.shape[:2], many)  # [B,S,F]
    for _ in range(_NEWTON_STEPS):
        odds = torch.sigmoid(slopes @ seen)
        uphill = (inside * (1 - odds) - outside * odds) @ seen.mT / pixels - slopes @ ridge
        curved = ((inside + outside) * odds * (1 - odds))[:, :, None] * seen[:, None]  # [B,S,F,P]
        bend = curved @ seen[:, None].mT / pixels + ridge
        slopes = slopes + torch.linalg.solve(bend, uphill[..., None])[..., 0]
    log_odds = torch.logit(gates.double()) + weight * (slopes @ seen).view_as(gates)
    return torch.sigmoid(log_odds).to(gates)


def _colour_features(images: Tensor) -> Tensor:
    """Colours and their products, standardised over the image, and 1: [B,10,P]."""
    colours = images.flatten(2)
    first, second = torch.triu_indices(3, 3, device=images.device)
    features = torch.cat([colours, colours[:, first] * colours[:, second]], 1)
    centred = features - features.mean(-1, keepdim=True)
    spread = centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-4)
    return torch.cat([centred / spread, torch.ones_like(colours[:, :1])], 1)


class _Windows:
    """The windows of a guided filter: fits gates as linear functions of the colours."""

    def __init__(self, guide: Tensor, radius: int, edge: float) -> None:
        self.guide, self.radius = guide, radius
        self.mean = self._box(guide)
        outer = (guide[:, :, None] * guide[:, None]).flatten(1, 2)
        joint = self._box(outer).unflatten(1, (3, 3))
        spread = joint - self.mean[:, :, None] * self.mean[:, None]
        spread = spread.permute(0, 3, 4, 1, 2) + edge * torch.eye(3, device=guide.device)
        self.inverse = torch.linalg.inv(spread).permute(0, 3, 4, 1, 2)  # [B,3,3,H,W]

    def fit(self, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Slopes [B,S,3,H,W] and offsets [B,S,H,W] that fit `wanted`, averaged over the windows."""
        mean = self._box(wanted)
        both = self._box((wanted[:, :, None] * self.guide[:, None]).flatten(1, 2))
        joint = both.unflatten(1, (-1, 3)) - mean[:, :, None] * self.mean[:, None]
        slope = (self.inverse[:, None] * joint[:, :, None]).sum(3)
        offset = mean - (slope * self.mean[:, None]).sum(2)
        return self._box(slope.flatten(1, 2)).unflatten(1, (-1, 3)), self._box(offset)

    def _box(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.radius,) * 4, mode="replicate")
        side = 2 * self.radius + 1
        # Separable: windows may have thousands of pixels.
        return F.avg_pool2d(F.avg_pool2d(padded, (side, 1), stride=1), (1, side), stride=1)


def _applied(slope: Tensor, offset: Tensor, images: Tensor) -> Tensor:
    """The linear functions of `_Windows.fit` at every pixel, [B,S,H,W]."""
    # Colour by colour: at full size the slopes of all three take as much memory as the image.
    found = _resized(slope[:, :, 0], images) * images[:, None, 0]
    for colour in (1, 2):
        found += _resized(slope[:, :, colour], images) * images[:, None, colour]
    return found.add_(_resized(offset, images))


def _steepened(fitted: Tensor, wanted: Tensor, contrast: float) -> Tensor:
    """Fitted gates [B,S,H,W], restored to the height of `wanted` and steeper at 0.5."""
    # The filter flattens regions smaller than its window.
    height, before = (x.amax((-2, -1), keepdim=True) for x in (fitted, wanted))
    raised = fitted * (before / height.clamp(min=_SMALLEST)).clamp(1, _MAX_GAIN)
    return raised.sub_(0.5).mul_(contrast).add_(0.5).clamp_(0, 1)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    size = like.shape[-2], like.shape[-1]
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear")


def _shrunk(x: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return x
    return F.interpolate(x, [-(-length // factor) for length in x.shape[-2:]], mode="area")
