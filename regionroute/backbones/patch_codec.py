"""The embedded base's autoencoder: a linear patch transform fitted to pictures.

It answers to the calls that a Kontext pipeline makes of an ``AutoencoderKL`` (``encode``,
``decode``, ``config``), so a base that carries it loads and runs like any other. Fitting is a
closed form (an eigen-decomposition), encoding one strided convolution: on a CPU that leaves all the
time to the transformer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


@dataclass(frozen=True)
class PatchPosterior:
    """A posterior without spread: the transform is exact about what it keeps."""

    mean: Tensor

    def mode(self) -> Tensor:
        """[B,C,h,w]."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """[B,C,h,w], the mode: there is nothing to draw."""
        return self.mean


@dataclass(frozen=True)
class PatchEncoding:
    """What ``encode`` returns; named as diffusers names it."""

    latent_dist: PatchPosterior


@dataclass(frozen=True)
class PatchDecoding:
    """What ``decode`` returns; named as diffusers names it."""

    sample: Tensor


class PatchCodec(ModelMixin, ConfigMixin):
    """Karhunen-Loève transform of 2f x 2f patches, half whitened, keeping the strongest directions.

    A patch p becomes z = D^(-1/2)·Uᵀ(p − μ)/s with U the eigenvectors of the patch covariance, D
    the standard deviations along them and s a scale that gives z unit variance on average. Half
    whitening is what keeps a unit-noise error in z cheapest in pixels: with the average variance
    fixed, Σσ_i·δ² is smallest for z_i ∝ σ_i^(1/2) (Cauchy-Schwarz), so few-step sampling loses
    least. Latents are laid out so that the pipeline's 2x2 packing gives each token one whole patch.

    Args:
        latent_channels: C; a token carries 4·C numbers of the 12·f² in its patch.
        block_out_channels: one entry a level; only its length counts, f = 2^(length − 1), as the
            Kontext pipeline reads it.
        scaling_factor: always 1, the scale is inside the transform.
        shift_factor: always 0.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 24,
        block_out_channels: tuple[int, ...] = (1, 1, 1),
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch = 2 * 2 ** (len(block_out_channels) - 1)
        token, pixels = 4 * latent_channels, 3 * self.patch**2
        self.analysis = nn.Parameter(torch.zeros(token, pixels))
        self.synthesis = nn.Parameter(torch.zeros(pixels, token))
        self.mean = nn.Parameter(torch.zeros(pixels))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set the transform from pictures.

        Args:
            images: [B,3,H,W] in [-1,1], sides multiples of the patch.
        """
        patches = self._patches(images).flatten(0, 2).double()
        mean = patches.mean(0)
        variance, directions = torch.linalg.eigh(torch.cov(patches.T))
        keep = torch.arange(len(variance) - 1, len(variance) - 1 - len(self.analysis), -1)
        deviation = variance[keep].clamp(min=1e-8).sqrt()
        basis = directions[:, keep]  # (pixels, token)
        gain = deviation.rsqrt() / deviation.mean().sqrt()
        self.mean.copy_(mean)
        self.analysis.copy_((basis * gain).T)
        self.synthesis.copy_(basis / gain)

    def encode(self, x: Tensor, return_dict: bool = True) -> PatchEncoding | tuple[PatchPosterior]:
        """Pictures [B,3,H,W] in [-1,1], sides multiples of the patch, to latents [B,C,H/f,W/f]."""
        tokens = (self._patches(x) - self.mean) @ self.analysis.T  # (B, H/2f, W/2f, 4C)
        latents = F.pixel_shuffle(tokens.permute(0, 3, 1, 2), 2)
        posterior = PatchPosterior(latents)
        return PatchEncoding(posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True) -> PatchDecoding | tuple[Tensor]:
        """Latents [B,C,h,w] to pictures [B,3,f·h,f·w] in [-1,1] (not clamped)."""
        tokens = F.pixel_unshuffle(z, 2).permute(0, 2, 3, 1)
        pixels = tokens @ self.synthesis.T + self.mean
        images = F.pixel_shuffle(pixels.permute(0, 3, 1, 2), self.patch)
        return PatchDecoding(images) if return_dict else (images,)

    def _patches(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,H/2f,W/2f,3·(2f)²], channel slowest."""
        return F.pixel_unshuffle(x, self.patch).permute(0, 2, 3, 1)
