"""Regional style match: does the object look like the style's name to an image-text encoder?"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.encoders.features import ImageTextEncoder
from eval.metrics.views import crop_box

STYLE_TEXT = "{style} style"


def rsm(output: Tensor, mask: Tensor, styles: Sequence[str], encoder: ImageTextEncoder) -> Tensor:
    """(1 + cos(image(crop), text("{style} style"))) / 2, RegionRoute's RSM: [B].

    Args:
        output: edited images [B,3,H,W] in [0,1].
        mask: one region each, [B,1,H,W] in {0,1}, none empty.
        styles: B style phrases.
        encoder: see :class:`eval.encoders.features.ImageTextEncoder`.

    Returns:
        [B] in [0,1].

    Raises:
        ValueError: B differs among the arguments, or a mask is empty.
    """
    if not len(output) == len(mask) == len(styles):
        raise ValueError(f"{len(output)} images, {len(mask)} masks, {len(styles)} styles")
    boxes = [crop_box(one) for one in mask]
    pairs = zip(output, boxes, strict=True)
    crops = [picture[:, y0:y1, x0:x1] for picture, (y0, x0, y1, x1) in pairs]
    images = encoder.encode_image(crops).float()
    words = sorted(set(styles))
    texts = encoder.encode_text([STYLE_TEXT.format(style=word) for word in words]).float()
    chosen = texts[torch.tensor([words.index(style) for style in styles], device=texts.device)]
    return (1 + F.cosine_similarity(images, chosen, dim=1)) / 2
