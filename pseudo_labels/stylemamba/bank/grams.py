"""The perceptual losses of a bank's second stage."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pseudo_labels.stylemamba.bank.styles import BankStyle
from pseudo_labels.stylemamba.bank.targets import Target, resized
from regionroute.data.images import read_image
from regionroute.models.devices import fast_bfloat16
from regionroute.models.vgg import VggFeatures

LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
CONTENT = "relu3_3"  # as in Johnson et al., "Perceptual losses for real-time style transfer", 2016
_PAINTED = 2  # targets whose Gram matrices are averaged for a style without an image


class StyleLoss:
    """Distance of paintings from their style's Gram matrices, and from the content of their photos.

    Each layer's distance is relative to the size of what it is compared with, so that all layers
    and styles count alike.

    Args:
        vgg: the network; it computes in bfloat16 where the CPU has instructions for it.
        styles: of the bank.
        targets: paintings, for styles without an image.
        side: shorter side of the style images in pixels.
    """

    def __init__(
        self,
        vgg: VggFeatures,
        styles: Sequence[BankStyle],
        targets: Sequence[Target],
        side: int,
    ) -> None:
        self._vgg = vgg
        rows = []
        for index, style in enumerate(styles):
            if style.image is not None:
                images = [resized(style.image, side)]
            else:
                own = [target.painted for target in targets if target.style == index]
                images = [read_image(file) for file in own[:_PAINTED]]
            with torch.no_grad():
                grams = [_grams(self._features(image[None], LAYERS)) for image in images]
            rows.append([torch.cat(layer).mean(0) for layer in zip(*grams, strict=True)])
        self._styles = [torch.stack(layer) for layer in zip(*rows, strict=True)]

    def __call__(self, made: Tensor, style: Tensor, photos: Tensor) -> dict[str, Tensor]:
        """The losses "gram" and "content", scalars; differentiable in `made`.

        Args:
            made: paintings [B, 3, H, W] in [0, 1].
            style: index of each style [B].
            photos: what they were painted from [B, 3, H, W] in [0, 1].
        """
        *maps, content = self._features(made, (*LAYERS, CONTENT))
        gram = torch.zeros(())
        for mine, styles in zip(_grams(maps), self._styles, strict=True):
            gram = gram + _relative(mine, styles[style])
        with torch.no_grad():
            [before] = self._features(photos, (CONTENT,))
        return {"gram": gram, "content": _relative(content, before)}

    def _features(self, images: Tensor, layers: Sequence[str]) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_bfloat16()):
            return [maps.float() for maps in self._vgg(images, layers)]


def _grams(features: Sequence[Tensor]) -> list[Tensor]:
    flat = [maps.flatten(2) for maps in features]
    return [f @ f.mT / (f.shape[1] * f.shape[2]) for f in flat]


def _relative(mine: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of each of a batch, relative to the size of `wanted`."""
    size = wanted.square().flatten(1).mean(1).clamp(min=1e-12)
    return ((mine - wanted).square().flatten(1).mean(1) / size).mean()
