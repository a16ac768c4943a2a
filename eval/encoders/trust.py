"""Accepts trained weights only.

A number from random weights looks like any other, so every network is checked before use: a
transformers model for parameters that training always changes, the files of torchvision and
torch-fidelity by their known checksums.
"""

import hashlib
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from regionroute.errors import UserError

# Hashes (`weights_hash`) of torchvision's IMAGENET1K_V1 convolutions, whatever file they are in.
KNOWN_FEATURES = {
    "alexnet": {"bfe63bc7d4567210"},
    "vgg16": {"7687c08b8b4125af"},
}


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """First 16 hexadecimal digits of the SHA-256 over all tensors, by name, with their types."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def looks_untrained(module: nn.Module) -> bool:
    """Whether every bias and norm weight still has its initial value.

    Frameworks start biases at 0 and norm weights at 1; no training leaves all of them there.
    """
    vectors = [p for p in module.parameters() if p.ndim == 1 and p.numel() > 1]
    untouched = [bool((p == 0).all() or (p == 1).all()) for p in vectors]
    return len(untouched) > 0 and all(untouched)


def check_trained(module: nn.Module, where: str) -> None:
    """Rejects an untrained network.

    Args:
        module: the network.
        where: option and place, for the sentence.

    Raises:
        UserError: it looks untrained.
    """
    if looks_untrained(module):
        raise UserError(
            f"{where}: every bias is 0 and every norm weight 1, these weights are random and make "
            "no results, give trained ones"
        )


def check_features(network: str, features: dict[str, Tensor], file: Path, where: str) -> None:
    """Rejects convolutions that are not torchvision's, by their hash or by the file's name.

    torchvision names its files by the beginning of their SHA-256 (``vgg19-dcbb9e9d.pth``).

    Args:
        network: "alexnet", "vgg16" or "vgg19".
        features: the convolutions, ``features.*``.
        file: where they came from.
        where: option and place, for the sentence.

    Raises:
        UserError: neither fits.
    """
    own = {name: value.float() for name, value in features.items() if name.startswith("features.")}
    if tensors_hash(own) in KNOWN_FEATURES.get(network, set()) or named_by_hash(file):
        return
    raise UserError(
        f"{where}: these are not torchvision's {network} weights (their checksum is another), and "
        "numbers from other weights would not be comparable, give torchvision's file"
    )


def named_by_hash(file: Path) -> bool:
    """Whether a file's name ends in the beginning of its SHA-256, as torch hub names files."""
    promised = re.search(r"-([0-9a-f]{8,})\.[a-z]+$", file.name)
    if not promised or not file.is_file():
        return False
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest().startswith(promised[1])
