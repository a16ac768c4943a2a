"""The pipeline: features, regions, matches, energy, image. Every stage is cached and resumable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pseudo_labels.compose import composite
from pseudo_labels.stylegallery.cache import StageCache, tensor_hash
from pseudo_labels.stylegallery.clusters import find_regions, to_grid
from pseudo_labels.stylegallery.config import GalleryConfig
from pseudo_labels.stylegallery.energy import AttentionEnergy, ReferenceBank
from pseudo_labels.stylegallery.features import DiffusionFeatures, ImageFeatures
from pseudo_labels.stylegallery.matching import Match, RegionMatcher, RegionSet
from pseudo_labels.stylegallery.models.base import GalleryModel
from pseudo_labels.stylegallery.networks import (
    DepthEstimator,
    MaskGenerator,
    SemanticEncoder,
    WordAlignedEncoder,
)
from pseudo_labels.stylegallery.optimise import (
    OptimState,
    energy_timesteps,
    first_latents,
    guide,
    guided_timesteps,
    minimise,
)
from regionroute.errors import UserError

REVISION = 1  # raise when equal settings would give another result
Choice = tuple[int, int | None]


@dataclass(frozen=True)
class AnalysedImage:
    """An image and what the stages found in it.

    Attributes:
        name: its name in messages.
        image: [3, S, S] in [0, 1] at the working size.
        features: its features and latents.
        labels: regions [h, w] from 1.
        tokens: semantic tokens, or None.
        key: hash of the working image.
        region: label of the user's region, None without one.
    """

    name: str
    image: Tensor
    features: ImageFeatures
    labels: Tensor
    tokens: Tensor | None
    key: str
    region: int | None = None

    @property
    def set(self) -> RegionSet:
        """Its part in matching."""
        return RegionSet(self.features.mix, self.labels, self.tokens)


@dataclass(frozen=True)
class GalleryResult:
    """A restyled image and how it was made.

    Attributes:
        image: [3, H, W] in [0, 1], of the content's own size.
        content: the content image.
        references: the reference images.
        matches: the match of every content region.
        styled: labels of the regions that were restyled.
        losses: [evaluations, 3] of (total, style, content).
    """

    image: Tensor
    content: AnalysedImage
    references: list[AnalysedImage]
    matches: list[Match]
    styled: list[int]
    losses: list[list[float]] = field(default_factory=list)


class Gallery:
    """StyleGallery with its networks.

    Args:
        model: the diffusion model.
        config: all settings.
        semantic: DINOv2 or the image encoder of nano-photos, None to match without it.
        depth: depth estimator; regions that reach from near to far are split. None: no splits.
        masks: Segment Anything, required with ``clusters.source=sam``.
        cache: folder of cached stages, None for no cache.
        bank: bytes of CPU memory for keys and values of the references, reused for further images.
        progress: show progress bars.

    Raises:
        UserError: settings that contradict each other.
    """

    def __init__(
        self,
        model: GalleryModel,
        config: GalleryConfig,
        *,
        semantic: SemanticEncoder | WordAlignedEncoder | None = None,
        depth: DepthEstimator | None = None,
        masks: MaskGenerator | None = None,
        cache: Path | None = None,
        bank: int = 0,
        progress: bool = True,
    ) -> None:
        if config.clusters.source == "sam" and masks is None:
            raise UserError("clusters.source=sam needs --sam FILE, a checkpoint")
        self.side = config.size or min(512, model.resolution)
        if self.side % model.factor:
            raise UserError(f"size is {self.side}: this model takes multiples of {model.factor}")
        weights = config.matching
        if semantic is None and weights.statistical + weights.geometric == 0:
            raise UserError(
                "only the semantic weight of matching is not 0, and it needs DINOv2: give --dino"
            )
        self.model, self.config = model, config
        self.semantic, self.depth, self.masks = semantic, depth, masks
        self.features = DiffusionFeatures(model, config.features, progress)
        self.cache = StageCache(cache)
        self.bank = ReferenceBank(bank) if bank else None
        self.matcher = RegionMatcher(config.matching)
        self._progress = progress

    def analyse(self, name: str, image: Tensor, region: Tensor | None = None) -> AnalysedImage:
        """Features and regions of an image.

        Args:
            name: its name in messages.
            image: [3, H, W] in [0, 1], resized to the working square.
            region: [1, H, W] in {0, 1}, treated as one region; None for none.

        Raises:
            UserError: the region is empty.
        """
        side = (self.side, self.side)
        small = F.interpolate(image[None], side, mode="bicubic", antialias=True)[0].clamp(0, 1)
        key = tensor_hash(small)
        features = self._features(small, key)
        grid = (features.latent.shape[-2], features.latent.shape[-1])
        user = None if region is None else to_grid(region, grid)
        if user is not None and not user.any():
            raise UserError(f"{name}: the region's mask is empty, give one with white pixels")
        labels = self._labels(small, key, features, user)
        found = None if user is None else int(labels[user > 0][0])
        return AnalysedImage(name, small, features, labels, self._tokens(small, key), key, found)

    def restyle(
        self,
        image: Tensor,
        references: Sequence[AnalysedImage],
        *,
        name: str = "content",
        region: Tensor | None = None,
        only_region: bool = False,
        chosen: Mapping[int | None, Choice] | None = None,
    ) -> GalleryResult:
        """Restyle an image.

        Args:
            image: [3, H, W] in [0, 1].
            references: results of `analyse`, at least one.
            name: name of the image in messages.
            region: [1, H, W] in {0, 1}, treated as one region.
            only_region: restyle this region only; elsewhere the result is the image, bit for bit.
            chosen: manual matches {label (None: the region's): (reference, label or None)}.

        Raises:
            UserError: a choice names a missing region, or the model does not support the
                settings.
        """
        if only_region and region is None:
            raise UserError("only_region needs a region: give --region")
        content = self.analyse(name, image, region)
        picked = picked_matches(chosen or {}, content, references)
        matches = self.matcher.match(content.set, [item.set for item in references], picked)
        styled = [content.region] if only_region and content.region else None
        state = self._optimised(content, references, matches, styled)
        made = self.model.decode(state.latents)
        size = (image.shape[-2], image.shape[-1])
        made = F.interpolate(made[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
        if only_region and region is not None:
            made = composite(image, made, region)
        labels = styled or list(range(1, int(content.labels.max()) + 1))
        return GalleryResult(made, content, list(references), matches, labels, state.losses)

    def _features(self, image: Tensor, key: str) -> ImageFeatures:
        def make() -> dict[str, Tensor]:
            found = self.features.describe(image)
            return {"mix": found.mix, "latent": found.latent, "inverted": found.inverted}

        facts = [REVISION, key, self.features.fingerprint]
        return ImageFeatures(**self.cache.make("features", facts, make))

    def _labels(
        self, image: Tensor, key: str, features: ImageFeatures, user: Tensor | None
    ) -> Tensor:
        config = self.config.clusters
        grid = (features.latent.shape[-2], features.latent.shape[-1])

        def make() -> dict[str, Tensor]:
            sam = config.source == "sam" and self.masks is not None
            found = find_regions(
                features.mix,
                features.latent,
                config,
                seed=self.config.seed,
                depth=self.depth.depth(image, grid) if self.depth and not sam else None,
                masks=self.masks.masks(image) if sam and self.masks else None,
                user=user,
            )
            return {"labels": found}

        networks = [item and item.fingerprint for item in (self.depth, self.masks)]
        given = None if user is None else tensor_hash(user)
        source = [key, self.features.fingerprint, config, self.config.seed]
        facts = [REVISION, *source, networks, given]
        return self.cache.make("regions", facts, make)["labels"]

    def _tokens(self, image: Tensor, key: str) -> Tensor | None:
        if self.semantic is None:
            return None
        encoder = self.semantic
        facts = [REVISION, key, encoder.fingerprint]
        return self.cache.make("tokens", facts, lambda: {"tokens": encoder.tokens(image)})["tokens"]

    def _optimised(
        self,
        content: AnalysedImage,
        references: Sequence[AnalysedImage],
        matches: list[Match],
        styled: list[int] | None,
    ) -> OptimState:
        """The final latents: cached, resumed or computed."""
        pictures = [content, *references]
        facts = [
            REVISION,
            self.model.fingerprint,
            self.features.fingerprint,
            self.config.energy,
            [[item.key, tensor_hash(item.labels)] for item in pictures],
            [[match.region, match.reference, match.cluster] for match in matches],
            styled,
        ]
        device = self.model.device
        done = self.cache.read("result", facts)
        if done is not None:
            return OptimState.restored(done, device)
        latents = [item.features.latent[None].to(device) for item in pictures]
        kept = self.cache.read("progress", facts)
        if kept is None:
            inverted = content.features.inverted[None].to(device)
            start = self.config.energy.start
            state = OptimState(first_latents(inverted, latents[0], start))
        else:
            state = OptimState.restored(kept, device)
        with self.model.working():
            state = self._run(pictures, latents, (matches, styled), state, facts)
        self.cache.write("result", facts, state.tensors())
        self.cache.remove("progress", facts)
        return state

    def _run(
        self,
        pictures: Sequence[AnalysedImage],
        latents: list[Tensor],
        chosen: tuple[list[Match], list[int] | None],
        state: OptimState,
        facts: Any,
    ) -> OptimState:
        model, config = self.model, self.config.energy
        matches, styled = chosen
        # In guided mode the noise of a reference depends on its position.
        names = [(p.key, place * (config.mode == "guided")) for place, p in enumerate(pictures[1:])]
        try:
            energy = AttentionEnergy(
                model,
                latents[0],
                torch.cat(latents[1:]),
                (matches, pictures[0].labels, [item.labels for item in pictures[1:]]),
                config,
                styled=styled,
                bank=self.bank,
                names=names,
            )
            timesteps = self._timesteps()
        except ValueError as error:
            raise UserError(f"energy: {error}; choose fewer") from error

        def save(made: OptimState) -> None:
            self.cache.write("progress", facts, made.tensors())

        if config.mode == "optimize":
            return minimise(energy, state, timesteps, save, self._progress)
        generator = torch.Generator().manual_seed(config.seed)
        shape = (len(latents), *latents[0].shape[1:])
        noise = torch.randn(shape, generator=generator).to(model.device)
        clean = (latents[0], torch.cat(latents[1:]))
        return guide(energy, state, timesteps, clean, noise, save, self._progress)

    def _timesteps(self) -> list[int]:
        config = self.config.energy
        if config.mode == "guided":
            return guided_timesteps(self.features.last_timestep, config.steps)
        return energy_timesteps(config, self.model.training_steps, self.model.offset)


def picked_matches(
    chosen: Mapping[int | None, Choice], content: AnalysedImage, references: Sequence[AnalysedImage]
) -> dict[int, Choice]:
    """Manual matches, checked."""
    picked: dict[int, Choice] = {}
    most = int(content.labels.max())
    for label, (reference, cluster) in chosen.items():
        if label is None and content.region is None:
            raise UserError("--match region=...: there is no region of your own, give --region")
        place = content.region if label is None else label
        if place is None or not 1 <= place <= most:
            raise UserError(f"--match {label}=...: {content.name} has regions 1 to {most}")
        picture = references[reference]
        last = int(picture.labels.max())
        if cluster is not None and not 1 <= cluster <= last:
            raise UserError(
                f"--match {place}={picture.name}:{cluster}: {picture.name} has regions 1 to {last}"
            )
        picked[place] = (reference, cluster)
    return picked
