"""Latent codecs: a Stable Diffusion VAE, a patch transform fitted to images, or a random VAE."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from pseudo_labels.stylemamba.encoders import RANDOM, weights_hash
from regionroute.diffusion.latents import decode_latents, encode_images
from regionroute.errors import UserError
from regionroute.files import read_json
from regionroute.hub_names import hub_commit, used_name
from regionroute.models.codec import PatchCodec
from regionroute.pretrained import load_errors, load_pretrained

PATCH = "patch"  # name of a patch transform fitted to the given images
PATCH_LEVELS, PATCH_CHANNELS = 4, 64  # 8 px per latent cell as in a VAE; a third of the values
_KINDS: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "PatchCodec": PatchCodec}


class Codec(nn.Module):
    """Images to latents and back; frozen, but differentiable in the latents.

    Args:
        vae: the network.
        name: its name in `facts`.

    Attributes:
        channels: channels of the latents.
        multiple: the sides of images must be multiples of this.
        facts: name, hash of the weights, and whether they are random.
    """

    def __init__(self, vae: Any, name: str) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False).eval()
        self.channels = vae.config.latent_channels
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        self.multiple = 2 * scale if isinstance(vae, PatchCodec) else scale
        self.facts = {"name": name, "weights": weights_hash(vae), "random": name == RANDOM}

    def encode(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1], sides multiples of `multiple`, to latents [B, C, h, w]."""
        return encode_images(self.vae, images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] to images [B, 3, H, W] in [0, 1]."""
        return decode_latents(self.vae, latents)

    def padded(self, images: Tensor) -> Tensor:
        """Pad images of any size to the next multiple by repeating the last row and column."""
        height, width = images.shape[-2:]
        right, below = -width % self.multiple, -height % self.multiple
        return F.pad(images, (0, right, 0, below), mode="replicate") if right or below else images


def load_codec(name: str) -> Codec:
    """Load a VAE by folder (of a VAE, or of a pipeline with ``vae`` in it), hub id, or `RANDOM`.

    Raises:
        UserError: not found, or not a VAE.
    """
    if name == RANDOM:
        return random_codec()
    path = Path(name).expanduser()
    folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
    local = folder.is_dir()
    kind = AutoencoderKL
    if local:
        config = folder / "config.json"
        if not config.is_file():
            raise UserError(f"--vae {name}: no config.json, give the folder of an AutoencoderKL")
        facts = read_json(config)
        found = facts.get("_class_name") if isinstance(facts, dict) else None
        if found not in _KINDS:
            raise UserError(f"--vae {name}: this is a {found}, give an AutoencoderKL")
        kind = _KINDS[found]
    with load_errors(f"--vae {name}", name, "an AutoencoderKL"):
        commit = hub_commit(name)
    where = str(folder) if local else used_name(name, commit)
    vae = load_pretrained(f"--vae {name}", where, "an AutoencoderKL", kind)[0]
    return Codec(vae, path.name if local else used_name(name, commit))


def patch_codec(
    images: Tensor, channels: int = PATCH_CHANNELS, levels: int = PATCH_LEVELS
) -> Codec:
    """A linear patch transform fitted to images in closed form, without pretrained weights.

    Args:
        images: [B, 3, H, W] in [0, 1].
        channels: C, channels of the latents.
        levels: a latent cell is 2^(levels − 1) pixels wide.
    """
    vae = PatchCodec(latent_channels=channels, block_out_channels=(1,) * levels)
    height, width = (side // vae.patch * vae.patch - vae.patch for side in images.shape[-2:])
    if min(height, width) < vae.patch:
        raise UserError(f"--vae {PATCH}: images need sides of at least {2 * vae.patch} pixels")
    # Patches at many offsets: the grid of one image has too few for the covariance.
    step = max(1, vae.patch // 4)
    shifts = range(0, vae.patch, step)
    crops = [images[..., y : y + height, x : x + width] for y in shifts for x in shifts]
    vae.fit(torch.cat(crops).cpu() * 2 - 1)
    return Codec(vae, PATCH)


def random_codec(seed: int = 0) -> Codec:
    """An `AutoencoderKL` of the real class with random weights, for tests and dry runs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        )
    return Codec(vae, RANDOM)
