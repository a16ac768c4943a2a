"""The Gram loss of a bank's second stage."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pseudo_labels.stylemamba.bank.styles import BankStyle
from pseudo_labels.stylemamba.bank.targets import Target, resized
from regionroute.data.images import read_image
from regionroute.models.vgg import VggFeatures

# Deeper layers cost as much again, and what they describe the painted targets show.
LAYERS = ("relu1_1", "relu2_1", "relu3_1")
_PAINTED = 2  # targets whose Gram matrices are averaged for a style without an image


class GramLoss:
    """Distance of paintings from their style's Gram matrices.

    Each layer's Gram distance is relative to the size of the style's Gram matrix, so that all
    layers and styles count alike.

    Args:
        vgg: the network; it computes in bfloat16.
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
                grams = [self._grams(self._features(image[None])) for image in images]
            rows.append([torch.cat(layer).mean(0) for layer in zip(*grams, strict=True)])
        self._styles = [torch.stack(layer) for layer in zip(*rows, strict=True)]

    def __call__(self, made: Tensor, style: Tensor) -> Tensor:
        """The loss, a scalar; differentiable in `made`.

        Args:
            made: paintings [B, 3, H, W] in [0, 1].
            style: index of each style [B].
        """
        gram = torch.zeros(())
        for mine, styles in zip(self._grams(self._features(made)), self._styles, strict=True):
            wanted = styles[style]
            size = wanted.square().mean((1, 2)).clamp(min=1e-12)
            gram = gram + ((mine - wanted).square().mean((1, 2)) / size).mean()
        return gram

    def _features(self, images: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return [maps.float() for maps in self._vgg(images, LAYERS)]

    @staticmethod
    def _grams(features: Sequence[Tensor]) -> list[Tensor]:
        flat = [maps.flatten(2) for maps in features]
        return [f @ f.mT / (f.shape[1] * f.shape[2]) for f in flat]
