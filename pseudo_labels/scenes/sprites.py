"""Drawings of the scene objects: eight kinds, each with its own shape, colours and markings.

A sprite is painted on a supersampled square canvas with coordinates in [-1, 1] (y down), shaded
from the upper left, rotated a little, and averaged down to the pixels of the image.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 4

# Part of the key of scene data sets; change it whenever a drawing changes.
REVISION = "8b675564eb6ff2b3"

Colour = tuple[int, int, int]


class Pen:
    """Draws in [-1, 1] coordinates on an RGBA canvas of `side` pixels."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        self._draw = ImageDraw.Draw(self.image)

    def _px(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [((x + 1) / 2 * self.side, (y + 1) / 2 * self.side) for x, y in points]

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, colour: Colour) -> None:
        """Filled ellipse around (cx, cy)."""
        self._draw.ellipse(sum(self._px([(cx - rx, cy - ry), (cx + rx, cy + ry)]), ()), colour)

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        """Filled polygon."""
        self._draw.polygon(self._px(points), colour)

    def line(self, points: list[tuple[float, float]], colour: Colour, width: float) -> None:
        """Polyline; width in the same units as the coordinates."""
        self._draw.line(self._px(points), colour, max(1, round(width / 2 * self.side)))

    def hole(self, cx: float, cy: float, radius: float) -> None:
        """Punch a transparent disc."""
        self._draw.ellipse(
            sum(self._px([(cx - radius, cy - radius), (cx + radius, cy + radius)]), ()),
            (0, 0, 0, 0),
        )


