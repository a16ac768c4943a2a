"""Train the style encoder: which images are alike in style, whatever they show.

    regionroute scenes --out data/scenes --train 64 --test 32 --style-images
    python train/style_encoder/run.py --config configs/nano_style_encoder.yaml
    python train/style_encoder/run.py --config configs/style_encoder.yaml pictures.source=styles/

`pictures.source` holds one folder of images a style. Images of one name (starry/dog.png,
cubism/dog.png) show the same thing; a style is learnt from pairs that show different ones. The
result, `<output>/style_encoder`, goes into experts.style_encoder of train/run.py. A stopped run
resumes from its checkpoint when the same command is started again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Idle CPU threads sleep instead of spinning, see train/run.py. Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from torch import Tensor

from regionroute.adapters.style_encoder import (
    FOLDER,
    EncoderSettings,
    StyleEncoder,
    load_tower,
    new_tower,
    save_style_encoder,
)
from regionroute.data.images import write_image
from regionroute.errors import command
from regionroute.files import write_json
from regionroute.hub_names import commit_of_model, used_name
from regionroute.models.devices import pick_device
from train.engine.loop import train_steps
from train.engine.single_process import resume, run_training
from train.style_encoder.config import StyleEncoderConfig
from train.style_encoder.contrastive import info_nce, nearest_neighbours
from train.style_encoder.images import (
    StylePicture,
    draw_pairs,
    hold_out,
    load_pixels,
    read_style_pictures,
    styles_of,
)

NEIGHBOURS = 5


@dataclass(frozen=True)
class StyleData:
    """The images of a run.

    Attributes:
        pictures: P of them.
        pixels: uint8 [P,3,S,S].
        labels: long [P].
        training, held_out: positions.
    """

    pictures: Sequence[StylePicture]
    pixels: np.ndarray
    labels: Tensor
    training: list[int]
    held_out: list[int]

    def images(self, positions: Sequence[int]) -> Tensor:
        """[B,3,S,S] in [0,1]."""
        return torch.from_numpy(np.stack([self.pixels[i] for i in positions])).float() / 255


@command
def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    prog = "train/style_encoder/run.py"
    return run_training(prog, __doc__, StyleEncoderConfig, argv, train)


def train(cfg: StyleEncoderConfig, output: Path) -> None:
    """Trains and saves a style encoder in the folder `output`."""
    device = torch.device(pick_device(cfg.device))
    pictures = read_style_pictures(cfg.pictures.source, cfg.pictures.split)
    training, held_out = hold_out(pictures, cfg.pictures.held_out, cfg.seed)
    encoder = build_encoder(cfg, styles_of(pictures)).to(device)
    optimizer = make_optimizer(encoder, cfg)
    start = resume(cfg, output, encoder=encoder, optimizer=optimizer)
    pixels = load_pixels(pictures, encoder.image_size, output / "pictures.npy")
    styles = styles_of(pictures)
    labels = torch.tensor([styles.index(picture.style) for picture in pictures])
    data = StyleData(pictures, pixels, labels, training, held_out)
    scores = train_encoder(cfg, encoder, optimizer, data, start)
    save_style_encoder(output / FOLDER, encoder)
    write_json(output / FOLDER / "scores.json", scores)
    if held_out:
        write_image(output / "neighbours.png", neighbour_sheet(encoder, data))
    shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    print(f"style encoder saved in {output / FOLDER} ({shown})")


def build_encoder(cfg: StyleEncoderConfig, styles: Sequence[str]) -> StyleEncoder:
    """A new encoder over the configured tower.

    Raises:
        UserError: the tower cannot be loaded, or sizes do not fit.
    """
    torch.manual_seed(cfg.seed)
    sizes = cfg.tower
    tower = (
        load_tower(sizes.name)
        if sizes.name
        else new_tower(
            sizes.image_size, sizes.patch_size, sizes.hidden_size, sizes.layers, sizes.heads
        )
    )
    settings = EncoderSettings(
        tower=sizes.name and used_name(sizes.name, commit_of_model(tower)),
        levels=cfg.head.levels,
        tokens=cfg.head.tokens,
        width=cfg.head.width,
        styles=tuple(styles),
    )
    return StyleEncoder(tower, settings)


def make_optimizer(encoder: StyleEncoder, cfg: StyleEncoderConfig) -> Any:
    """AdaBelief or AdamW over what is not frozen."""
    parameters = [x for x in encoder.parameters() if x.requires_grad]
    lr, decay = cfg.optim.lr, cfg.optim.weight_decay
    if cfg.optim.name == "adamw":
        return torch.optim.AdamW(parameters, lr, weight_decay=decay)
    from pytorch_optimizer import AdaBelief  # seconds to import

    return AdaBelief(parameters, lr, weight_decay=decay)


def train_encoder(
    cfg: StyleEncoderConfig, encoder: StyleEncoder, optimizer: Any, data: StyleData, start: int
) -> Mapping[str, float]:
    """Trains in place, with checkpoints and a log in the output folder.

    Returns:
        The last validation.

    Raises:
        UserError: the loss is not finite.
    """
    encoder.train()
    scores = train_steps(
        "style encoder",
        cfg,
        Path(cfg.output),
        start,
        losses=lambda step: {"loss": _loss(cfg, encoder, data, step)},
        optimizer=optimizer,
        rates=lambda step: [cfg.optim.lr],
        rate_key="optim.lr",
        clip=cfg.optim.clip,
        validate=(lambda step: validate(encoder, data)) if data.held_out else None,
        encoder=encoder,
    )
    return scores or (validate(encoder, data) if data.held_out else {})


def _loss(cfg: StyleEncoderConfig, encoder: StyleEncoder, data: StyleData, step: int) -> Tensor:
    rng = np.random.default_rng([cfg.seed, 2, step])
    first, second = draw_pairs(data.pictures, data.training, cfg.batch, rng)
    images = _augmented(data.images([*first, *second]), cfg, rng).to(encoder.device)
    embeddings = encoder(images)
    labels = data.labels.to(encoder.device)
    return info_nce(
        embeddings[: len(first)], embeddings[len(first) :], labels[first], labels[second],
        cfg.loss.temperature,
    )  # fmt: skip


def _augmented(images: Tensor, cfg: StyleEncoderConfig, rng: np.random.Generator) -> Tensor:
    """Random crops and mirror images of [B,3,S,S]; colours are style and stay."""
    size = images.shape[-1]
    result = []
    for image in images:
        side = round(size * rng.uniform(cfg.pictures.crop, 1))
        top, left = rng.integers(size - side + 1, size=2)
        part = image[:, top : top + side, left : left + side]
        if cfg.pictures.flip and rng.random() < 0.5:
            part = part.flip(-1)
        part = torch.nn.functional.interpolate(
            part[None], (size, size), mode="bilinear", antialias=True
        )
        result.append(part)
    return torch.cat(result)


@torch.no_grad()
def embed_all(encoder: StyleEncoder, data: StyleData, positions: Sequence[int]) -> Tensor:
    """Embeddings [n,Ds] fp32 on the CPU, as an edit would make them."""
    encoder.eval()
    chunks = [positions[i : i + 64] for i in range(0, len(positions), 64)]
    parts = [encoder(data.images(chunk).to(encoder.device)).cpu() for chunk in chunks]
    encoder.train()
    return torch.cat(parts)


def validate(encoder: StyleEncoder, data: StyleData) -> dict[str, float]:
    """How often the nearest training image of a held-out one is of its style; and by chance."""
    queries, gallery = (embed_all(encoder, data, p) for p in (data.held_out, data.training))
    found = nearest_neighbours(queries, gallery)[:, 0]
    wanted, shown = data.labels[data.held_out], data.labels[data.training]
    share = torch.bincount(shown).double() / len(shown)
    return {
        "nearest_is_right": shown[found].eq(wanted).float().mean().item(),
        "by_chance": share[wanted].mean().item(),
    }


def neighbour_sheet(encoder: StyleEncoder, data: StyleData) -> Tensor:
    """One held-out image a style and, right of it, the training images most like it."""
    gallery = embed_all(encoder, data, data.training)
    labels, rows = data.labels[data.held_out], []
    for label in sorted(set(labels.tolist())):
        query = data.held_out[labels.tolist().index(label)]
        found = nearest_neighbours(embed_all(encoder, data, [query]), gallery, NEIGHBOURS)[0]
        shown = data.images([query, *(data.training[i] for i in found.tolist())])
        gap = torch.ones(3, shown.shape[2], shown.shape[3] // 8)
        rows.append(torch.cat([shown[0], gap, *shown[1:]], dim=2))
    return torch.cat(rows, dim=1)


if __name__ == "__main__":
    raise SystemExit(main())
