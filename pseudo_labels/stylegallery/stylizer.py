"""StyleGallery as a stylizer of styles files, and its regions as a segmenter.

styles:
  gallery-monet:
    phrase: Monet's garden
    stylizer: gallery
    settings: {references: refs, model: FOLDER_OF_STABLE_DIFFUSION_1.5, dino: FOLDER_OF_DINOV2}
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from pseudo_labels.segment import Box
from pseudo_labels.stylegallery import networks
from pseudo_labels.stylegallery.config import PRESETS, GalleryConfig
from pseudo_labels.stylegallery.gallery import REVISION, Gallery, Picture
from pseudo_labels.stylegallery.model import DEFAULT, DTYPES, RANDOM, load_model, source_hash
from regionroute.config.io import load_config
from regionroute.data.images import read_image
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError, nearest
from regionroute.files import file_hash, settings_hash
from regionroute.models.devices import pick_device

CACHE = "runs/gallery"
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class AttentionEnergyStylizer:
    """Restyles pictures after reference pictures, region by region.

    Args:
        references: a picture, or a folder of pictures.
        model: Stable Diffusion 1.5: folder, hub id, or "random" to try the plumbing.
        dino: DINOv2: folder, hub id, "random", or "none" to match without it.
        depth: a depth estimator of transformers, by folder or hub id; None: none.
        sam: checkpoint of Segment Anything, for ``clusters.source=sam``.
        lora: LoRA file that makes the model fast, with preset "lcm" or "hyper-sd".
        preset: step sizes: full, pairs (of steps at a timestep), lcm or hyper-sd.
        config: YAML file of settings.
        overrides: settings that win over preset and file, such as ["energy.steps=50"].
        only_region: restyle the object alone; its mask is a region of its own.
        cache: folder where stages are kept; None: nowhere.
        memory: GiB of main memory for what references give at each step; it makes further photos
            with the same references faster.
        dtype: of the UNet; None: bfloat16 on a GPU, else float32.
        device: where it runs; None: cuda where there is one.
        offload: keep in main memory what is not at work; for GPUs of 8 GB.
        progress: whether to show bars.

    Attributes:
        remarks: which networks have random weights, if any: for every sample's provenance.

    Raises:
        UserError: settings that do not go together, or files that are not there.
    """

    remarks: dict[str, Any]

    def __init__(
        self,
        references: str,
        *,
        model: str = DEFAULT,
        dino: str = networks.DINO,
        depth: str | None = None,
        sam: str | None = None,
        lora: str | None = None,
        preset: str = "full",
        config: str | None = None,
        overrides: list[str] | None = None,
        only_region: bool = False,
        cache: str | None = CACHE,
        memory: float = 0.0,
        dtype: str | None = None,
        device: str | None = None,
        offload: bool = False,
        progress: bool = False,
    ) -> None:
        if preset not in PRESETS:
            raise UserError(f"preset {preset}: did you mean {nearest(preset, PRESETS)}?")
        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"dtype {dtype}: did you mean {nearest(dtype, DTYPES)}?")
        if memory < 0:
            raise UserError(f"memory is {memory}: give 0 or more GiB")
        self.files = find_references(references)
        self.config = load_config(config, [*PRESETS[preset], *(overrides or [])], GalleryConfig)
        self._names = {"model": model, "dino": dino, "depth": depth, "sam": sam, "lora": lora}
        self._only_region, self._cache, self._memory = only_region, cache, memory
        self._dtype, self._device, self._offload = dtype, device, offload
        self._progress = progress
        self._gallery: Gallery | None = None
        self._pictures: list[Picture] = []
        self.needs: frozenset[str] = frozenset({"mask"}) if only_region else frozenset()
        random = [name for name, source in self._names.items() if source == RANDOM]
        self.remarks = {"random_weights": random} if random else {}
        sources = {name: source and source_hash(source) for name, source in self._names.items()}
        hashes = [file_hash(file) for file in self.files]
        facts = [REVISION, sources, hashes, self.config, only_region, dtype]
        self.fingerprint = f"gallery {settings_hash(facts)}"

    def load(self) -> None:
        """Load the networks and look at the references.

        Raises:
            UserError: one of them cannot be used.
        """
        if self._gallery is not None:
            return
        device = pick_device(self._device)
        usual = "bfloat16" if device.type == "cuda" else "float32"
        names = self._names
        dino, depth, sam = names["dino"], names["depth"], names["sam"]
        gallery = Gallery(
            load_model(
                names["model"] or DEFAULT,
                dtype=self._dtype or usual,
                device=device,
                offload=self._offload,
                lora=names["lora"],
            ),
            self.config,
            semantic=networks.SemanticEncoder(dino, device) if dino and dino != "none" else None,
            depth=networks.DepthEstimator(depth, device) if depth else None,
            masks=networks.MaskGenerator(sam, device) if sam else None,
            cache=Path(self._cache) if self._cache else None,
            bank=int(self._memory * 2**30),
            progress=self._progress,
        )
        self._pictures = [gallery.look(file.stem, read_image(file)) for file in self.files]
        self._gallery = gallery

    @property
    def gallery(self) -> Gallery:
        """The networks, loaded when first asked for."""
        self.load()
        assert self._gallery is not None
        return self._gallery

    @property
    def pictures(self) -> list[Picture]:
        """The references, looked at when first asked for."""
        self.load()
        return self._pictures

    def stylize(
        self,
        content: Tensor,
        style: StyleSpec,
        *,
        mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """See `Stylizer.stylize`; the seeds are those of the settings.

        Raises:
            UserError: ``only_region`` without a mask.
        """
        if content.ndim == 4:
            masks = [None] * len(content) if mask is None else list(mask)
            return torch.stack(
                [self.stylize(c, style, mask=m) for c, m in zip(content, masks, strict=True)]
            )
        region = mask if self._only_region else None
        result = self.gallery.restyle(
            content, self.pictures, region=region, only_region=self._only_region
        )
        return result.image


class DiffusionClusterSegmenter:
    """Cuts objects out of boxes by clusters of features: a `BoxSegmenter` without training.

    Args:
        gallery: with the source of features and the settings of clusters.
    """

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self.name = f"clusters {gallery.source.fingerprint}"

    def regions(self, image: Tensor) -> Tensor:
        """Labels [1, H, W] from 1 of a picture [3, H, W] in [0, 1]."""
        labels = self._gallery.look("picture", image).labels
        size = (image.shape[-2], image.shape[-1])
        large = torch.nn.functional.interpolate(labels[None, None].double(), size, mode="nearest")
        return large[0].long()

    def segment(self, image: Tensor, boxes: Sequence[Box]) -> list[tuple[Tensor, float]]:
        """Masks of boxes (y0, x0, y1, x1) of a picture [3, H, W] in [0, 1].

        A region belongs to a box if more of it lies inside than outside; if none does, the one
        that fills most of the box.

        Returns:
            For each box a mask [1, H, W] in {0, 1} within it, and as score the share of the taken
            regions that is inside the box.
        """
        if not boxes:
            return []
        labels = self.regions(image)
        counts = labels.flatten().bincount()
        found = []
        for y0, x0, y1, x1 in boxes:
            window = torch.zeros_like(labels)
            window[:, y0:y1, x0:x1] = 1
            inside = (labels * window).flatten().bincount(minlength=len(counts))
            inside[0] = 0  # cells outside the window
            taken = (2 * inside > counts).nonzero()[:, 0]
            taken = taken if len(taken) else inside.argmax()[None]
            mask = (torch.isin(labels, taken) & (window > 0)).float()
            score = float(inside[taken].sum() / counts[taken].sum().clamp(min=1))
            found.append((mask, score))
        return found


def find_references(source: str) -> list[Path]:
    """A picture, or the pictures directly in a folder, sorted by name.

    Raises:
        UserError: nothing is there, or two have one name (they are called by it).
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{source}: no such reference picture or folder, check the path")
    if path.is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURES)
    if not files:
        raise UserError(f"{source}: no pictures in this folder of references")
    stems = [file.stem for file in files]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise UserError(f"{source}: two references are called '{twice}', rename one")
    return files
