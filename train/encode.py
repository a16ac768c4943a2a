"""Pictures, masks and prompts of a manifest to tensors in the cache, keyed by their contents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regionroute.errors import UserError
from regionroute.io import file_hash, image_size, read_image, read_mask, settings_hash, text_hash
from regionroute.latents import mask_to_grid
from regionroute.pipeline import resize
from train.cache import Entry, Tensors
from train.data import Example, StyleTokens
from train.selection import PART, target_of
from train.style_pictures import content_of

if TYPE_CHECKING:
    from regionroute.backbones.kontext import Backbone
    from regionroute.manifest import EditSample, Manifest

PARTS = "__tensor_flatten__"  # a tensor that is made of others tells which
VALUES_PER_WEIGHT = 256  # looked at to tell two encoders apart


def model_size(backbone: Backbone, sizes: set[tuple[int, int]]) -> tuple[tuple[int, int], bool]:
    """The one size (H,W) at which the model sees all pictures of a run.

    Args:
        backbone: its `fit_size` and resolution decide.
        sizes: (height, width) of the pictures.

    Returns:
        The size, and whether it distorts: pictures of one aspect keep it, of several they all
        become squares, because the samples of a batch need one shape.
    """
    fitted = {backbone.fit_size(*size) for size in sizes}
    if len(fitted) == 1:
        return fitted.pop(), False
    return backbone.fit_size(1, 1), True


@dataclass
class Encoder:
    """Names and computes what training needs of each sample.

    Attributes:
        backbone: encodes pictures and prompts.
        manifest: where the files are.
        size: (H,W) at which the model sees pictures.
        entries: what the samples seen so far need, for `Cache.fill`.
    """

    backbone: Backbone
    manifest: Manifest
    size: tuple[int, int]
    entries: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tokens = StyleTokens(self.backbone, self.manifest)
        self._hash = cache(file_hash)  # many samples share a context or a mask

    def example(self, sample: EditSample, expert: int) -> Example:
        """Hashes the sample's files and finds its style tokens; nothing is encoded yet.

        Raises:
            UserError: a file is missing or damaged, or the style phrase cannot be found.
        """
        context = self.manifest.path(sample.context)
        height_width = image_size(context)
        return Example(
            id=sample.id,
            expert=expert,
            content=content_of(sample),
            token_index=self._tokens.of(sample),
            context=self._picture(context),
            target=self._target(sample, height_width),
            text=self.prompt(sample.prompt),
            masks=tuple(
                self._mask(self.manifest.path(region.mask), height_width)
                for region in sample.regions
            ),
        )

    def prompt(self, text: str) -> str:
        """Cache key of a prompt's states, which are added to `entries`."""
        length = self.backbone.settings.max_text_length
        key = settings_hash([text_hash(text), self._text_identity, length])

        def make() -> Tensors:
            states, pooled = self.backbone.encode_prompts([text])
            return {"prompt_embeds": states[0], "pooled": pooled[0]}

        return self._add("texts", key, make)

    def _picture(self, path: Path) -> str:
        return self._image([path], lambda: read_image(path))

    def _image(self, paths: Sequence[Path], read: Callable[[], Tensor]) -> str:
        """Cache key of the latents of the picture that `read` makes of some files."""
        for path in paths:
            image_size(path)  # a missing or damaged file is named before it is hashed
        hashes = [self._hash(path) for path in paths]
        facts = hashes[0] if len(hashes) == 1 else hashes
        key = settings_hash([facts, self._image_identity, self.size])

        def make() -> Tensors:
            image = resize(read()[None], self.size)
            return {"latents": self.backbone.encode_images(image)[0]}

        return self._add("images", key, make)

    def _target(self, sample: EditSample, context_size: tuple[int, int]) -> str:
        path = self.manifest.path(sample.target)
        if image_size(path) != context_size:
            self.manifest.target(sample)  # says what is wrong
        if PART not in sample.provenance:
            return self._picture(path)
        files = [sample.target, sample.context, *(region.mask for region in sample.regions)]
        paths = [self.manifest.path(file) for file in files]
        return self._image(paths, lambda: target_of(self.manifest, sample))

    def _mask(self, path: Path, context_size: tuple[int, int]) -> str:
        """A mask on both grids: of tokens, and of latents with twice the rows and columns."""
        image_size(path)
        cells = 2 * self.backbone.vae_scale
        height, width = self.size[0] // cells, self.size[1] // cells
        # The size a mask must have is part of what it is: with another picture it may be wrong.
        key = settings_hash([self._hash(path), context_size, height, width])

        def make() -> Tensors:
            mask = read_mask(path, context_size)
            if not mask.any():
                raise UserError(f"{path}: the mask is empty, no pixel reaches 128 of 255")
            return {
                "tokens": mask_to_grid(mask, height, width),
                "latents": mask_to_grid(mask, 2 * height, 2 * width),
            }

        return self._add("masks", key, make)

    def _add(self, kind: str, key: str, make: Callable[[], Tensors]) -> str:
        self.entries.append(Entry(kind, key, make))
        return key

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


def release_encoders(backbone: Backbone, *, keep_vae: bool) -> None:
    """Lets go of the text encoders, and of the autoencoder unless previews decode with it."""
    backbone.negative(backbone.settings.guidance)  # which previews ask for
    empty = nn.Module()
    backbone.text_encoder = backbone.text_encoder_2 = empty
    if not keep_vae:
        backbone.vae = empty
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
