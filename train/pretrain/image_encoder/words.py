"""Vectors of words and of ImageNet's classes, from a base's own text encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import EfficientNet_B0_Weights

from regionroute.models.loading import Backbone


def word_vectors(base: Backbone, phrases: Sequence[str]) -> Tensor:
    """Unit vectors [N,D]: the mean of the base's frozen vectors of each phrase's tokens."""
    table = base.text_encoder_2.get_input_embeddings().weight.detach().float()
    rows = [
        table[base.tokenizer_2(phrase, add_special_tokens=False).input_ids].mean(0)
        for phrase in phrases
    ]
    return F.normalize(torch.stack(rows), dim=-1)


def class_vectors(base: Backbone) -> Tensor:
    """Unit vectors [1000,D] of the names of ImageNet's classes, centred."""
    categories = EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    names = [re.sub("[^a-z ]", " ", name.lower()) for name in categories]
    vectors = word_vectors(base, names)
    return F.normalize(vectors - vectors.mean(0), dim=-1)
