"""The embedded base's autoencoder: a linear patch transform fitted to images.

It has the interface that a Kontext pipeline uses of an ``AutoencoderKL`` (``encode``, ``decode``,
``config``), so a base that contains it loads and runs like any other. Fitting is a
closed form (an eigen-decomposition), encoding one strided convolution: on a CPU nearly all time
remains for the transformer.

It may contain a frozen image encoder, whose features are additional latent channels: a small base
sees too few photos to learn by itself what a dog looks like. Features next to pixels are as in ReDi
(Kouzelis et al., arXiv:2504.16064); here they are only read, from the context, and not decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from regionroute.models.image_encoder import STRIDE, ImageEncoder


@dataclass(frozen=True)
class PatchPosterior:
    """A posterior without variance: the transform is deterministic."""

    mean: Tensor

    def mode(self) -> Tensor:
        """[B,C,h,w]."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """[B,C,h,w], the mode."""
        return self.mean


@dataclass(frozen=True)
class PatchEncoding:
    """What ``encode`` returns, as in diffusers."""

    latent_dist: PatchPosterior


@dataclass(frozen=True)
class PatchDecoding:
    """What ``decode`` returns, as in diffusers."""

    sample: Tensor


class PatchCodec(ModelMixin, ConfigMixin):
    """Karhunen-Loève transform of 2f x 2f patches, half whitened, keeping the strongest directions.

    A patch p becomes z = D^(-1/2)·Uᵀ(p − μ)/s with U the eigenvectors of the patch covariance, D
    the standard deviations along them and s a scale that gives z unit variance on average. Half
    whitening is what keeps a unit-noise error in z cheapest in pixels: with the average variance
    fixed, Σσ_i·δ² is smallest for z_i ∝ σ_i^(1/2) (Cauchy-Schwarz), so few-step sampling loses
    least. Latents are laid out so that the pipeline's 2x2 packing gives each token one whole patch.

    Args:
        latent_channels: C; a token carries 4·(C − S) numbers of the 12·f² in its patch.
        block_out_channels: one entry a level; only its length counts, f = 2^(length − 1), as the
            Kontext pipeline reads it.
        scaling_factor: always 1, the scale is inside the transform.
        shift_factor: always 0.
        semantic_channels: S, the last of the C channels: the image encoder's features, 4·S per
            token. 0: no image encoder.
        encoder_width: channels inside the image encoder's head.
        word_channels: length of the word vectors that its features are aligned with.
        vocabulary: words that its training images were labelled with.
        encoder_zoom: size at which it sees a photo, in multiples of the base's.

    Raises:
        ValueError: an image encoder whose stride is not the token size.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 24,
        block_out_channels: tuple[int, ...] = (1, 1, 1),
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        semantic_channels: int = 0,
        encoder_width: int = 64,
        word_channels: int = 128,
        vocabulary: Sequence[str] = (),
        encoder_zoom: int = 2,
    ) -> None:
        super().__init__()
        self.patch = 2 * 2 ** (len(block_out_channels) - 1)
        self.pixel_channels = latent_channels - semantic_channels
        token, pixels = 4 * self.pixel_channels, 3 * self.patch**2
        self.image_encoder: ImageEncoder | None = None
        if semantic_channels:
            if self.patch != STRIDE:
                raise ValueError(
                    f"tokens of {self.patch} px, but the image encoder's stride is {STRIDE} px"
                )
            self.image_encoder = ImageEncoder(
                4 * semantic_channels, encoder_width, word_channels, vocabulary, encoder_zoom
            )
        self.analysis = nn.Parameter(torch.zeros(token, pixels))
        self.synthesis = nn.Parameter(torch.zeros(pixels, token))
        self.mean = nn.Parameter(torch.zeros(pixels))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Fit the transform to images.

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

    @torch.no_grad()
    def take_pixels(self, other: PatchCodec) -> None:
        """Copy the pixel transform of a codec with the same number of pixel channels.

        Raises:
            ValueError: it has another number.
        """
        if self.analysis.shape != other.analysis.shape:
            raise ValueError(
                f"{other.pixel_channels} pixel channels, expected {self.pixel_channels}"
            )
        for name in ("analysis", "synthesis", "mean"):
            getattr(self, name).copy_(getattr(other, name))

    def take_image_encoder(self, encoder: ImageEncoder) -> None:
        """Replace the image encoder by one that was trained further.

        Raises:
            ValueError: it has other sizes (beside the zoom) or another scale, so that the base
                cannot read it.
        """
        own = self.image_encoder
        if own is None or own.sizes | {"zoom": encoder.sizes["zoom"]} != encoder.sizes:
            sizes = None if own is None else own.sizes
            raise ValueError(f"its sizes are {encoder.sizes}, those of the base's are {sizes}")
        for name in ("mean", "deviation"):
            if not torch.allclose(getattr(own, name), getattr(encoder, name), rtol=1e-2, atol=1e-3):
                raise ValueError("its channels have another scale: train it with from_base=true")
        self.image_encoder = encoder
        self.register_to_config(
            vocabulary=list(encoder.vocabulary), encoder_zoom=encoder.sizes["zoom"]
        )

    def encode(
        self, x: Tensor, return_dict: bool = True, photos: Tensor | None = None
    ) -> PatchEncoding | tuple[PatchPosterior]:
        """Images to latents.

        Args:
            x: [B,3,H,W] in [-1,1], sides multiples of the patch.
            return_dict: as in diffusers.
            photos: the same images in more detail, of any size, for the image encoder; None: `x`.

        Returns:
            A posterior whose mode is [B,C,H/f,W/f].
        """
        tokens = self._pixel_tokens(x)
        if self.image_encoder is not None:
            seen, size = x if photos is None else photos, (x.shape[-2], x.shape[-1])
            with torch.no_grad():
                features = self.image_encoder(seen, size)
            tokens = torch.cat([tokens, features.permute(0, 2, 3, 1)], -1)
        latents = F.pixel_shuffle(tokens.permute(0, 3, 1, 2), 2)
        posterior = PatchPosterior(latents)
        return PatchEncoding(posterior) if return_dict else (posterior,)

    def encode_pixels(self, x: Tensor) -> Tensor:
        """As `encode`, with zeros in the expensive semantic channels: [B,C,H/f,W/f]."""
        tokens = F.pad(self._pixel_tokens(x), (0, 4 * self.config.semantic_channels))
        return F.pixel_shuffle(tokens.permute(0, 3, 1, 2), 2)

    def decode(self, z: Tensor, return_dict: bool = True) -> PatchDecoding | tuple[Tensor]:
        """Latents [B,C,h,w] to images [B,3,f·h,f·w] in [-1,1] (not clamped)."""
        tokens = F.pixel_unshuffle(z[:, : self.pixel_channels], 2).permute(0, 2, 3, 1)
        pixels = tokens @ self.synthesis.T + self.mean
        images = F.pixel_shuffle(pixels.permute(0, 3, 1, 2), self.patch)
        return PatchDecoding(images) if return_dict else (images,)

    def _pixel_tokens(self, x: Tensor) -> Tensor:
        """[B,H/2f,W/2f,4(C-S)]."""
        return (self._patches(x) - self.mean) @ self.analysis.T

    def _patches(self, x: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,H/2f,W/2f,3·(2f)²], channel slowest."""
        return F.pixel_unshuffle(x, self.patch).permute(0, 2, 3, 1)
