"""Pictures, masks and prompts of a manifest to tensors in the cache, keyed by their contents."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regionroute.data.buckets import Window, bucket_sizes, crop_window, nearest_bucket
from regionroute.data.images import read_image, read_mask
from regionroute.diffusion.latents import mask_to_grid
from regionroute.files import settings_hash, text_hash
from train.data.cache import CacheEntry, Tensors
from train.data.dataset import StyleTokens, TrainingExample
from train.data.files import Files
from train.data.selection import PART, target_of
from train.style_encoder.images import content_of

if TYPE_CHECKING:
    from regionroute.data.manifest import EditSample, Manifest
    from regionroute.models.backbone import Backbone

PARTS = "__tensor_flatten__"  # names the tensors that a tensor subclass is made of
VALUES_PER_WEIGHT = 256  # compared to distinguish two encoders


def model_size(backbone: Backbone, sizes: set[tuple[int, int]]) -> tuple[int, int]:
    """The one size (H,W) at which the model sees all images of a run without buckets.

    Args:
        backbone: its `fit_size` and resolution decide.
        sizes: (height, width) of the images.

    Returns:
        Their own aspect where they have one, else a square.
    """
    fitted = {backbone.fit_size(*size) for size in sizes}
    return fitted.pop() if len(fitted) == 1 else backbone.fit_size(1, 1)


@dataclass(frozen=True)
class Needs:
    """What a sample needs of the cache."""

    size: tuple[int, int]
    context: CacheEntry
    target: CacheEntry
    text: CacheEntry
    masks: tuple[CacheEntry, ...]

    @property
    def entries(self) -> tuple[CacheEntry, ...]:
        """All of it."""
        return (self.context, self.target, self.text, *self.masks)


@dataclass
class Encoder:
    """Names and computes what training needs of each sample.

    Attributes:
        backbone: encodes images and prompts.
        manifest: where the files are.
        size: (H,W) at which the model sees all images; None: each in the bucket of its aspect.
        files: remembers hashes and sizes of files.
    """

    backbone: Backbone
    manifest: Manifest
    size: tuple[int, int] | None = None
    files: Files = field(default_factory=Files)

    def __post_init__(self) -> None:
        self._tokens = StyleTokens(self.backbone, self.manifest)

    def example(self, sample: EditSample, expert: int) -> TrainingExample:
        """Hashes the sample's files and finds its style tokens; nothing is encoded yet.

        Raises:
            UserError: a file is missing or damaged, or the style phrase cannot be found.
        """
        needs = self.needs(sample)
        return TrainingExample(
            id=sample.id,
            expert=expert,
            content=content_of(sample),
            token_index=self.tokens_of(sample),
            size=needs.size,
            context=needs.context.key,
            target=needs.target.key,
            text=needs.text.key,
            masks=tuple(mask.key for mask in needs.masks),
        )

    def tokens_of(self, sample: EditSample) -> tuple[tuple[int, ...], ...]:
        """For each region the positions of its style phrase.

        Raises:
            UserError: a phrase cannot be found.
        """
        return self._tokens.of(sample)

    def entries(self, samples: Iterable[EditSample]) -> Iterator[CacheEntry]:
        """What some samples need, one after another, for `Cache.fill`."""
        for sample in samples:
            yield from self.needs(sample).entries

    def needs(self, sample: EditSample) -> Needs:
        """What one sample needs.

        Raises:
            UserError: a file is missing or damaged.
        """
        path = self.manifest.path(sample.context)
        own = self.files.of(path).size
        size = self.size_of(*own)
        return Needs(
            size=size,
            context=self._picture(path, size),
            target=self._target(sample, own, size),
            text=self.prompt(sample.prompt),
            masks=tuple(
                self._mask(self.manifest.path(region.mask), own, size) for region in sample.regions
            ),
        )

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The size at which the model sees an image.

        Raises:
            UserError: one side is more than 16 times the other.
        """
        if self.size:
            return self.size
        self.backbone.fit_size(height, width)  # refuses what nobody could edit either
        sizes = bucket_sizes(self.backbone.settings.resolution, 2 * self.backbone.vae_scale)
        return nearest_bucket(height, width, sizes)

    def window_of(self, sample: EditSample) -> Window:
        """The part of a sample's images that the model sees."""
        own = self.files.of(self.manifest.path(sample.context)).size
        return crop_window(*own, self.size_of(*own))

    def prompt(self, text: str) -> CacheEntry:
        """A prompt's states."""
        length = self.backbone.settings.max_text_length
        key = settings_hash([text_hash(text), self._text_identity, length])

        def make() -> Tensors:
            states, pooled = self.backbone.encode_prompts([text])
            return {"prompt_embeds": states[0], "pooled": pooled[0]}

        return CacheEntry("texts", key, make)

    def _picture(self, path: Path, size: tuple[int, int]) -> CacheEntry:
        return self._image([path], size, lambda: read_image(path))

    def image_facts(
        self, content: str | list[str], own: tuple[int, int], size: tuple[int, int]
    ) -> list[Any]:
        """What the latents of an image are keyed by.

        Args:
            content: hash of the image, or of all files that it is made of.
            own: its size (H,W).
            size: at which the model sees it.
        """
        window = crop_window(*own, size)
        cut = [dataclasses.astuple(window)[:4]] if window.lost else []
        return [content, self._image_identity, size, *cut]

    def _image(
        self, paths: Sequence[Path], size: tuple[int, int], read: Callable[[], Tensor]
    ) -> CacheEntry:
        """The latents of the image that `read` makes of some files."""
        known = [self.files.of(path) for path in paths]
        hashes = [facts.content for facts in known]
        content = hashes[0] if len(hashes) == 1 else hashes
        key = settings_hash(self.image_facts(content, known[0].size, size))

        def make() -> Tensors:
            image = read()[None]
            seen = crop_window(image.shape[-2], image.shape[-1], size).of(image)
            return {"latents": self.backbone.encode_images(seen, size)[0]}

        return CacheEntry("images", key, make)

    def _target(
        self, sample: EditSample, own: tuple[int, int], size: tuple[int, int]
    ) -> CacheEntry:
        path = self.manifest.path(sample.target)
        if self.files.of(path).size != own:
            self.manifest.target(sample)  # says what is wrong
        if PART not in sample.provenance:
            return self._picture(path, size)
        files = [sample.target, sample.context, *(region.mask for region in sample.regions)]
        paths = [self.manifest.path(file) for file in files]
        return self._image(paths, size, lambda: target_of(self.manifest, sample))

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens."""
        cells = 2 * self.backbone.vae_scale
        return size[0] // cells, size[1] // cells

    def mask_facts(self, content: str, own: tuple[int, int], size: tuple[int, int]) -> list[Any]:
        """What a mask on both grids is keyed by; arguments as for `image_facts`."""
        window = crop_window(*own, size)
        cut = [dataclasses.astuple(window)[:4]] if window.lost else []
        # The size a mask must have is part of what it is: with another image it may be wrong.
        return [content, own, *self._grid(size), *cut]

    def _mask(self, path: Path, own: tuple[int, int], size: tuple[int, int]) -> CacheEntry:
        """A mask on both grids: of tokens, and of latents with twice the rows and columns."""
        height, width = self._grid(size)
        window = crop_window(*own, size)
        key = settings_hash(self.mask_facts(self.files.of(path).content, own, size))

        def make() -> Tensors:
            seen = window.of(read_mask(path, own))
            return {
                "tokens": mask_to_grid(seen, height, width),
                "latents": mask_to_grid(seen, 2 * height, 2 * width),
            }

        return CacheEntry("masks", key, make)

    @cached_property
    def _image_identity(self) -> str:
        return identity(self.backbone.vae)

    @cached_property
    def _text_identity(self) -> list[str]:
        words: list[Any] = []
        for tokenizer in self.backbone.tokenizers():
            words.append(tokenizer.get_vocab())
            if tokenizer.chat_template:
                words.append(tokenizer.chat_template)
        networks = self.backbone.text_encoders()
        return [text_hash(json.dumps(words, sort_keys=True)), *map(identity, networks)]


@torch.no_grad()
def identity(network: nn.Module) -> str:
    """Hash of a network's weights: names, types, shapes and a regular sample of the values.

    A base's fingerprint says which experts fit; two bases trained apart share it, but their
    encoders give different latents.
    """
    digest = hashlib.sha256(_settings(network).encode())
    # Weights in fewer bits may be kept out of the state, and so out of checkpoints.
    buffers = {n: b for n, b in network.named_buffers() if hasattr(b, PARTS)}
    for name, weight in {**network.state_dict(), **buffers}.items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        for part in _stored(weight):
            stride = max(1, part.numel() // VALUES_PER_WEIGHT)
            values = part.reshape(-1)[::stride].to("cpu", torch.float32)
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def _stored(weight: Any) -> list[Tensor]:
    """A weight itself, or what one in fewer bits is made of."""
    if not hasattr(weight, PARTS):
        return [weight]
    return [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]


def _settings(network: Any) -> str:
    """A diffusers or transformers configuration without where and by what it was saved."""
    config = network.config
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {k: v for k, v in values.items() if k[0] != "_" and k != "transformers_version"}
    return json.dumps(kept, default=str, sort_keys=True)


def release_encoders(backbone: Backbone, *, keep_vae: bool, previews: bool = True) -> None:
    """Lets go of the text encoders, and of the autoencoder unless it is needed later.

    Args:
        backbone: its encoders become empty modules.
        keep_vae: for previews and perceptual losses, which decode.
        previews: encodes the empty prompt before, which guided previews ask for.
    """
    if previews:
        backbone.negative(backbone.settings.guidance)
    empty = nn.Module()
    backbone.text_encoder = backbone.text_encoder_2 = empty
    if not keep_vae:
        backbone.vae = empty
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
