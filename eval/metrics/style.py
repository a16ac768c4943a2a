"""How near an edit is to images of its style, and how near its content to the source: by VGG.

The measures of StyleGallery (Gram, Style) and StyleMamba (VGG content). Each gets views of one
size, V of them, and a list of reference images for each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from eval.encoders.vision import VggEncoder

VIEW_SIDE = 256  # pixels; views and references are resized to this
GRAM_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
GRAM_SCALE = 1e4  # so that usual values have digits before the point
MATCH_LAYER = "relu4_1"
MATCH_BLOCKS = 8  # a side
CONTENT_LAYERS = ("conv4_2", "conv5_2")
AT_ONCE = 4  # views in one pass


def gram_matrices(features: Tensor) -> Tensor:
    """F Fᵀ / (C H W) of features [V,C,H,W]: [V,C,C]."""
    flat = features.float().flatten(2)
    return flat @ flat.transpose(1, 2) / (features[0].numel())


@dataclass(frozen=True)
class StyleFeatures:
    """What the three measures need of V views, from one pass of the network.

    Attributes:
        grams: Gram matrices of five layers, each [V,C,C].
        blocks: unit vectors of 8 x 8 blocks of relu4_1 [V,64,C].
        content: features of conv4_2 and conv5_2, each [V,C,h,w].
    """

    grams: list[Tensor]
    blocks: Tensor
    content: list[Tensor]


def style_features(pictures: Tensor, network: VggEncoder) -> StyleFeatures:
    """The features of images [V,3,H,W] in [0,1], a few at a time to spare memory."""
    names = (*GRAM_LAYERS, *CONTENT_LAYERS)
    parts = []
    for some in pictures.split(AT_ONCE):
        found = network(some, names)
        grams = [gram_matrices(found[layer]) for layer in GRAM_LAYERS]
        content = [found[layer].clone() for layer in CONTENT_LAYERS]
        parts.append((grams, style_blocks(found[MATCH_LAYER]), content))
    grams_of, blocks_of, content_of = zip(*parts, strict=True)
    return StyleFeatures(
        [torch.cat(layer) for layer in zip(*grams_of, strict=True)],
        torch.cat(blocks_of),
        [torch.cat(layer) for layer in zip(*content_of, strict=True)],
    )


def gram_distance(output: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Σ over layers of the mean squared difference, times 10⁴: [V,R].

    Args:
        output: layers of [V,C,C].
        reference: layers of [R,C,C].
    """
    layers = [
        (a[:, None] - b[None]).square().mean((2, 3)) for a, b in zip(output, reference, strict=True)
    ]
    return GRAM_SCALE * torch.stack(layers).sum(0)


def style_blocks(features: Tensor) -> Tensor:
    """Unit vectors of 8 x 8 blocks of features [V,C,h,w]: [V,64,C]."""
    blocks = F.adaptive_avg_pool2d(features.float(), MATCH_BLOCKS).flatten(2).transpose(1, 2)
    return F.normalize(blocks, dim=2)


def style_match(output: Tensor, reference: Tensor) -> float:
    """Mean cosine of blocks matched one to one by the Hungarian method, in [-1,1].

    Args:
        output: unit vectors [N,C].
        reference: unit vectors [M,C] of all references together, M ≥ N or not.
    """
    cosine = (output @ reference.T).double().cpu().numpy()
    rows, columns = linear_sum_assignment(1 - cosine)
    return float(cosine[rows, columns].mean())


def vgg_content(output: Sequence[Tensor], content: Sequence[Tensor]) -> Tensor:
    """Σ over conv4_2 and conv5_2 of the mean squared difference of features: [V].

    Args:
        output: of the edited images, two of [V,C,h,w].
        content: of the unedited ones.
    """
    layers = [(a - b).square().mean((1, 2, 3)) for a, b in zip(output, content, strict=True)]
    return torch.stack(layers).sum(0)
