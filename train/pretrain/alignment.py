"""Alignment of a transformer's states with a pretrained vision network's features.

A small base sees few photos and has to find out by itself what a dog looks like. Representation
alignment (REPA, Yu et al., arXiv:2410.06940) gives it what a network trained on ImageNet sees: a
projection of the states of the image's tokens after one block is drawn towards that network's
features. The projection is thrown away with the training's end.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from regionroute.errors import UserError
from regionroute.models.vgg import load_vgg
from train.pretrain.config import AlignmentConfig

LAYER = "conv5_3"


class Alignment(nn.Module):
    """Draws the context tokens' states after one single-stream block to VGG's features.

    Only the projection has parameters and state; the vision network is frozen and loaded anew.

    Args:
        cfg: weights of the network, block, weight of the loss.
        transformer: whose states are aligned.

    Raises:
        UserError: the weights cannot be read or the transformer has no such block.
    """

    def __init__(self, cfg: AlignmentConfig, transformer: FluxTransformer2DModel) -> None:
        super().__init__()
        self.weight = cfg.weight
        # In a list: a module of its own would travel with the checkpoints.
        self.teacher = [load_vgg(str(cfg.vgg), "base.alignment.vgg=")]
        width, channels = transformer.inner_dim, self.teacher[0].channels(LAYER)
        self.project = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, channels),
            nn.SiLU(),
            nn.Linear(channels, channels),
        )
        blocks = transformer.single_transformer_blocks
        if cfg.block >= len(blocks):
            raise UserError(
                f"base.alignment.block={cfg.block}: the transformer has {len(blocks)} "
                "single-stream blocks, the first is 0"
            )
        blocks[cfg.block].register_forward_hook(self._keep)
        self._states: Tensor | None = None

    def loss(self, pictures: Tensor, grid: tuple[int, int]) -> Tensor:
        """Mean 1 - cosine of projected states and features, weighted; a scalar in fp32.

        Args:
            pictures: the context images [B,3,H,W] in [0,1] of the transformer's last call.
            grid: rows and columns of their tokens.
        """
        assert self._states is not None, "the transformer has not been called"
        with torch.no_grad():
            features = self.teacher[0](pictures, [LAYER])[0].float()
            # What all features have in common would be most of the cosine.
            mean, std = (
                features.mean((0, 2, 3), keepdim=True),
                features.std((0, 2, 3), keepdim=True),
            )
            features = (features - mean) / (std + 1e-6)
        target = F.interpolate(features, grid, mode="bilinear").flatten(2).transpose(1, 2)
        # The context's tokens come last.
        projected = self.project(self._states[:, -grid[0] * grid[1] :]).float()
        self._states = None
        return self.weight * (1 - F.cosine_similarity(projected, target, dim=-1)).mean()

    def _keep(self, block: nn.Module, arguments: Any, result: tuple[Tensor, Tensor]) -> None:
        self._states = result[1]
