"""The style of an edit: an expert by name, a blend of experts, or a style reference image."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from regionroute.adapters import ExpertRegistry, RouteContext, blend_route, parse_blend
from regionroute.adapters.files.style_embeddings import StyleEmbeddings, load_style_embeddings
from regionroute.data.prompts import REFERENCE
from regionroute.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from regionroute.adapters.style_encoder import StyleEncoder


@dataclass(frozen=True, eq=False)
class ResolvedStyle:
    """A requested style, resolved to prompt words and experts.

    Attributes:
        name: the style as the user wrote it.
        words: the words used in prompts.
        blend: weights of experts by style name; None: no expert.
        image: the style reference image, [3,H,W] in [0,1].
        embedding: input of a learned router, [Ds]; None without one, and for a reference image
            until `Styles.embed`.
        nearest: the trained style most similar to the reference image, and the cosine.
    """

    name: str
    words: str
    blend: Mapping[str, float] | None = None
    image: Tensor | None = None
    embedding: Tensor | None = None
    nearest: tuple[str, float] | None = None

    @property
    def blended(self) -> bool:
        """Whether it mixes several styles, or uses one at another weight than 1."""
        return self.blend is not None and list(self.blend.values()) != [1.0]

    def without_experts(self) -> ResolvedStyle:
        """The same words for the base alone."""
        return dataclasses.replace(self, blend=None, image=None, embedding=None)


@dataclass
class Styles:
    """The styles that a base and its experts offer.

    Attributes:
        registry: of the loaded experts; None: the base alone, which takes any words as a style.
        folder: of the experts.
        device: of the model.
    """

    registry: ExpertRegistry | None = None
    folder: str | PathLike[str] = ""
    device: torch.device | str = "cpu"

    @property
    def by_example(self) -> bool:
        """Whether experts are chosen by a style embedding."""
        return self.registry is not None and self.registry.learned

    @cached_property
    def embeddings(self) -> StyleEmbeddings:
        """Embeddings of the trained styles, for experts that are chosen by embedding.

        Raises:
            UserError: their file is missing or damaged.
        """
        assert self.registry is not None
        assert self.registry.router is not None
        width = self.registry.router.style_dim
        assert width is not None
        return load_style_embeddings(self.folder, width)

    @cached_property
    def encoder(self) -> StyleEncoder:
        """Encoder of style reference images.

        Raises:
            UserError: it is missing or damaged.
        """
        from regionroute.adapters import style_encoder  # imports transformers' vision models
        from regionroute.pretrained import quiet

        with quiet():
            return style_encoder.load_style_encoder(
                Path(self.folder) / style_encoder.FOLDER, self.device
            )

    def to(self, device: torch.device | str) -> None:
        """Use another device."""
        self.device = device
        if "encoder" in self.__dict__:  # loaded already
            self.encoder.to(device)

    def resolve(self, style: str, image: Tensor | None = None) -> ResolvedStyle:
        """Find the words and experts of a style.

        Args:
            style: a name, a phrase, or a blend such as "0.6 pixel-art + 0.4 line-art"; with a
                reference image only a label.
            image: a style reference image [3,H,W] in [0,1].

        Raises:
            UserError: an unknown style (names the nearest), or a reference image for experts that
                are chosen by name.
        """
        if image is not None:
            if not self.by_example:
                raise UserError(
                    "these experts are chosen by the name of a style: for a style image load "
                    "experts that were trained with experts.router=similarity"
                )
            return ResolvedStyle(style.strip() or REFERENCE, REFERENCE, image=image)
        if self.registry is None or not style.strip():
            return ResolvedStyle(style, style)
        if self.by_example:
            weights = parse_blend(style, self.embeddings.name)
            name, blend = _label(style, weights), self.embeddings.blend(weights)
            return ResolvedStyle(name, REFERENCE, embedding=blend)
        registry = self.registry
        weights = parse_blend(style, registry.name)
        words = " and ".join(registry.styles[registry.index(name)].words for name in weights)
        return ResolvedStyle(_label(style, weights), words, blend=weights)

    def embed(self, style: ResolvedStyle) -> ResolvedStyle:
        """Add the embedding of the reference image, if there is one."""
        if style.image is None:
            return style
        embedding = self.encoder.embed(style.image).cpu()
        nearest = self.embeddings.nearest(embedding)
        return dataclasses.replace(style, embedding=embedding, nearest=nearest)

    def route(self, styles: Sequence[ResolvedStyle]) -> RouteContext | None:
        """The routing context of a batch with one style per row; None without experts."""
        if self.registry is None:
            return None
        embeddings = [style.embedding for style in styles if style.embedding is not None]
        if len(embeddings) == len(styles):
            return RouteContext(style_emb=torch.stack(embeddings).to(self.device))
        return blend_route([style.blend for style in styles], self.registry, self.device)


def _label(style: str, weights: Mapping[str, float]) -> str:
    """The registered name of a single style; a blend as the user wrote it."""
    return next(iter(weights)) if list(weights.values()) == [1.0] else " ".join(style.split())
