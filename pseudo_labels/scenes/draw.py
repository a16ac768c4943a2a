"""Synthetic scenes: textured objects over varied backgrounds, with exact masks.

Claims are measured on them: every seed always gives the same scene, so the supply is unlimited, and
a range of seeds is held out for evaluation. Objects look typical of their class (an apple is red or
green and has a leaf), so that words refer to something visible.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pseudo_labels.scenes.sprites import SPRITES, draw_sprite

KINDS: tuple[str, ...] = tuple(SPRITES)

# Part of the key of scene data sets; change it whenever a seed would give another scene.
REVISION = "5c0445b65ab3bff5"

# Seeds in this range are never used for training or pre-training, only for evaluation.
HELD_OUT_SEEDS = range(1_000_000_000, 1_100_000_000)

SMALL_AREA = 0.05  # fraction of the image below which an object is small (a limit of the paper)
OCCLUDED_BELOW = 0.85  # visible fraction of the silhouette below which an object is occluded


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        kind: object word, one of `KINDS`.
        mask: visible pixels [1, H, W] in {0, 1}.
        visible: visible fraction of the object's silhouette, in (0, 1].
        touching: whether another object is adjacent.
    """

    kind: str
    mask: Tensor
    visible: float
    touching: bool


@dataclass(frozen=True)
class Scene:
    """A rendered scene: image [3, H, W] in [0, 1] and its objects, back to front."""

    seed: int
    image: Tensor
    objects: tuple[SceneObject, ...]

    def words(self) -> list[str]:
        """Object words that occur in the scene, each once, back to front."""
        return list(dict.fromkeys(obj.kind for obj in self.objects))

    def mask(self, word: str) -> Tensor:
        """Union [1, H, W] of the visible masks of every object of this word."""
        return torch.stack([obj.mask for obj in self.objects if obj.kind == word]).amax(0)

    def flags(self, word: str) -> tuple[str, ...]:
        """Flags of the word: single | multi, several, touching, occluded, small."""
        named = [obj for obj in self.objects if obj.kind == word]
        flags = ["single" if len(self.objects) == 1 else "multi"]
        if len(named) > 1:
            flags.append("several")
        if any(obj.touching for obj in named):
            flags.append("touching")
        if any(obj.visible < OCCLUDED_BELOW for obj in named):
            flags.append("occluded")
        if float(self.mask(word).mean()) < SMALL_AREA:
            flags.append("small")
        return tuple(flags)


def render_scene(seed: int, size: int = 64, count: int | None = None) -> Scene:
    """Render one scene.

    Args:
        seed: any non-negative integer; equal seeds give equal scenes at equal sizes.
        size: side of the square image in pixels, at least 32.
        count: number of objects, 1 to 4; None: drawn from the seed (one in half of the scenes).

    Returns:
        Scene with at least one object; objects that would be almost fully hidden are skipped.

    Raises:
        ValueError: size or count out of range.
    """
    if size < 32:
        raise ValueError(f"scene size {size} is too small: use at least 32 pixels")
    if count is not None and not 1 <= count <= 4:
        raise ValueError(f"a scene has 1 to 4 objects, not {count}")
    rng = np.random.default_rng(seed)
    drawn_count = int(rng.choice([1, 2, 3, 4], p=[0.5, 0.25, 0.15, 0.10]))
    placements = _place(rng, count or drawn_count)
    canvas = _background(rng, size)
    layers: list[tuple[str, np.ndarray]] = []  # (kind, silhouette [H, W] bool), back to front
    for kind, cx, cy, radius in placements:
        colour, alpha = draw_sprite(kind, rng, size, cx, cy, radius)
        canvas = canvas * (1 - alpha[..., None]) + colour * alpha[..., None]
        layers.append((kind, alpha > 0.5))
    grain = rng.normal(0, 0.006, canvas.shape)
    image = torch.from_numpy(np.clip(canvas + grain, 0, 1)).permute(2, 0, 1)
    # Quantised to 8 bits, so that a scene saved as PNG is exactly the scene.
    image = (image * 255).round().div(255).float().contiguous()
    return Scene(seed, image, _visible_objects(layers))


