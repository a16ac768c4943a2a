"""How near an edit is to pictures of its style, and how near its content to the source: by VGG.

The measures of StyleGallery (Gram, Style) and StyleMamba (VGG content). Each gets views of one
size, V of them, and a list of reference pictures for each.
"""

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from eval.vision import VggFeatures

VIEW_SIDE = 256  # pixels; views and references are resized to this
GRAM_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")
GRAM_SCALE = 1e4  # so that usual values have digits before the point
MATCH_LAYER = "relu4_1"
MATCH_BLOCKS = 8  # a side
CONTENT_LAYERS = ("conv4_2", "conv5_2")


def gram_matrices(features: Tensor) -> Tensor:
    """F Fᵀ / (C H W) of features [V,C,H,W]: [V,C,C]."""
    flat = features.float().flatten(2)
    return flat @ flat.transpose(1, 2) / (features[0].numel())


def gram_vectors(pictures: Tensor, network: VggFeatures) -> list[Tensor]:
    """The Gram matrices of five layers of pictures [V,3,H,W] in [0,1]: five of [V,C,C]."""
    features = network(pictures, GRAM_LAYERS)
    return [gram_matrices(features[layer]) for layer in GRAM_LAYERS]


def gram_distance(output: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Σ over layers of the mean squared difference, times 10⁴: [V,R].

    Args:
        output: layers of [V,C,C].
        reference: layers of [R,C,C].
    """
    layers = [
        (a[:, None] - b[None]).square().mean((2, 3))
        for a, b in zip(output, reference, strict=True)
    ]
    return GRAM_SCALE * torch.stack(layers).sum(0)


def style_blocks(pictures: Tensor, network: VggFeatures) -> Tensor:
    """Unit vectors of 8 x 8 blocks of relu4_1 of pictures [V,3,H,W] in [0,1]: [V,64,C]."""
    features = network(pictures, (MATCH_LAYER,))[MATCH_LAYER]
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


def vgg_content(output: Tensor, content: Tensor, network: VggFeatures) -> Tensor:
    """Σ over conv4_2 and conv5_2 of the mean squared difference of features: [V].

    Args:
        output: edited pictures [V,3,H,W] in [0,1].
        content: unedited pictures [V,3,H,W] in [0,1].
        network: see :class:`eval.vision.VggFeatures`.
    """
    a, b = (network(pictures, CONTENT_LAYERS) for pictures in (output, content))
    layers = [(a[layer] - b[layer]).square().mean((1, 2, 3)) for layer in CONTENT_LAYERS]
    return torch.stack(layers).sum(0)
