"""Composed images as a base sees them: latents, and what each image shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from regionroute.data.object_bank import ObjectBank
from regionroute.models.backbone import Backbone
from regionroute.models.image_encoder import ImageEncoder
from train.pretrain.compositions import Composer
from train.pretrain.image_encoder.config import CompositionsConfig
from train.pretrain.image_encoder.stored import Words, first_masks, read_stored, write_stored
from train.pretrain.image_encoder.views import composed_images, composer_of

FILE = "latents.safetensors"


@dataclass(frozen=True)
class Images:
    """Composed images of one split.

    Attributes:
        latents: fp16 [N,C,h,w].
        words: of each image, those of its visible objects.
        masks: fp16 [M,h/2,w/2], covered fractions of the tokens, in the order of `words`.
        first: [N], an image's first mask.
    """

    latents: Tensor
    words: list[list[str]]
    masks: Tensor
    first: list[int]

    def mask(self, image: int, number: int) -> Tensor:
        """Covered fractions [h/2,w/2] of an image's object."""
        return self.masks[self.first[image] + number].float()

    def shown(self) -> list[int]:
        """The images with an object to name."""
        return [image for image, words in enumerate(self.words) if words]


def load_images(
    cfg: CompositionsConfig, seed: int, base: Backbone, output: Path
) -> dict[str, Images]:
    """Images of the splits "train" and "test", from the output folder or made there.

    Raises:
        UserError: the bank cannot be read.
    """
    path = output / FILE
    bank, encoder = ObjectBank(cfg.bank), base.vae.image_encoder
    about = [
        seed, cfg.model_dump(), bank.key, base.fingerprint, _checksum(encoder),
        encoder.sizes["zoom"],
    ]  # fmt: skip
    made_with = json.dumps(about)
    found = read_stored(path, made_with)
    if found is None:
        tensors: dict[str, Tensor] = {}
        words: Words = {}
        counts = {"train": cfg.count, "test": cfg.held_out}
        # Both first: an empty split is an error, and images take minutes.
        composers = {split: composer_of(bank, split, cfg) for split in counts}
        for split, composer in composers.items():
            latents, masks, words[split] = _make(composer, counts[split], seed, base, cfg)
            tensors |= {f"{split}.latents": latents, f"{split}.masks": masks}
        write_stored(path, made_with, tensors, words)
        found = tensors, words
    return {split: _images(split, *found) for split in ("train", "test")}


def _checksum(encoder: ImageEncoder) -> float:
    """A number that changes with the encoder's weights."""
    return sum(weight.double().sum().item() for weight in encoder.state_dict().values())


def _make(
    composer: Composer, count: int, seed: int, base: Backbone, cfg: CompositionsConfig
) -> tuple[Tensor, Tensor, list[list[str]]]:
    """Latents, masks and words of one split."""
    latents, masks, words = [], [], []
    for images, objects in composed_images(composer, count, seed, cfg):
        words += [list(found) for found in objects]
        masks += [mask.half() for found in objects for mask in found.values()]
        latents.append(base.encode_images(images, (cfg.side, cfg.side)).half())
    return torch.cat(latents).contiguous(), torch.cat(masks), words


def _images(split: str, tensors: dict[str, Tensor], words: Words) -> Images:
    own = words[split]
    masks = tensors[f"{split}.masks"]
    return Images(tensors[f"{split}.latents"], own, masks, first_masks(own))
