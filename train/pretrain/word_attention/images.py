"""Composed images as a base sees them: latents, and what each image shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from regionroute.data.object_bank import ObjectBank
from regionroute.files import atomic_write
from regionroute.models.backbone import Backbone
from train.pretrain.compositions import Composer
from train.pretrain.image_encoder.config import CompositionsConfig
from train.pretrain.image_encoder.views import composition

FILE = "latents.safetensors"
_BATCH = 16


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
    made_with = json.dumps([seed, cfg.model_dump(), base.fingerprint])
    found = _read(path, made_with)
    if found is None:
        bank = ObjectBank(cfg.bank)
        tensors: dict[str, Tensor] = {}
        words: dict[str, list[list[str]]] = {}
        for split, count in (("train", cfg.count), ("test", cfg.held_out)):
            composer = Composer(bank, split, cfg.side, cfg.photos)
            latents, masks, words[split] = _make(composer, count, seed, base, cfg.other_colours)
            tensors |= {f"{split}.latents": latents, f"{split}.masks": masks}
        output.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_file(
                tensors, temporary, metadata={"made with": made_with, "words": json.dumps(words)}
            )
        found = tensors, words
    return {split: _images(split, *found) for split in ("train", "test")}


def _make(
    composer: Composer, count: int, seed: int, base: Backbone, other_colours: float
) -> tuple[Tensor, Tensor, list[list[str]]]:
    """Latents, masks and words of one split."""
    split = composer.bank.photos[composer.members[0]].split
    latents, masks, words = [], [], []
    for start in tqdm(range(0, count, _BATCH), desc=f"{split} images", unit=f"x{_BATCH}"):
        images = []
        for number in range(start, min(count, start + _BATCH)):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            image, objects = composition(composer, generator, other_colours)
            images.append(image)
            words.append(list(objects))
            masks += [mask.half() for mask in objects.values()]
        latents.append(base.encode_images(torch.stack(images)).half())
    return torch.cat(latents).contiguous(), torch.cat(masks), words


def _read(
    path: Path, made_with: str
) -> tuple[dict[str, Tensor], dict[str, list[list[str]]]] | None:
    """What a file holds, unless it is cut off or was made with other settings."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("made with") != made_with:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads(metadata["words"])
    except SafetensorError:
        return None


def _images(split: str, tensors: dict[str, Tensor], words: dict[str, list[list[str]]]) -> Images:
    first, total = [], 0
    for row in words[split]:
        first.append(total)
        total += len(row)
    return Images(tensors[f"{split}.latents"], words[split], tensors[f"{split}.masks"], first)