def _visible_objects(layers: list[tuple[str, np.ndarray]]) -> tuple[SceneObject, ...]:
    """Visible masks after later layers have covered earlier ones, without hidden objects."""
    covered = np.zeros_like(layers[0][1])
    kept: list[tuple[str, np.ndarray, float]] = []
    for kind, silhouette in reversed(layers):
        mask = silhouette & ~covered
        covered |= silhouette
        visible = mask.sum() / max(1, silhouette.sum())
        if visible > 0.25:
            kept.append((kind, mask, float(visible)))
    kept.reverse()
    objects = []
    for index, (kind, mask, visible) in enumerate(kept):
        others = [other for j, (_, other, _) in enumerate(kept) if j != index]
        touching = any((_grow(mask) & other).any() for other in others)
        tensor = torch.from_numpy(mask.astype(np.float32))[None]
        objects.append(SceneObject(kind, tensor, visible, bool(touching)))
    return tuple(objects)


def _grow(mask: np.ndarray) -> np.ndarray:
    """Mask dilated by one pixel (4-neighbourhood)."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _place(rng: np.random.Generator, count: int) -> list[tuple[str, float, float, float]]:
    """Kinds, centres and radii (as fractions of the image side), back to front.

    In most scenes the objects are apart. In some they touch or cover each other, and some repeat a
    kind, because these are the situations in which methods are known to fail.
    """
    kinds = list(rng.permutation(len(KINDS))[:count])
    if count > 1 and rng.random() < 0.25:
        kinds[1] = kinds[0]
    # Minimum distance of two centres, in sums of their radii: apart, touching or covering.
    spacing = rng.choice([1.05, 0.66, 0.38], p=[0.6, 0.2, 0.2])
    largest = (0.38, 0.31, 0.26, 0.23)[count - 1]
    placed: list[tuple[str, float, float, float]] = []
    for kind in kinds:
        radius = rng.uniform(0.65, 1.0) * largest
        if rng.random() < 0.12:
            radius = rng.uniform(0.09, 0.13)
        for _ in range(60):
            cx, cy = rng.uniform(radius * 0.95, 1 - radius * 0.95, 2)
            gaps = [np.hypot(cx - x, cy - y) / (radius + r) for _, x, y, r in placed]
            if all(gap > spacing for gap in gaps):
                placed.append((KINDS[kind], float(cx), float(cy), float(radius)))
                break
    return placed


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A desaturated, textured background [H, W, 3] in [0, 1]."""
    y, x = np.mgrid[0:size, 0:size] / size
    first, second = (_muted(rng) for _ in range(2))
    style = rng.integers(6)
    if style == 0:  # smooth gradient in a random direction
        angle = rng.uniform(0, 2 * np.pi)
        mix = 0.5 + 0.5 * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5)) / 0.71
    elif style == 1:  # ground and sky with a soft horizon
        mix = 1 / (1 + np.exp(-(y - rng.uniform(0.35, 0.7)) * 60))
    elif style == 2:  # stripes
        angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 5)
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y))
    elif style == 3:  # tiles with soft joints
        tiles = rng.integers(2, 5)
        mix = 0.5 + 0.5 * np.tanh(4 * np.sin(np.pi * tiles * x) * np.sin(np.pi * tiles * y))
    elif style == 4:  # clouds
        mix = _clouds(rng, size, 4)
    else:  # plain wall with a faint vignette
        mix = 0.25 * ((x - 0.5) ** 2 + (y - 0.5) ** 2) / 0.5
    paint = first + (second - first) * mix[..., None]
    shade = 1 + rng.uniform(0.0, 0.18) * (_clouds(rng, size, 6) - 0.5)
    return np.clip(paint * shade[..., None], 0, 1)


def _muted(rng: np.random.Generator) -> np.ndarray:
    grey = rng.uniform(0.2, 0.9)
    return np.clip(grey + rng.uniform(-0.11, 0.11, 3), 0, 1)


def _clouds(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth random field [H, W] in [0, 1]."""
    coarse = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)) / 255
