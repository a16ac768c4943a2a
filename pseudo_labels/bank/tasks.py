"""Pre-training pairs of an embedded base: styles on whole images, recoloured objects, copies.

The tasks teach a base to copy, to paint styles (on whole images) and to find objects by word (by
recolouring the named one). None restyles a region: that is what RegionRoute training adds, exactly
as on a large base.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pseudo_labels.scenes.draw import Scene
from pseudo_labels.stylize.filters import FILTERS

# Several wordings of each task, so that the text encoders learn words rather than one sentence.
COPY_PROMPTS = (
    "keep the image unchanged",
    "keep all areas unchanged",
    "keep the picture unchanged",
)
STYLE_PROMPTS = (
    "make the image in {style} style",
    "make the picture in {style} style",
    "turn the image into {style} style",
)
TINT_PROMPTS = ("make the image {colour}", "paint the picture {colour}", "turn the image {colour}")
RECOLOUR_PROMPTS = (
    "make the {word} {colour}, keep other area unchanged",
    "paint the {word} {colour}, keep other area unchanged",
    "turn the {word} {colour}, keep other area unchanged",
)

RECOLOURS = 3  # recoloured objects of a scene
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.12),
    "green": (0.10, 0.65, 0.20),
    "blue": (0.12, 0.25, 0.90),
    "yellow": (0.98, 0.88, 0.10),
    "purple": (0.55, 0.15, 0.75),
    "orange": (1.00, 0.52, 0.05),
    "white": (0.97, 0.97, 0.97),
    "black": (0.10, 0.10, 0.11),
}


@dataclass(frozen=True)
class PretrainingPair:
    """An instruction on a scene and the image that should result.

    Attributes:
        task: copy | style | recolour | tint.
        prompt: the instruction.
        target: image [3, H, W] in [0, 1]; None when it equals the scene's image.
    """

    task: str
    prompt: str
    target: Tensor | None


def recolour(image: Tensor, colour: str) -> Tensor:
    """Paint an image [3, H, W] in [0, 1] in one colour, keeping its brightness.

    Raises:
        KeyError: the colour is not one of `COLOURS`.
    """
    paint = image.new_tensor(COLOURS[colour])[:, None, None]
    tone = image.mean(0, keepdim=True)
    shade = paint * (0.45 + 0.75 * tone)
    highlight = (tone - 0.6).clamp(min=0) * 0.8
    return (shade + highlight * (1 - shade)).clamp(0, 1)


def pretraining_pairs(scene: Scene, rng: np.random.Generator) -> list[PretrainingPair]:
    """All pairs of one scene: a copy, every style, some recoloured objects and a tint.

    Args:
        scene: the scene.
        rng: draws words and colours.

    Returns:
        Pairs in a fixed order (copy, styles, recolours, tint).
    """
    image = scene.image
    pairs = [PretrainingPair("copy", _wording(COPY_PROMPTS, rng), None)]
    for style, stylize in FILTERS.items():
        prompt = _wording(STYLE_PROMPTS, rng).format(style=style)
        pairs.append(PretrainingPair("style", prompt, stylize(image)))
    names = list(COLOURS)
    for colour in rng.permutation(len(names))[:RECOLOURS]:
        word = scene.words()[rng.integers(len(scene.words()))]
        target = torch.where(scene.mask(word) > 0.5, recolour(image, names[colour]), image)
        prompt = _wording(RECOLOUR_PROMPTS, rng).format(word=word, colour=names[colour])
        pairs.append(PretrainingPair("recolour", prompt, target))
    colour_name = names[rng.integers(len(names))]
    prompt = _wording(TINT_PROMPTS, rng).format(colour=colour_name)
    pairs.append(PretrainingPair("tint", prompt, recolour(image, colour_name)))
    return pairs


def _wording(prompts: tuple[str, ...], rng: np.random.Generator) -> str:
    return prompts[rng.integers(len(prompts))]
