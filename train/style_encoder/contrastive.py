"""InfoNCE between two batches of labelled images, and what an embedding is worth."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    first: Tensor, second: Tensor, labels: Tensor, others: Tensor, temperature: float = 0.07
) -> Tensor:
    """The contrastive loss of StyleExpert (spec §2), one-sided as printed.

    ``L_i = −Σ_j M_ij log softmax_j(cos(e_i, e'_j)/τ) / Σ_j M_ij``, ``M_ij = [s_i = s'_j]``; the
    mean over the rows that have a positive.

    Args:
        first: embeddings [B,D].
        second: embeddings [B',D].
        labels: styles of `first`, long [B].
        others: styles of `second`, long [B'].
        temperature: τ.

    Returns:
        Scalar fp32; 0 if no row has a positive.
    """
    cosines = F.normalize(first.float(), dim=-1, eps=1e-6) @ F.normalize(
        second.float(), dim=-1, eps=1e-6
    ).transpose(0, 1)
    likelihood = F.log_softmax(cosines / temperature, dim=-1)
    positive = labels[:, None].eq(others[None, :]).float()
    count = positive.sum(-1)
    rows = -(positive * likelihood).sum(-1) / count.clamp(min=1)
    return rows.sum() / count.gt(0).sum().clamp(min=1)


@torch.no_grad()
def nearest_neighbours(queries: Tensor, gallery: Tensor, count: int = 1) -> Tensor:
    """For each query [Q,D] the most alike of the gallery [G,D] by cosine: long [Q,count]."""
    cosines = F.normalize(queries.float(), dim=-1, eps=1e-6) @ F.normalize(
        gallery.float(), dim=-1, eps=1e-6
    ).transpose(0, 1)
    return cosines.topk(min(count, cosines.shape[1]), dim=-1).indices
