"""Fits a style and saves it; shared by `regionroute mamba fit` and the stylizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pseudo_labels.stylemamba.config import MambaConfig
from pseudo_labels.stylemamba.fitting import fit, stacked
from pseudo_labels.stylemamba.measures import directional_score, ssim
from pseudo_labels.stylemamba.modules.fusion import StyleFusion
from pseudo_labels.stylemamba.networks import Names, load_parts, read_images
from pseudo_labels.stylemamba.objective import Parts
from pseudo_labels.stylemamba.saved import SavedStyle, StyleFacts, png_metadata, vae_name, warning
from regionroute.data.images import from_pil, to_pil, write_image
from regionroute.files import write_jsonl

LOSSES_FILE, PREVIEW_FILE = "losses.jsonl", "preview.png"
CELL, GAP, LINE = 256, 8, 20  # pixels of a preview sheet
SHOWN = 4  # photos on a preview sheet


@dataclass(frozen=True)
class FitJob:
    """One fit: styles, photos and networks.

    Attributes:
        styles: words, or file names of images.
        pictures: whether `styles` are file names.
        images: files of the photos.
        names: names of the networks.
        regions: masks [1, H, W], one per photo and of its size; None: whole photos.
    """

    styles: tuple[str, ...]
    pictures: bool
    images: tuple[Path, ...]
    names: Names
    regions: tuple[Tensor, ...] | None = None


def fit_style(job: FitJob, config: MambaConfig, folder: Path, device: torch.device) -> SavedStyle:
    """Fit a style and write its folder: the style, its losses, and a preview with scores.

    Raises:
        UserError: networks or images that cannot be used.
    """
    size = config.fit.size
    images = read_images(job.images, size).to(device)
    region = None if job.regions is None else stacked(job.regions, size).to(device)
    parts = load_parts(job.names, images, job.pictures, device)
    targets = [parts.encoder.target(style) for style in job.styles]
    result = fit(targets, images, parts, config, region)
    names = [target.name for target in targets]
    style = assemble(names, result.fusion, result.descriptions, parts, job.names, config)
    scores, rows = judge(style, images, parts, job.styles)
    style.facts.settings.update(scores=scores, pictures=[file.name for file in job.images])
    write_jsonl(folder / LOSSES_FILE, [{"step": i} | r for i, r in enumerate(result.rows, 1)])
    write_sheet(folder / PREVIEW_FILE, rows, parts)
    style.save(folder)
    return style


def assemble(
    names: Sequence[str],
    fusion: StyleFusion,
    descriptions: Tensor,
    parts: Parts,
    networks: Names,
    config: MambaConfig,
    options: str = "fit",
) -> SavedStyle:
    """Assemble a saved style; `options` names the group of settings it was made with."""
    facts = StyleFacts(
        styles=list(names),
        fusion=config.fusion,
        codec=parts.codec.facts | {"channels": parts.codec.channels},
        vae=vae_name(networks.vae),
        encoder=parts.encoder.facts,
        style_input=getattr(config, options).style_input,
        random=parts.random,
        settings={
            "loss": config.loss.model_dump(mode="json"),
            options: getattr(config, options).model_dump(mode="json"),
            "content_loss": "latents" if parts.vgg is None else parts.vgg.kind,
        },
    )
    fusion.eval().requires_grad_(False)
    return SavedStyle(facts, fusion, descriptions, parts.codec)


@torch.no_grad()
def judge(
    style: SavedStyle, images: Tensor, parts: Parts, sources: Sequence[str]
) -> tuple[dict[str, dict[str, float]], list[dict[str, Tensor]]]:
    """Scores of each style, and images for a sheet.

    The directional score uses the encoder of the training, so it is optimistic.

    Args:
        style: the style.
        images: [n, 3, H, W] in [0, 1].
        parts: the networks it was fitted with.
        sources: words or file names, those of `style.facts.styles` first and in the same order.

    Returns:
        Style -> "directional" and "ssim", means over the photos; and rows of named images, one per
        photo of the sheet.
    """
    rows: list[dict[str, Tensor]] = [{"photo": image} for image in images[:SHOWN]]
    scores = {}
    plain = parts.codec.decode(parts.codec.encode(images))
    seen = parts.encoder.embed(plain)
    for name, source, description in zip(
        style.facts.styles, sources, style.descriptions, strict=False
    ):
        styled = style.apply(images, descriptions=description[None])
        direction = parts.encoder.target(source).direction(seen)
        scores[name] = {
            "directional": float(
                directional_score(seen, parts.encoder.embed(styled), direction).mean()
            ),
            "ssim": float(ssim(plain, styled).mean()),
        }
        for row, picture in zip(rows, styled, strict=False):
            row[name] = picture
    return scores, rows


def write_sheet(path: Path, rows: Sequence[dict[str, Tensor]], parts: Parts) -> None:
    """Write rows of named images as one PNG; its first line warns about random networks."""
    message = warning(parts.random)
    head = LINE if message else 0
    width = GAP + max(len(row) for row in rows) * (CELL + GAP)
    sheet = Image.new("RGB", (width, head + len(rows) * (CELL + LINE + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    if message:
        draw.text((GAP, 2), message, "red", font)
    for number, row in enumerate(rows):
        top = head + number * (CELL + LINE + GAP)
        for column, (name, picture) in enumerate(row.items()):
            left = GAP + column * (CELL + GAP)
            draw.text((left, top + 2), _shortened(name, draw, font), "black", font)
            cell = to_pil(picture)
            cell.thumbnail((CELL, CELL))
            sheet.paste(cell, (left, top + LINE))
    facts: dict[str, Any] = {"random_weights": parts.random}
    write_image(path, from_pil(sheet), png_metadata(facts))


def _shortened(name: str, draw: ImageDraw.ImageDraw, font: Any) -> str:
    while len(name) > 1 and draw.textlength(name, font) > CELL:
        name = name[:-2] + "…"
    return name
