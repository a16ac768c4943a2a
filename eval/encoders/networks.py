"""The networks and files of the metrics, loaded from where the user says.

A metric whose network is missing is skipped, with a line on how to get it. Nothing is downloaded
unless the user names a hub model, and no network is replaced by another.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from eval.encoders import vision
from eval.encoders.csd import CsdEncoder
from eval.encoders.features import (
    CLIP_REMEDY,
    LPIPS_REMEDY,
    ImageTextEncoder,
    PerceptualDistance,
    find_lpips_weights,
    load_clip,
    load_lpips,
)
from eval.judge.answers import Judge
from eval.judge.model import load_judge
from eval.judge.questions import load_judge_config
from eval.style_images import StyleImages
from regionroute.errors import UserError, nearest

REMEDIES = {
    "lpips": f"no AlexNet weights; {LPIPS_REMEDY}",
    "clip": f"no image-text encoder; {CLIP_REMEDY}",
    "judge": "no judge; give --judge NAME_OR_FOLDER, for example Qwen/Qwen2.5-VL-7B-Instruct",
    "styles": "no images of the styles; give --style-images FOLDER with <style>.jpg or "
    "<style>/*.jpg",
    "dino": "no DINO; give --encoder dino=NAME_OR_FOLDER, for example facebook/dinov2-base",
    "csd": "no CSD; give --encoder csd=FILE, the checkpoint of github.com/learn2phrase/CSD",
    "dreamsim": "no DreamSim; give --encoder dreamsim=FOLDER, filled by the dreamsim package "
    "(pip install 'regionroute[metrics]')",
    "aesthetic": "no aesthetic head; give --encoder aesthetic=FILE, "
    "sac+logos+ava1-l14-linearMSE.pth of github.com/christophschuhmann/"
    "improved-aesthetic-predictor, and CLIP ViT-L/14",
    "vgg": "no VGG weights; give --encoder vgg=FILE with torchvision's VGG19 or VGG16",
    "inception": "no Inception; give --encoder inception=FILE, "
    "weights-inception-2015-12-05-6726825d.pth of github.com/toshas/torch-fidelity",
}
_LOADERS: dict[str, Callable[[str, Any], Any]] = {
    "dino": vision.load_dino,
    "csd": vision.load_csd,
    "dreamsim": vision.load_dreamsim,
    "aesthetic": vision.load_aesthetic,
    "vgg": vision.load_vgg,
    "inception": vision.load_inception,
}


@dataclass(frozen=True)
class ScoreNetworks:
    """Where the networks of the metrics are; a metric whose network is missing is skipped.

    Attributes:
        clip: image-text encoder for RSM, hub id or folder.
        lpips_weights: torchvision's AlexNet weights; None: $REGIONROUTE_LPIPS, else the torch
            hub's cache.
        encoders: further networks by name (dino, csd, dreamsim, aesthetic, vgg, inception).
        style_images: folder with images of the styles, ``STYLE.jpg`` or ``STYLE/*.jpg``.
        judge: vision-language model for questions 1 to 4, hub id or folder.
        judge_config: its prompts and table of opposite styles, YAML.
    """

    clip: str | None = None
    lpips_weights: str | None = None
    encoders: Mapping[str, str] | Sequence[str] = ()
    style_images: str | None = None
    judge: str | None = None
    judge_config: str | None = None


@dataclass
class Networks:
    """What metrics may need; None where it is not available."""

    lpips: PerceptualDistance | None = None
    clip: ImageTextEncoder | None = None
    dino: vision.ImageEncoder | None = None
    csd: CsdEncoder | None = None
    dreamsim: vision.DreamSim | None = None
    aesthetic: vision.AestheticHead | None = None
    vgg: vision.VggEncoder | None = None
    inception: vision.InceptionFeatures | None = None
    judge: Judge | None = None
    styles: StyleImages | None = None

    def lacks(self, needs: Iterable[str]) -> str | None:
        """The first of the needs that is not available, None if all are."""
        known = {field.name for field in fields(self)}
        absent = (name for name in needs if name in known and getattr(self, name) is None)
        return next(absent, None)


def parse_places(items: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """Where each network of --encoder is.

    Args:
        items: {name: place}, or ``name=place`` each.

    Raises:
        UserError: not of this form, or an unknown name.
    """
    pairs = items.items() if isinstance(items, Mapping) else (x.partition("=")[::2] for x in items)
    places = {}
    for name, place in pairs:
        if not place:
            raise UserError(f"--encoder {name}: write NAME=PLACE, names: {', '.join(_LOADERS)}")
        if name not in _LOADERS:
            close = nearest(name, _LOADERS)
            raise UserError(f"--encoder {name}: unknown name, the nearest known one is {close!r}")
        places[name] = place
    return places


def load_networks(
    given: ScoreNetworks,
    needed: Iterable[str],
    out: Path | None = None,
    device: str | torch.device = "cpu",
) -> Networks:
    """Loads the networks that are needed and given.

    Args:
        given: where they are.
        needed: names of :class:`Networks`.
        out: folder for the judge's answers.
        device: of the networks.

    Raises:
        UserError: something that was asked for cannot be loaded.
    """
    wanted, places = set(needed), parse_places(given.encoders)
    networks = Networks()
    if "lpips" in wanted and (path := find_lpips_weights(given.lpips_weights)):
        networks.lpips = load_lpips(path, device)
    if "clip" in wanted and given.clip:
        networks.clip = load_clip(given.clip, device)
    if "styles" in wanted and given.style_images:
        networks.styles = StyleImages(given.style_images)
    if "judge" in wanted and given.judge:
        config = load_judge_config(given.judge_config)
        log = out / "judge.jsonl" if out else None
        networks.judge = Judge(load_judge(given.judge, device), config, log)
    for name, place in places.items():
        if name in wanted:
            setattr(networks, name, _LOADERS[name](place, device))
    return networks
