"""Restyles one photo with a saved style, and writes the result with a record of all settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pseudo_labels.compose import composite
from pseudo_labels.stylemamba.encoders import describe, load_encoder
from pseudo_labels.stylemamba.networks import find_region
from pseudo_labels.stylemamba.saved import SavedStyle, load_style, png_metadata, warning
from regionroute.data.images import read_image, write_image
from regionroute.errors import UserError
from regionroute.files import write_json
from regionroute.settings_files import versions


def apply_style(
    photo: str | Path,
    style: str | Path,
    out: str | Path,
    *,
    device: torch.device | str = "cpu",
    strength: float = 1.0,
    names: Sequence[str] = (),
    weights: Sequence[float] | None = None,
    prompt: str | None = None,
    encoder: str | None = None,
    region: str | None = None,
    labels: str | None = None,
    feather: int = 0,
    vae: str | None = None,
) -> dict[str, Any]:
    """Restyle a photo, or one object of it.

    Args:
        photo: image file.
        style: folder of a fitted style.
        out: PNG to write, of the photo's size; a JSON file next to it holds every setting.
        device: where the networks run.
        strength: 0 is the photo, 1 the style.
        names: styles of the folder, all if empty.
        weights: of `names`, for a blend.
        prompt: a new style in words, in place of `names`; needs `encoder`.
        encoder: the encoder that the styles were trained with, hub id or folder.
        region: restyle only this object: a mask's file, or with `labels` a word.
        labels: labels file that holds the masks of words.
        feather: width of the soft edge inside the region, pixels.
        vae: where the codec is, if not where it was when the style was fitted.

    Returns:
        The settings, as written; "warnings" among them if there are any.

    Raises:
        UserError: files, styles or networks that cannot be used.
    """
    photo, out = Path(photo), Path(out)
    image = read_image(photo)
    mask = find_region(region, photo, labels) if region else None
    saved = load_style(style, vae, torch.device(device))
    chosen = saved.choose(names) if not prompt else _described(saved, prompt, encoder)
    styled = saved.apply(image[None], strength=strength, descriptions=chosen, weights=weights)[0]
    if mask is not None:
        styled = composite(image, styled, mask, feather)
    facts: dict[str, Any] = {
        "photo": photo.name,
        "styles": [prompt] if prompt else list(names) or saved.facts.styles,
        "weights": weights,
        "strength": strength,
        "region": region,
        "feather": feather if mask is not None else None,
        "encoder": saved.facts.encoder,
        "codec": saved.facts.codec,
        "random_weights": saved.facts.random,
        "versions": versions(),
    }
    if said := warning(saved.facts.random):
        facts["warnings"] = [said]
    write_json(out.with_suffix(".json"), facts)
    write_image(out, styled, png_metadata(facts))
    return facts


def _described(style: SavedStyle, prompt: str, encoder: str | None) -> Tensor:
    """Description [1, K] of a style in new words.

    Raises:
        UserError: the folder's styles are images, or another encoder made them.
    """
    if style.facts.encoder.get("takes") != "words":
        raise UserError("--prompt: this folder's styles are images, choose one by --name")
    if encoder is None:
        raise UserError("--prompt needs --encoder NAME")
    network = load_encoder(encoder)
    if network.facts["weights"] != style.facts.encoder["weights"]:
        raise UserError(
            f"--encoder {encoder}: these styles were trained with "
            f"'{style.facts.encoder['name']}' and other weights, give that one"
        )
    target = network.target(prompt)
    source = torch.zeros_like(target.embedding)[None]  # a direction between words needs no photo
    return describe(network, target, source, style.facts.style_input)[None]
