"""Vectors of ImageNet's classes, from a base's own text encoder."""

import re

import torch.nn.functional as F
from torch import Tensor
from torchvision.models import EfficientNet_B0_Weights

from regionroute.models.backbone import Backbone


def class_vectors(base: Backbone) -> Tensor:
    """Unit vectors [1000,D] of the names of ImageNet's classes, centred."""
    categories = EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    names = [re.sub("[^a-z ]", " ", name.lower()) for name in categories]
    vectors = base.word_vectors(names)
    return F.normalize(vectors - vectors.mean(0), dim=-1)
