"""Size drift: has the background been shifted or zoomed? Phase correlation, tile by tile.

Editors that work at a size of their own hand back images a few pixels off, which every pixel
measure of the background takes for damage. Tiles are correlated instead of whole images because
a hole in the shape of the object would correlate with itself at no shift, and because a zoom is
then read from how the tiles' shifts grow away from the centre.
"""

import torch
from torch import Tensor

TILES_A_SIDE = 4  # a tile is this part of the shorter side, tiles overlap by half
MIN_TILE = 16
MIN_TILES = 3
MAX_SHIFT = 0.25  # of a tile's side; larger shifts are not looked for
MIN_CONTRAST = 0.02  # standard deviation below which a tile has nothing to correlate
MAX_OBJECT = 0.02  # share of a tile that may be object
# Height of a correlation peak (1 is a copy) times the tile's side. Tiles with nothing in common
# correlate by chance with a standard deviation of sqrt(pi) / side; this is five of them.
MIN_PEAK = 9.0
MAX_REST = 1.0  # pixels; tiles that disagree more than this in the median tell no common movement
_LUMA = (0.299, 0.587, 0.114)


def drift(output: Tensor, content: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and zoom of the background.

    Args:
        output: edited images [B,3,H,W] in [0,1].
        content: unedited images [B,3,H,W] in [0,1].
        mask: [B,1,H,W], 1 on the object.

    Returns:
        Shift of the image's centre in pixels, [B] ≥ 0, and zoom |scale − 1|, [B] ≥ 0. Both NaN
        where fewer than three tiles of background have structure in both images.
    """
    pairs = [_drift_of(o, c, m) for o, c, m in zip(output, content, mask, strict=True)]
    shifts, zooms = zip(*pairs, strict=True)
    return torch.stack(shifts), torch.stack(zooms)


def _drift_of(output: Tensor, content: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    side = max(MIN_TILE, min(output.shape[1:]) // TILES_A_SIDE)
    undefined = output.new_tensor(torch.nan)
    if min(output.shape[1:]) < side:
        return undefined, undefined
    before, after = (_luma(content), _luma(output))
    starts = _starts(output.shape[1], output.shape[2], side)
    a, b = _tiles(before, starts, side), _tiles(after, starts, side)
    usable = _tiles(mask[0], starts, side).mean((1, 2)) <= MAX_OBJECT
    usable &= torch.minimum(a.std((1, 2)), b.std((1, 2))) >= MIN_CONTRAST
    if usable.sum() < MIN_TILES:
        return undefined, undefined
    if torch.equal(a[usable], b[usable]):
        return torch.zeros_like(undefined), torch.zeros_like(undefined)
    a, starts = a[usable], starts[usable.cpu()]
    moved, peaks = phase_correlation(a, b[usable])
    sure = peaks >= MIN_PEAK / side
    if sure.sum() < MIN_TILES:
        return undefined, undefined
    a, moved, starts = a[sure], moved[sure], starts[sure.cpu()]
    # Once more with each tile taken where it has gone: the window then lies on the same things.
    room = torch.tensor(output.shape[1:]) - side
    gone = (starts + moved.cpu().round().long()).clamp(min=torch.zeros(2).long(), max=room)
    rest, weights = phase_correlation(a, _tiles(after, gone, side))
    moved = (gone - starts).to(rest) + rest
    middle = (torch.tensor(output.shape[1:]) - side) / 2
    return _similarity((starts - middle).to(rest), moved, weights)


def _luma(picture: Tensor) -> Tensor:
    return (picture * picture.new_tensor(_LUMA)[:, None, None]).sum(0)


def _starts(height: int, width: int, side: int) -> Tensor:
    """Upper left corners (y, x) of tiles that overlap by half: [T,2]."""
    step = side // 2
    rows = torch.arange(0, height - side + 1, step)
    return torch.cartesian_prod(rows, torch.arange(0, width - side + 1, step))


def _tiles(picture: Tensor, starts: Tensor, side: int) -> Tensor:
    """Tiles [T,side,side] of an image [H,W]."""
    return torch.stack([picture[y : y + side, x : x + side] for y, x in starts.tolist()])


def phase_correlation(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """How far `b` is moved against `a`, with a fraction of a pixel.

    The spectrum's phase alone counts (Kuglin and Hines, 1975), so brightness and contrast do not.
    The peak is refined by the parabola through it and its neighbours in each direction.

    Args:
        a: tiles [T,S,S].
        b: the same places in the other image.

    Returns:
        Shifts (y, x) in pixels [T,2], at most a quarter of S, and the peaks' heights [T].
    """
    count, side = a.shape[:2]
    window = torch.hann_window(side, periodic=False, device=a.device)
    window = window[:, None] * window
    spectra = [torch.fft.rfft2((t - t.mean((1, 2), keepdim=True)) * window) for t in (a, b)]
    cross = spectra[1] * spectra[0].conj()
    # A little blur makes the peak wide enough to be read between pixels.
    blur = _blur(side).to(a.device)
    cross = cross / cross.abs().clamp_min(1e-12) * blur
    surface = torch.fft.irfft2(cross, s=(side, side))
    reach = int(side * MAX_SHIFT)
    near = surface.roll((reach, reach), (1, 2))[:, : 2 * reach + 1, : 2 * reach + 1]
    inner = near[:, 1:-1, 1:-1].reshape(count, -1)  # a peak on the rim has no outer neighbour
    heights, places = inner.max(1)
    y, x = places // (2 * reach - 1) + 1, places % (2 * reach - 1) + 1
    rows = torch.arange(count, device=a.device)
    dy = _vertex(near[rows, y - 1, x], heights, near[rows, y + 1, x])
    dx = _vertex(near[rows, y, x - 1], heights, near[rows, y, x + 1])
    shifts = torch.stack([y - reach + dy, x - reach + dx], 1)
    return shifts, heights / torch.fft.irfft2(blur.to(cross.dtype), s=(side, side))[0, 0]


def _blur(side: int) -> Tensor:
    """A Gaussian of one pixel's width in the frequency domain [S,S//2+1]."""
    fy, fx = torch.fft.fftfreq(side), torch.fft.rfftfreq(side)
    return torch.exp(-2 * torch.pi**2 * (fy[:, None] ** 2 + fx**2))


def _vertex(before: Tensor, peak: Tensor, after: Tensor) -> Tensor:
    """Place of the top of a Gaussian through three points, between -.5 and .5."""
    logs = [value.clamp_min(1e-12).log() for value in (before, peak, after)]
    curvature = logs[0] - 2 * logs[1] + logs[2]
    top = 0.5 * (logs[0] - logs[2]) / curvature.clamp(max=-1e-12)
    return top.clamp(-0.5, 0.5)


def _similarity(places: Tensor, moved: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and zoom that explain the tiles' movements best; outliers are excluded the second time.

    Args:
        places: [T,2] from the centre.
        moved: [T,2].
        weights: [T].
    """
    kept = torch.ones_like(weights)
    for _ in range(2):
        w = (weights * kept)[:, None]
        shift = (w * moved).sum(0) / w.sum()
        middle = (w * places).sum(0) / w.sum()
        away = places - middle
        zoom = (w * away * (moved - shift)).sum() / (w * away.square()).sum().clamp_min(1e-12)
        shift = shift - zoom * middle  # of the image's centre
        rest = (moved - shift - zoom * places).norm(dim=1)
        kept = (rest <= 3 * rest.median().clamp_min(0.05)).float()
    if rest.median() > MAX_REST:
        return torch.full_like(zoom, torch.nan), torch.full_like(zoom, torch.nan)
    return shift.norm(), zoom.abs()
