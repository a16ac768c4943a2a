"""Networks in addition to the diffusion model: semantic encoders, depth, Segment Anything."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pseudo_labels.stylegallery.models.base import RANDOM
from pseudo_labels.stylegallery.models.loading import source_hash
from regionroute.data.images import to_pil
from regionroute.errors import UserError
from regionroute.files import is_hub_id, text_hash
from regionroute.hub_names import commit_of_model, split_revision, used_name
from regionroute.models.embedded import PHOTOS
from regionroute.pretrained import load_pretrained

DINO = "facebook/dinov2-base"
SIDE = 256  # pixels, of images that nano-photos encodes; its cells are 8 pixels wide
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TOKENS = 16  # per side
_SAM = {  # of the published code
    "points_per_side": 16,
    "pred_iou_thresh": 0.98,
    "stability_score_thresh": 0.95,
    "min_mask_region_area": 1000,
}


class SemanticEncoder:
    """DINOv2's patch tokens of the whole image.

    Args:
        name: folder or hub id of a Dinov2 model, or "random".
        device: where it runs.

    Attributes:
        fingerprint: changes with the weights.
        name: folder or hub id, with the commit that was loaded.

    Raises:
        UserError: it cannot be loaded, or is another model.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == RANDOM:
            self.model = _random_dino()
        else:
            self.model = _load(name, "--dino", "AutoModel", "a DINOv2")[0]
        if not self.model.config.model_type.startswith("dinov2"):
            kind = self.model.config.model_type
            raise UserError(f"--dino {name}: this is a {kind}, give a DINOv2 such as {DINO}")
        self.model.to(device)
        self.device = device
        self.fingerprint = source_hash(name)
        self.name = used_name(name, commit_of_model(self.model))

    @torch.no_grad()
    def tokens(self, image: Tensor) -> Tensor:
        """Tokens [C, 16, 16] of an image [3, H, W] in [0, 1].

        The image is resized to a square, not cropped, so that tokens and masks cover the same
        area (the published code crops the image of the tokens but not the masks).
        """
        side = _TOKENS * self.model.config.patch_size
        small = F.interpolate(image[None], (side, side), mode="bicubic", antialias=True)
        mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
        pixels = ((small.clamp(0, 1) - mean) / std).to(self.device)
        states = self.model(pixel_values=pixels).last_hidden_state[0].float().cpu()
        return states[-(_TOKENS**2) :].T.unflatten(1, (_TOKENS, _TOKENS)).contiguous()


class WordAlignedEncoder:
    """The image encoder of nano-photos, whose features are aligned with words.

    Attributes:
        fingerprint: changes with the weights.
        name: of the base.
    """

    name = PHOTOS

    def __init__(self) -> None:
        self.fingerprint = source_hash(PHOTOS)

    def tokens(self, image: Tensor) -> Tensor:
        """Features [C, 32, 32] of an image [3, H, W] in [0, 1], resized to a square."""
        return encoded(image)


def semantic_encoder(
    name: str, device: torch.device
) -> SemanticEncoder | WordAlignedEncoder | None:
    """DINOv2, or the image encoder of nano-photos by that name; None for "none"."""
    if name == "none":
        return None
    return WordAlignedEncoder() if name == PHOTOS else SemanticEncoder(name, device)


@torch.no_grad()
def encoded(image: Tensor) -> Tensor:
    """Word-aligned features [C, 32, 32] of an image [3, H, W] in [0, 1], resized to a square."""
    found: Tensor = _image_encoder()(image[None] * 2 - 1, (SIDE, SIDE))[0]
    return found[:-1]  # without the objectness


@functools.cache
def _image_encoder() -> Any:
    """The default base's image encoder, loaded once."""
    from regionroute.models.loading import load_base

    return load_base(PHOTOS).vae.image_encoder


class DepthEstimator:
    """Depth Anything, or another depth estimator of transformers.

    Args:
        name: folder or hub id.
        device: where it runs.

    Attributes:
        fingerprint: changes with the weights.
        name: folder or hub id, with the commit that was loaded.

    Raises:
        UserError: it cannot be loaded.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        from transformers import AutoImageProcessor

        self.model, self.processor = _load(
            name, "--depth", "AutoModelForDepthEstimation", "a depth estimator", AutoImageProcessor
        )
        self.model.to(device)
        self.fingerprint = source_hash(name)
        self.name = used_name(name, commit_of_model(self.model))

    @torch.no_grad()
    def depth(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Relative depth [h, w] of an image [3, H, W] in [0, 1], from 0 to 1; constant: all 0."""
        inputs = self.processor(images=to_pil(image), return_tensors="pt").to(self.model.device)
        found = self.model(**inputs).predicted_depth[:, None].float()
        small = F.interpolate(found, size, mode="nearest")[0, 0].cpu()
        span = small.max() - small.min()
        return (small - small.min()) / span if span > 0 else torch.zeros_like(small)


class MaskGenerator:
    """Automatic masks of Segment Anything.

    Args:
        checkpoint: file of the segment-anything package's weights.
        device: where it runs.

    Attributes:
        fingerprint: changes with the weights.

    Raises:
        UserError: no such file, damaged, or the package is not installed.
    """

    def __init__(self, checkpoint: str, device: torch.device) -> None:
        try:
            from segment_anything import SamAutomaticMaskGenerator, sam_model_registry
        except ImportError as error:
            raise UserError(
                "clusters.source=sam needs segment-anything: pip install segment-anything "
                "opencv-python-headless"
            ) from error
        path = Path(checkpoint).expanduser()
        if not path.is_file():
            raise UserError(f"--sam {checkpoint}: no such file, give a checkpoint (.pth) of SAM")
        try:
            weights = torch.load(path, map_location="cpu", weights_only=True)
            width = weights["image_encoder.pos_embed"].shape[-1]
            kind = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}[width]
            model = sam_model_registry[kind]()
            model.load_state_dict(weights)
        except Exception as error:  # unpickling may raise anything
            raise UserError(
                f"--sam {checkpoint}: this is no checkpoint of SAM, or it is damaged"
            ) from error
        self._generator = SamAutomaticMaskGenerator(model.eval().to(device), **_SAM)
        self.fingerprint = source_hash(checkpoint)

    def masks(self, image: Tensor) -> Tensor:
        """Masks [n, H, W] in {0, 1} of an image [3, H, W] in [0, 1]; they may overlap."""
        found = self._generator.generate(np.asarray(to_pil(image)))
        if not found:
            return torch.zeros(0, *image.shape[-2:])
        return torch.stack([torch.from_numpy(item["segmentation"]).float() for item in found])


def _load(name: str, option: str, auto_class: str, what: str, *parts: Any) -> list[Any]:
    """A frozen network of transformers and what belongs to it."""
    import transformers

    if not Path(name).is_dir() and (Path(name).exists() or not is_hub_id(split_revision(name)[0])):
        raise UserError(f"{option} {name}: no such folder; give one, or a hub id such as {DINO}")
    kind = getattr(transformers, auto_class)
    model, *others = load_pretrained(f"{option} {name}", name, what, kind, parts)
    return [model.eval().requires_grad_(False), *others]


def _random_dino() -> Any:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=64,
        patch_size=4,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(text_hash("dinov2")[:8], 16))
        return Dinov2Model(config).eval().requires_grad_(False)
