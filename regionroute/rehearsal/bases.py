"""Folders of true configurations, in diffusers' layout and without weights."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from regionroute.config.choices import Quantize
from regionroute.diffusion.families import Family, family_of_config
from regionroute.errors import UserError, nearest
from regionroute.files import read_json, write_json
from regionroute.models.formats.packed import CONFIG_KEY, NF4_CONFIG, plain_config
from regionroute.models.loading import autoencoder_class
from regionroute.models.source import INDEX_FILE, SETTINGS_FILE, family_in
from regionroute.models.tiny import WORDS, build_tiny
from regionroute.models.tiny_klein import build_tiny_klein
from regionroute.models.tokenizers import (
    build_clip_tokenizer,
    build_qwen_tokenizer,
    build_t5_tokenizer,
)
from regionroute.planning.sizes import KLEIN_PARTS, KONTEXT_PARTS

SCHEDULER: dict[str, Any] = {
    "use_dynamic_shifting": True,
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
# What the published configurations say beyond sizes.
MORE: dict[str, dict[str, Any]] = {
    "flux1-kontext-12b.vae": {"scaling_factor": 0.3611, "shift_factor": 0.1159},
    "flux1-kontext-12b.text_encoder": {"hidden_act": "quick_gelu", "max_position_embeddings": 77},
    "flux1-kontext-12b.text_encoder_2": {"tie_word_embeddings": False, "dropout_rate": 0.1},
    "flux2-klein-4b.text_encoder": {"rms_norm_eps": 1e-6, "max_position_embeddings": 40960},
}
FULL = {"flux2-klein-4b": KLEIN_PARTS, "flux1-kontext-12b": KONTEXT_PARTS}
TINY: dict[str, Callable[[Path], Path]] = {"tiny-klein": build_tiny_klein, "tiny": build_tiny}
NAMES = (*FULL, *TINY)


@dataclass(frozen=True)
class Shape:
    """What a rehearsal edits and trains on.

    Attributes:
        resolution: side of the images in pixels.
        text_length: tokens of a prompt.
        steps: sampling steps of an edit.
    """

    resolution: int = 256
    text_length: int = 512
    steps: int = 2


def write_configurations(
    name: str, folder: Path, shape: Shape, quantize: Quantize | None = None
) -> Path:
    """Writes all of a base but its weights: configurations, tokenizers, scheduler, settings.

    Args:
        name: one of `NAMES`.
        folder: made if missing.
        shape: goes into the base's settings.
        quantize: "nf4" marks the transformer as stored so; others are made of plain weights.

    Raises:
        UserError: no such base.
    """
    if name in TINY:
        _copy_tiny(TINY[name], folder)
    elif name in FULL:
        _write_full(name, folder, shape)
    else:
        raise UserError(
            f"--base {name}: must be one of {', '.join(NAMES)}; did you mean "
            f"{nearest(name, NAMES)}?"
        )
    settings = {"steps": shape.steps, "resolution": shape.resolution}
    write_json(folder / SETTINGS_FILE, settings | {"max_text_length": shape.text_length})
    if quantize == "nf4":
        file = folder / "transformer" / "config.json"
        write_json(file, read_json(file) | {CONFIG_KEY: NF4_CONFIG})
    return folder


def empty_networks(folder: Path) -> dict[str, torch.nn.Module]:
    """The networks of a folder by part, on the meta device, in full precision."""
    index = read_json(folder / INDEX_FILE)
    family = family_in(index)
    made = {}
    for part, kind in family.networks.items():
        config = plain_config(read_json(folder / part / "config.json"))
        cls = autoencoder_class(index["vae"][1]) if part == "vae" else kind
        with torch.device("meta"):
            made[part] = _network(cls, config)
    return made


def _network(cls: Any, config: dict[str, Any]) -> Any:
    if hasattr(cls, "from_config"):
        return cls.from_config(config)
    return cls(cls.config_class.from_dict(config))


def _copy_tiny(build: Callable[[Path], Path], folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        made = build(Path(scratch) / "tiny")
        without = shutil.ignore_patterns("*.safetensors")
        shutil.copytree(made, folder, ignore=without, dirs_exist_ok=True)


def _write_full(name: str, folder: Path, shape: Shape) -> None:
    parts = FULL[name]
    family = family_of_config(parts["transformer"])
    index: dict[str, Any] = {
        "_class_name": family.pipeline,
        "_diffusers_version": diffusers.__version__,
    }
    for part, kind in family.networks.items():
        cls = autoencoder_class(family.autoencoders[0]) if part == "vae" else kind
        settings = plain_config(parts[part]) | MORE.get(f"{name}.{part}", {})
        settings.pop("_class_name", None)
        with torch.device("meta"):
            model = _network(cls, settings)
        if hasattr(model, "save_config"):
            model.save_config(folder / part)
        else:
            model.config.architectures = [cls.__name__]
            model.config.save_pretrained(folder / part)
        index[part] = [cls.__module__.partition(".")[0], cls.__name__]
    for part, small in _small_parts(family, shape.text_length).items():
        small.save_pretrained(folder / part)
        index[part] = [type(small).__module__.partition(".")[0], type(small).__name__]
    if family.classifier_free:
        index["is_distilled"] = False
    write_json(folder / INDEX_FILE, index)


def _small_parts(family: Family, text_length: int) -> dict[str, Any]:
    """Scheduler and tokenizers; the vocabularies are ours, as the real ones are files to fetch."""
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    if "tokenizer_2" not in family.small_parts:
        return {"scheduler": scheduler, "tokenizer": build_qwen_tokenizer(WORDS, text_length)}
    return {
        "scheduler": scheduler,
        "tokenizer": build_clip_tokenizer(WORDS, 77),
        "tokenizer_2": build_t5_tokenizer(WORDS, text_length),
    }
