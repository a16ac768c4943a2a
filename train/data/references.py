"""Example images in training: each pair gets one of its style, which shows something else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from regionroute.adapters.files.style_embeddings import StyleEmbeddings
from regionroute.adapters.style_encoder import (
    FOLDER,
    StyleEncoder,
    copy_style_encoder,
    encoder_identity,
    load_style_encoder,
)
from regionroute.config.run import ExpertsConfig
from regionroute.data.manifest import EditSample
from regionroute.data.prompts import REFERENCE, Prompt, find_spans, with_style
from regionroute.errors import UserError
from regionroute.files import file_hash, settings_hash, text_hash
from regionroute.models.source import resolve
from train.data.cache import Cache, CacheEntry, Tensors
from train.style_encoder.images import StylePicture, only_styles, read_style_pictures


def without_style_words(sample: EditSample) -> EditSample:
    """The sample with "reference" where its prompt named styles: there an image shows them.

    Raises:
        UserError: a style or an object is not found in the prompt.
    """
    spans = [
        (region.object_span, region.style_span)
        if region.object_span and region.style_span
        else find_spans(sample.prompt, region.object, region.style)
        for region in sample.regions
    ]
    objects, styles = zip(*spans, strict=True)
    prompt = with_style(Prompt(sample.prompt, objects, styles), REFERENCE)
    regions = tuple(
        replace(region, object_span=o, style_span=s)
        for region, o, s in zip(
            sample.regions, prompt.object_spans, prompt.style_spans, strict=True
        )
    )
    return replace(sample, prompt=prompt.text, regions=regions)


@dataclass
class References:
    """The example images of a run, and the encoder that makes embeddings of them.

    Attributes:
        encoder: folder of the style encoder.
        pictures: of the trained styles.
        styles: names, in the order of `TrainingExample.expert`.
        cache: of embeddings.
        device: where the encoder runs.
    """

    encoder: Path
    pictures: Sequence[StylePicture]
    styles: Sequence[str]
    cache: Cache
    device: torch.device | str = "cpu"

    def entries(self) -> list[CacheEntry]:
        """What `Cache.fill` has to provide."""
        return [
            CacheEntry("styles", key, self._maker(picture))
            for key, picture in zip(self.keys, self.pictures, strict=True)
        ]

    @cached_property
    def keys(self) -> list[str]:
        """Cache keys of the images."""
        identity = encoder_identity(self.encoder)
        hashes = {path: file_hash(path) for path in {p.path for p in self.pictures}}
        return [settings_hash([hashes[p.path], p.box, identity]) for p in self.pictures]

    def _maker(self, picture: StylePicture) -> Callable[[], Tensors]:
        def make() -> Tensors:
            return {"embedding": self._network.embed(picture.read()).cpu()}

        return make

    @cached_property
    def _network(self) -> StyleEncoder:
        return load_style_encoder(self.encoder, self.device)

    def release_encoder(self) -> None:
        """Lets go of the encoder once all embeddings are in the cache."""
        self.__dict__.pop("_network", None)

    @cached_property
    def embeddings(self) -> Tensor:
        """[P,Ds] fp32, read from the cache."""
        return torch.stack([self.cache.load("styles", key)["embedding"] for key in self.keys])

    @cached_property
    def _by_style(self) -> list[dict[str, list[int]]]:
        """For each style the positions of its images by their contents."""
        places: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for position, picture in enumerate(self.pictures):
            places[picture.style][picture.content].append(position)
        return [places[style] for style in self.styles]

    @cached_property
    def chosen(self) -> dict[str, int]:
        """Sample id -> position of the image that `label --references` chose as its example.

        Empty where the images are not the manifest's own; without samples whose chosen one is not
        among the images, because it was removed from the manifest.
        """
        places = {p.sample: i for i, p in enumerate(self.pictures) if p.sample is not None}
        pairs = {p.sample: p.reference for p in self.pictures if p.sample and p.reference}
        return {sample: places[one] for sample, one in pairs.items() if one in places}

    def identity(self) -> str:
        """Hash of the images and of the choice among them: another one is another run."""
        chosen = sorted(self.chosen.items())
        return text_hash(settings_hash([self.keys, chosen] if chosen else self.keys))

    def draw(
        self, style: int, content: str, generator: torch.Generator, sample: str | None = None
    ) -> Tensor:
        """The embedding of a pair's example image.

        Args:
            style: index of the pair's style.
            content: what the pair shows.
            generator: draws the image where none was chosen.
            sample: the pair's id.

        Returns:
            [Ds], of the image that `label --references` chose for this pair; else of any in the
            style that shows something else than `content`.
        """
        if sample is not None and sample in self.chosen:
            return self.embeddings[self.chosen[sample]]
        places = self._by_style[style]
        contents = sorted(places.keys() - {content})
        shown = places[contents[_one_of(len(contents), generator)]]
        return self.embeddings[shown[_one_of(len(shown), generator)]]

    def save(self, folder: Path) -> None:
        """Puts what an edit needs next to the experts: the encoder, and the styles by name."""
        copy_style_encoder(self.encoder, folder / FOLDER)
        self.means().save(folder)

    def means(self) -> StyleEmbeddings:
        """Each style's mean embedding: the way to ask for it by name."""
        return StyleEmbeddings(
            {
                style: self.embeddings[[i for group in places.values() for i in group]].mean(0)
                for style, places in zip(self.styles, self._by_style, strict=True)
            }
        )


def _one_of(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def find_style_pictures(
    experts: ExpertsConfig, base: str, manifest: Path, split: str, styles: Sequence[str]
) -> tuple[Path, list[StylePicture]]:
    """The encoder and the example images of a run.

    Args:
        experts: style_encoder and style_pictures are read.
        base: whose folder may hold an encoder.
        manifest: whose restyled objects are the examples where there are no others.
        split: of the manifest.
        styles: that are trained.

    Returns:
        The encoder's folder, and the images of these styles.

    Raises:
        UserError: no encoder, or no images of a style.
    """
    encoder = Path(experts.style_encoder) if experts.style_encoder else _own_encoder(base)
    encoder_identity(encoder)
    source = experts.style_pictures or str(manifest)
    return encoder, only_styles(read_style_pictures(source, split), styles, source)


def _own_encoder(base: str) -> Path:
    source = resolve(base)
    if isinstance(source, Path) and (source / FOLDER).is_dir():
        return source / FOLDER
    raise UserError(
        f"experts.style_encoder: base {base} comes without one, train it with "
        "`python train/style_encoder/run.py` and give its folder"
    )
