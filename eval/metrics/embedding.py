"""Measures in an encoder's space: of the style's words, of the source, of the style's images.

Those of StyleExpert (CLIP-I, DINO, CSD) and StyleMamba (CLIP score, directional CLIP). All take
unit vectors of V views and return [V].
"""

import torch
from torch import Tensor
from torch.nn import functional as F

PHOTO_TEXT = "a photo of a {object}"
STYLED_TEXT = "a {object} in {style} style"


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of V pairs of vectors [V,D]: [V], in [-1,1]."""
    return F.cosine_similarity(a.double(), b.double(), dim=1).float()


def directional(output: Tensor, content: Tensor, styled: Tensor, photo: Tensor) -> Tensor:
    """cos(E(output) − E(content), E(styled text) − E(photo text)): [V] in [-1,1].

    The directional similarity of StyleGAN-NADA (Gal et al. 2021). NaN where the image did not
    move at all, because then it has no direction.

    Args:
        output: embeddings of the edited views [V,D].
        content: of the unedited ones [V,D].
        styled: of the texts that name the style [V,D].
        photo: of the texts that do not [V,D].
    """
    moved, wanted = (output - content).double(), (styled - photo).double()
    value = F.cosine_similarity(moved, wanted, dim=1)
    return torch.where(moved.norm(dim=1) > 0, value, torch.nan).float()