def draw_sprite(
    kind: str, rng: np.random.Generator, size: int, cx: float, cy: float, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one object into an empty image.

    Args:
        kind: a key of `SPRITES`.
        rng: source of the colour jitter, markings and rotation.
        size: side of the image in pixels.
        cx: column of the centre, as a fraction of the image side.
        cy: row of the centre, as a fraction of the image side.
        radius: half of the object's extent, as a fraction of the image side.

    Returns:
        Colour [H, W, 3] in [0, 1] and coverage [H, W] in [0, 1].
    """
    side = max(8, round(2 * radius * size * SUPERSAMPLING))
    pen = Pen(side)
    SPRITES[kind](pen, rng)
    sprite = _shade(pen.image).rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", (size * SUPERSAMPLING,) * 2, (0, 0, 0, 0))
    left, top = (round(c * size * SUPERSAMPLING - side / 2) for c in (cx, cy))
    canvas.paste(sprite, (left, top))
    pixels = np.asarray(canvas, dtype=np.float64) / 255
    alpha = _mean_down(pixels[..., 3], size)
    # Colour is weighted by coverage, otherwise transparent black would darken the edge.
    colour = (
        _mean_down(pixels[..., :3] * pixels[..., 3:], size) / np.maximum(alpha, 1e-6)[..., None]
    )
    return np.clip(colour, 0, 1), alpha


def _mean_down(pixels: np.ndarray, size: int) -> np.ndarray:
    return pixels.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING, *pixels.shape[2:]).mean((1, 3))


def _shade(image: Image.Image) -> Image.Image:
    """Light from the upper left: brighter there, darker at the lower right."""
    pixels = np.asarray(image, dtype=np.float64).copy()
    y, x = np.mgrid[0 : image.height, 0 : image.width] / image.width * 2 - 1
    pixels[..., :3] *= (1.08 - 0.22 * (x + y) / 2)[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")


def _pick(rng: np.random.Generator, *colours: Colour) -> Colour:
    """One of the colours, a little changed."""
    chosen = colours[rng.integers(len(colours))]
    r, g, b = (int(np.clip(c + rng.integers(-18, 19), 0, 255)) for c in chosen)
    return (r, g, b)


def _darker(colour: Colour, percent: int) -> Colour:
    r, g, b = (c * percent // 100 for c in colour)
    return (r, g, b)


def _apple(pen: Pen, rng: np.random.Generator) -> None:
    skin = _pick(rng, (205, 30, 40), (120, 175, 40))
    pen.ellipse(-0.3, 0.12, 0.6, 0.78, skin)
    pen.ellipse(0.3, 0.12, 0.6, 0.78, skin)
    pen.line([(0, -0.5), (0.08, -0.95)], (90, 60, 30), 0.14)
    pen.polygon([(0.08, -0.72), (0.45, -0.98), (0.62, -0.74), (0.3, -0.6)], (50, 130, 50))
    pen.ellipse(-0.42, -0.2, 0.14, 0.2, (250, 225, 215))


def _crate(pen: Pen, rng: np.random.Generator) -> None:
    wood = _pick(rng, (165, 110, 60), (140, 90, 50))
    dark = _darker(wood, 55)
    pen.polygon([(-0.72, -0.72), (0.72, -0.72), (0.72, 0.72), (-0.72, 0.72)], dark)
    for top in (-0.62, -0.18, 0.26):
        pen.polygon([(-0.62, top), (0.62, top), (0.62, top + 0.34), (-0.62, top + 0.34)], wood)
    pen.line([(-0.6, 0.6), (0.6, -0.6)], dark, 0.16)


def _gem(pen: Pen, rng: np.random.Generator) -> None:
    base = _pick(rng, (30, 170, 200), (150, 60, 190))
    light = (min(255, base[0] + 75), min(255, base[1] + 75), min(255, base[2] + 75))
    dark = _darker(base, 60)
    crown = [(-0.55, -0.7), (0.55, -0.7), (0.95, -0.15), (-0.95, -0.15)]
    pen.polygon(crown, light)
    pen.polygon([(-0.95, -0.15), (-0.32, -0.15), (0, 0.92)], dark)
    pen.polygon([(-0.32, -0.15), (0.32, -0.15), (0, 0.92)], base)
    pen.polygon([(0.32, -0.15), (0.95, -0.15), (0, 0.92)], dark)
    pen.polygon([(-0.32, -0.15), (0, -0.7), (0.32, -0.15)], base)


def _star(pen: Pen, rng: np.random.Generator) -> None:
    gold = _pick(rng, (245, 200, 40), (250, 170, 30))
    angles = np.arange(10) * np.pi / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 0.97, 0.48)
    points = list(zip(radii * np.cos(angles), radii * np.sin(angles), strict=True))
    pen.polygon(points, gold)
    pen.polygon([(0.55 * x, 0.55 * y) for x, y in points], (255, 235, 150))


def _donut(pen: Pen, rng: np.random.Generator) -> None:
    icing = _pick(rng, (240, 120, 170), (95, 55, 35))
    pen.ellipse(0, 0, 0.92, 0.92, (215, 160, 90))
    pen.ellipse(0, 0, 0.8, 0.8, icing)
    for angle in rng.uniform(0, 2 * np.pi) + np.arange(9) * 2 * np.pi / 9:
        x, y = 0.56 * np.cos(angle), 0.56 * np.sin(angle)
        tip = (x + 0.14 * np.cos(3 * angle), y + 0.14 * np.sin(3 * angle))
        pen.line([(x, y), tip], _pick(rng, (255, 240, 90), (90, 220, 240), (250, 250, 250)), 0.12)
    pen.ellipse(0, 0, 0.38, 0.38, (200, 145, 80))
    pen.hole(0, 0, 0.28)


def _leaf(pen: Pen, rng: np.random.Generator) -> None:
    green = _pick(rng, (60, 150, 60), (90, 165, 45))
    vein = _darker(green, 55)
    t = np.linspace(-1, 1, 24)
    width = 0.52 * (1 - t**2)
    outline = [*zip(t * 0.92, width, strict=True), *zip(t[::-1] * 0.92, -width[::-1], strict=True)]
    pen.polygon([((x - y) * 0.7071, (x + y) * 0.7071) for x, y in outline], green)
    pen.line([(-0.66, -0.66), (0.72, 0.72)], vein, 0.09)
    for s in (-0.28, 0.05, 0.36):
        pen.line([(s, s), (s + 0.32, s - 0.02)], vein, 0.06)
        pen.line([(s, s), (s - 0.02, s + 0.32)], vein, 0.06)


def _fish(pen: Pen, rng: np.random.Generator) -> None:
    scales = _pick(rng, (240, 125, 35), (60, 110, 215))
    pen.polygon([(0.4, 0), (0.97, -0.5), (0.97, 0.5)], _darker(scales, 75))
    pen.ellipse(-0.18, 0, 0.76, 0.5, scales)
    for x in (-0.15, 0.2):
        pen.line([(x, -0.42), (x - 0.08, 0), (x, 0.42)], (250, 245, 235), 0.13)
    pen.ellipse(-0.6, -0.1, 0.13, 0.13, (255, 255, 255))
    pen.ellipse(-0.63, -0.1, 0.07, 0.07, (20, 20, 20))


def _mushroom(pen: Pen, rng: np.random.Generator) -> None:
    cap = _pick(rng, (200, 40, 45), (150, 85, 160))
    pen.polygon([(-0.26, -0.05), (0.26, -0.05), (0.36, 0.9), (-0.36, 0.9)], (240, 225, 200))
    angles = np.linspace(np.pi, 2 * np.pi, 24)
    dome = [(0.93 * np.cos(a), 0.08 + 0.95 * np.sin(a)) for a in angles]
    pen.polygon(dome, cap)
    for x, y, r in ((-0.45, -0.25, 0.15), (0.08, -0.52, 0.17), (0.5, -0.2, 0.13)):
        pen.ellipse(x, y, r, r, (250, 245, 240))


SPRITES: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    "apple": _apple,
    "crate": _crate,
    "gem": _gem,
    "star": _star,
    "donut": _donut,
    "leaf": _leaf,
    "fish": _fish,
    "mushroom": _mushroom,
}
