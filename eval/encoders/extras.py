"""The packages of the extra ``metrics``, each imported where it is first used."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regionroute.errors import UserError

SSIM_WINDOW = 11  # pixels


def missing_extra(package: str, error: ImportError) -> UserError:
    """The sentence for a package that is not there."""
    return UserError(f"{package} is not installed ({error}): pip install 'regionroute[metrics]'")


def structural_similarity(output: Tensor, content: Tensor) -> Tensor:
    """SSIM map of the torchmetrics package, averaged where the 11-pixel window lies inside.

    The package's own mean takes in the mirrored rim, unlike scikit-image's and the paper's.

    Args:
        output: [B,3,H,W] in [0,1], sides of at least 11 pixels.
        content: [B,3,H,W] in [0,1].

    Returns:
        [B].

    Raises:
        UserError: the package is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise missing_extra("torchmetrics", error) from error
    found: Any = structural_similarity_index_measure(
        output,
        content,
        sigma=1.5,
        kernel_size=SSIM_WINDOW,
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    rim = SSIM_WINDOW // 2
    values: Tensor = found[1][..., rim:-rim, rim:-rim].mean((1, 2, 3))
    return values


class _Given(nn.Module):
    """Stands where torchmetrics has its network; hands features through."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features: int = width

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetDistance:
    """FID of the torchmetrics package on features that are given; memory does not grow.

    Args:
        width: numbers in a feature vector.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, width: int) -> None:
        try:
            from torchmetrics.image.fid import FrechetInceptionDistance
        except ImportError as error:
            raise missing_extra("torchmetrics", error) from error
        self._metric = FrechetInceptionDistance(feature=_Given(width))
        self.counts = {True: 0, False: 0}

    def update(self, features: Tensor, *, reference: bool) -> None:
        """Takes vectors [N,width] of the reference's images or of the edits."""
        self._metric.update(features.double(), real=reference)
        self.counts[reference] += len(features)

    def compute(self) -> float | None:
        """The distance; None with fewer than two images on a side."""
        if min(self.counts.values()) < 2:
            return None
        return float(self._metric.compute())


def inception_network(path: Path) -> nn.Module:
    """The Inception of the FID paper as the torch-fidelity package ports it.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise missing_extra("torch-fidelity", error) from error
    network: nn.Module = FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(path)
    )
    return network


def dreamsim_network(folder: Path, device: str) -> tuple[nn.Module, Any]:
    """The ensemble of the dreamsim package and its preprocessing, from a folder it has filled.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from dreamsim import dreamsim
    except ImportError as error:
        raise missing_extra("dreamsim", error) from error
    hub = torch.hub.get_dir()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the package prints
            made: tuple[nn.Module, Any] = dreamsim(
                pretrained=True, device=device, cache_dir=str(folder), dreamsim_type="ensemble"
            )
    finally:
        torch.hub.set_dir(hub)  # the package moves it
    return made
