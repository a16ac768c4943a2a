r"""Make an embedded base attend to the named object from its first block on.

    python train/pretrain/train_word_attention.py compositions.bank=data/sharp_bank
    regionroute label ... --whole --out data/photo_pairs      # then its experts, see docs

A base with a word-aligned image encoder knows where each word's object is, but its text encoder
drowns the word vectors in what its layers add to them, and its attention learns from photos of one
object, in which whatever stands out is the object. This turns the text layers down, fits the
queries and keys of some heads of the first block to the image encoder's score by least squares,
and trains them, their norms and the text layers with Focus and Cover on composed images of several
objects. The text states stay near those of the base, all else stays as it is. Validated on
compositions of the bank's test photos.

The result is `<output>/base`; `<output>/maps.png` shows attention. A stopped run resumes from its
checkpoint when the same command is started again.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

# Idle CPU threads sleep instead of spinning, see train/run.py. Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from torch import Tensor

from regionroute.attention.losses import cover_loss, focus_loss
from regionroute.data.images import write_image
from regionroute.data.object_bank import ObjectBank
from regionroute.errors import UserError, command
from regionroute.files import read_json, write_json
from regionroute.folders import atomic_folder
from regionroute.models.loading import load_base
from regionroute.models.source import resolve
from regionroute.routing.gates import attention_concentration
from train.engine.loop import train_steps
from train.engine.single_process import resume, run_training, warm_cosine
from train.pretrain.image_encoder.file import load_image_encoder
from train.pretrain.image_encoder.scores import auc, iou
from train.pretrain.model import store_in_float8
from train.pretrain.word_attention.config import WordAttentionConfig
from train.pretrain.word_attention.heads import WordHeads
from train.pretrain.word_attention.images import Images, load_images
from train.pretrain.word_attention.prompts import (
    LOOKS,
    Named,
    Words,
    any_prompt,
    named,
    nowhere,
    token_ids,
)
from train.pretrain.word_attention.start import start_heads
from train.pretrain.word_table import TABLE

RESULT, SHEET = "base", "maps.png"
KEPT = 32  # prompts per step whose text states are kept
SUREST = 4  # tokens whose mean attention says whether the object is there
THRESHOLD = 0.4  # of the attention typical of the region, as edits use it
SHOWN = 32  # maps on the sheet


@command
def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    prog = "train/pretrain/train_word_attention.py"
    return run_training(prog, __doc__, WordAttentionConfig, argv, train_and_save)


def train_and_save(cfg: WordAttentionConfig, output: Path) -> None:
    """Trains the heads of a base and saves it in the folder `output`."""
    base = load_base(cfg.base)
    heads = WordHeads(base, cfg.heads, cfg.text_share)  # first: refuses a base without encoder
    if cfg.image_encoder is not None:
        encoder = load_image_encoder(cfg.image_encoder, "image_encoder")
        before, zoom = base.vae.image_encoder.sizes["zoom"], encoder.sizes["zoom"]
        try:
            base.vae.take_image_encoder(encoder)
        except ValueError as error:
            raise UserError(f"image_encoder={cfg.image_encoder}: {error}") from error
        if zoom != before:
            print(f"image_encoder: sees {zoom} times the base's size, the base's own saw {before}")
    images = load_images(cfg.compositions, cfg.seed, base, output)
    surroundings = ObjectBank(cfg.compositions.bank).surroundings()
    words = Words(base, images["train"], cfg.farthest, surroundings)
    start_heads(heads, images["train"], words.all, cfg.seed, cfg.sharpness)
    train(cfg, heads, images, words, output)
    save_base_with(heads, output / RESULT)
    write_image(output / SHEET, sheet(heads, images["test"]))
    scores = validate(heads, images["test"], words)
    told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    print(f"base saved in {output / RESULT} ({told}); {output / SHEET} shows its attention")


def train(
    cfg: WordAttentionConfig,
    heads: WordHeads,
    images: dict[str, Images],
    words: Words,
    output: Path,
) -> None:
    """Trains in place, from the checkpoint if there is one; checkpoint and log are in `output`.

    Raises:
        UserError: the checkpoint is of another run, or the loss is not finite.
    """
    optimizer = torch.optim.AdamW(
        [{"params": heads.head_weights()}, {"params": heads.text_weights()}],
        lr=cfg.lr,
        weight_decay=0.0,
    )
    start = resume(cfg, output, ("base", "image_encoder"), heads=heads, optimizer=optimizer)

    def rates(step: int) -> tuple[float, float]:
        share = warm_cosine(step, cfg.warmup, cfg.steps)
        return cfg.lr * share, cfg.text_lr * share

    train_steps(
        "word heads",
        cfg,
        output,
        start,
        losses=lambda step: _losses(cfg, heads, images["train"], words, step),
        optimizer=optimizer,
        rates=rates,
        rate_key="lr",
        clip=cfg.clip,
        validate=lambda step: validate(heads, images["test"], words),
        heads=heads,
    )


def _losses(
    cfg: WordAttentionConfig, heads: WordHeads, images: Images, words: Words, step: int
) -> dict[str, Tensor]:
    """The weighted losses of one step, scalars."""
    rng = random.Random(cfg.seed * 1_000_003 + step)
    batch = draw(cfg, images, words, rng)
    noise = torch.randn(
        batch.context.shape, generator=torch.Generator().manual_seed(rng.randrange(2**31))
    )
    found = heads.maps(batch, noise)
    masks = batch.masks[:, None]
    present = masks.flatten(1).amax(1, keepdim=True) > 0
    entropy = F.binary_cross_entropy(
        found.clamp(1e-6, 1 - 1e-6), 0.9 * batch.masks, weight=1 + 2 * batch.masks
    )
    prompts = [any_prompt(words.all, rng) for _ in range(KEPT)]
    return {
        "focus": cfg.focus * focus_loss(found[:, None], masks, present).mean(),
        "cover": cfg.cover * cover_loss(found[:, None], masks, present).mean(),
        "probability": cfg.probability * entropy,
        "keep": cfg.keep * heads.moved(token_ids(heads.base, prompts)[1]),
    }


def draw(cfg: WordAttentionConfig, images: Images, words: Words, rng: random.Random) -> Named:
    """A batch: images with one of their words, or with one that is absent."""
    shown = images.shown()
    chosen, asked, masks = [], [], []
    for _ in range(cfg.batch):
        image = rng.choice(shown)
        number = rng.randrange(len(images.words[image]))
        word, mask = images.words[image][number], images.mask(image, number)
        absent = words.absent(images.words[image], rng) if rng.random() < cfg.absent else None
        if absent is not None:
            word, mask = absent, torch.zeros_like(mask)
        chosen.append(image)
        asked.append(word)
        masks.append(mask)
    return named(images, chosen, asked, torch.stack(masks), [rng.choice(LOOKS) for _ in asked])


@torch.no_grad()
def validate(heads: WordHeads, images: Images, words: Words) -> dict[str, float]:
    """Means over all objects of the images; see `image_encoder.scores.localisation`.

    The region is what exceeds `THRESHOLD` of the attention typical of it, as in edits.
    """
    rng = random.Random(0)
    ious, peaks, overlaps, present, absent = [], [], [], [], []
    for image in images.shown():
        there = images.words[image]
        other = words.absent(there, rng)
        asked = [*there, *([other] if other else [])]
        masks = torch.stack([images.mask(image, n) for n in range(len(there))])
        found = _maps_of(heads, images, image, asked)
        surest = found.flatten(1).topk(SUREST).values.mean(1).tolist()
        present += surest[: len(there)]
        absent += surest[len(there) :]
        region = found > THRESHOLD * attention_concentration(found[None])[0]
        ious += iou(region[: len(there)], masks > 0.5).tolist()
        at = found[: len(there)].flatten(1).argmax(1, keepdim=True)
        peaks += (masks.flatten(1).gather(1, at) > 0.25).flatten().tolist()
        if len(there) > 1:
            overlaps.append(float(iou(region[0], region[1])))
    mean = {"iou": ious, "peak": peaks, "overlap": overlaps}
    return {name: sum(values) / max(1, len(values)) for name, values in mean.items()} | {
        "auc": auc(torch.tensor(present), torch.tensor(absent))
    }


def _maps_of(heads: WordHeads, images: Images, image: int, words: list[str]) -> Tensor:
    """Maps [W,h/2,w/2] of several words in one image."""
    count = len(words)
    batch = named(images, [image] * count, words, nowhere(images, count), [LOOKS[1]] * count)
    noise = torch.randn(batch.context.shape[1:], generator=torch.Generator().manual_seed(image))
    return heads.maps(batch, noise.expand_as(batch.context))


def save_base_with(heads: WordHeads, folder: Path) -> None:
    """Writes the base with its trained weights; an older one is replaced when it is complete."""
    source = resolve(heads.base.name)
    if not isinstance(source, Path):
        raise UserError(f"base={heads.base.name}: give an embedded base or a local folder")
    with atomic_folder(folder) as partial:
        shutil.copytree(source, partial, ignore=shutil.ignore_patterns("experts*"))
        for name in ("transformer", "text_encoder_2", "vae"):
            network = getattr(heads.base, name)
            network.half().save_pretrained(partial / name, safe_serialization=True)
            network.float()
            about = read_json(partial / name / "config.json")
            about.pop("_name_or_path", None)  # a path of this machine
            write_json(partial / name / "config.json", about)
        store_in_float8(partial / "text_encoder_2" / "model.safetensors", TABLE)


@torch.no_grad()
def sheet(heads: WordHeads, images: Images) -> Tensor:
    """Test images as decoded, darkened where the word's attention is low: [3,H,W] in [0,1]."""
    panels: list[Tensor] = []
    crowded = sorted(images.shown(), key=lambda image: -len(images.words[image]))
    for image in crowded:
        photo = heads.base.decode_latents(images.latents[image : image + 1].float())[0]
        words = images.words[image][:3]
        maps = _maps_of(heads, images, image, words)
        shown = F.interpolate((maps / maps.amax((1, 2), keepdim=True))[:, None], photo.shape[-2:])
        panels += [photo, *(photo * (0.2 + 0.8 * part) for part in shown)]
        panels += [torch.zeros_like(photo)] * (3 - len(words))
        if len(panels) >= SHOWN:
            break
    rows = [torch.cat(panels[start : start + 8], -1) for start in range(0, len(panels) - 7, 8)]
    return torch.cat(rows, -2) if rows else torch.cat(panels, -1)


if __name__ == "__main__":
    raise SystemExit(main())
