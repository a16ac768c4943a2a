"""Training data of an image encoder: square crops of photos and the teacher's features of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Generator, Tensor
from tqdm import tqdm

from regionroute.data.object_bank import PHOTO, ObjectBank
from regionroute.errors import UserError
from regionroute.files import atomic_write
from regionroute.models.image_encoder import STRIDE
from train.pretrain.colours import in_other_colours
from train.pretrain.corpus import to_model_range
from train.pretrain.image_encoder.config import ImageEncoderConfig, ViewsConfig
from train.pretrain.image_encoder.teacher import Teacher

FILE = "views.safetensors"
FITTED_TO = 2000  # squares that the directions of the features are chosen by, at most


@dataclass(frozen=True)
class Views:
    """Squares of one split.

    Attributes:
        pictures: uint8 [N,3,S,S].
        features: fp16 [N,C,S/8,S/8].
    """

    pictures: Tensor
    features: Tensor


def load_views(cfg: ImageEncoderConfig, output: Path) -> tuple[Views, Views]:
    """For training and for validation, from the output folder or made there.

    Training: every photo of the split "train", whole and cut to random squares. Validation: the
    whole photos of the split "test".

    Raises:
        UserError: the bank or the teacher cannot be read.
    """
    path = output / FILE
    told = json.dumps(
        [cfg.seed, cfg.teacher.model_dump(), cfg.views.model_dump(exclude={"mixed"}),
         cfg.network.semantic_channels, cfg.network.scale]
    )  # fmt: skip
    found = _read(path, told)
    if found is None:
        found = _make(cfg)
        output.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            save_file(found, temporary, metadata={"made with": told})
    return tuple(  # type: ignore[return-value]
        Views(found[f"{split}.pictures"], found[f"{split}.features"]) for split in ("train", "test")
    )


def _read(path: Path, told: str) -> dict[str, Tensor] | None:
    """What a file holds, unless it is cut off or was made with other settings."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("made with") != told:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        return None


def _make(cfg: ImageEncoderConfig) -> dict[str, Tensor]:
    bank, teacher = ObjectBank(cfg.views.bank), Teacher(cfg.teacher)
    generator = torch.Generator().manual_seed(cfg.seed)
    found: dict[str, Tensor] = {}
    for split, crops in (("train", cfg.views.crops), ("test", 0)):
        photos = bank.split(split)
        if not photos:
            raise UserError(f"{cfg.views.bank}: the split {split!r} of this bank holds no photo")
        pictures = torch.stack(
            [
                _square(bank.image(PHOTO, photo), cfg.views, turn > 0, generator)
                for turn in range(1 + crops)
                for photo in tqdm(photos, desc=f"{split} {turn + 1}/{1 + crops}", unit="photo")
            ]
        )
        if split == "train":
            some = pictures[:: max(1, len(pictures) // FITTED_TO)]
            channels = 4 * cfg.network.semantic_channels
            teacher.fit(to_model_range(some), channels, cfg.network.scale)
        bar = tqdm(pictures.split(32), desc=f"{split}: teacher", unit="batch")
        features = torch.cat([teacher(to_model_range(part)).half() for part in bar])
        found |= {f"{split}.pictures": pictures, f"{split}.features": features.contiguous()}
    return found


def _square(photo: Tensor, cfg: ViewsConfig, cropped: bool, generator: Generator) -> Tensor:
    """A photo [3,P,P] in [0,1] or a random part of it, uint8 [3,S,S]."""
    if cropped:
        side = photo.shape[-1]
        area, ratio, y, x = torch.rand(4, generator=generator).tolist()
        low, high = cfg.crop_area
        area, ratio = low + (high - low) * area, 2 ** (0.8 * ratio - 0.4)
        height = min(side, round(side * (area * ratio) ** 0.5))
        width = min(side, round(side * (area / ratio) ** 0.5))
        top, left = round(y * (side - height)), round(x * (side - width))
        photo = photo[:, top : top + height, left : left + width]
    size = (cfg.side, cfg.side)
    scaled = F.interpolate(photo[None], size, mode="bilinear", antialias=True)[0]
    return (scaled.clamp(0, 1) * 255).round().to(torch.uint8)


def draw(
    views: Views, count: int, mixed: float, generator: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch: mirrored, in other colours, some with a piece of another square in them.

    The teacher's features move with the piece (CutMix, Yun et al., arXiv:1905.04899), but not at
    its border, where the teacher has seen the one and the network sees the other.

    Args:
        views: where from.
        count: B.
        mixed: share with a piece.
        generator: decides.

    Returns:
        Images [B,3,S,S] in [-1,1], features [B,C,h,w] and weights [B,1,h,w] in {0,1}.
    """
    chosen = torch.randint(len(views.pictures), (count,), generator=generator)
    pictures, features = views.pictures[chosen].float() / 255, views.features[chosen].float()
    turned = torch.rand(count, generator=generator) < 0.5
    pictures[turned], features[turned] = pictures[turned].flip(-1), features[turned].flip(-1)
    pictures = in_other_colours(pictures, generator)
    weights = torch.ones_like(features[:, :1])
    side = features.shape[-1]
    others, whole = torch.roll(torch.arange(count), 1), (pictures.clone(), features.clone())
    for row in (torch.rand(count, generator=generator) < mixed).nonzero()[:, 0].tolist():
        height, width = torch.randint(side // 3, 3 * side // 4 + 1, (2,), generator=generator)
        top = torch.randint(side - int(height) + 1, (), generator=generator)
        left = torch.randint(side - int(width) + 1, (), generator=generator)
        _mix(pictures[row], whole[0][others[row]], STRIDE, top, left, height, width)
        _mix(features[row], whole[1][others[row]], 1, top, left, height, width)
        border = weights[row, 0]
        border[max(0, top - 1) : top + height + 1, max(0, left - 1) : left + width + 1] = 0
        border[top + 1 : top + height - 1, left + 1 : left + width - 1] = 1
    return pictures * 2 - 1, features, weights


def _mix(picture: Tensor, other: Tensor, unit: int, *window: Tensor) -> None:
    top, left, height, width = (unit * int(length) for length in window)
    part = (slice(None), slice(top, top + height), slice(left, left + width))
    picture[part] = other[part]
