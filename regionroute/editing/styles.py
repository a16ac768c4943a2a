"""What an edit's style is: experts by name, a blend of them, or the style of an example picture."""

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
class Look:
    """A style, looked up.

    Attributes:
        name: what the user called it.
        words: what stands for it in prompts.
        blend: weights of experts by their styles; None: no expert.
        image: the example picture, [3,H,W] in [0,1].
        embedding: by which a learned router chooses, [Ds]; None where there is none, and for an
            example picture until `Styles.embedded`.
        nearest: the trained style most like the example, and their cosine.
    """

    name: str
    words: str
    blend: Mapping[str, float] | None = None
    image: Tensor | None = None
    embedding: Tensor | None = None
    nearest: tuple[str, float] | None = None

    @property
    def blended(self) -> bool:
        """Whether several styles, or one not at full weight, are asked for."""
        return self.blend is not None and list(self.blend.values()) != [1.0]

    def bare(self) -> Look:
        """The same words for the base alone."""
        return dataclasses.replace(self, blend=None, image=None, embedding=None)


@dataclass(frozen=True)
class Styles:
    """The styles that a base with its experts can be asked for.

    Attributes:
        registry: of the loaded experts; None: the base alone, for which any word is a style.
        folder: of the experts.
        device: the model's.
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
        """Of the trained styles, where experts are chosen by embedding.

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
        """Of example pictures.

        Raises:
            UserError: it is missing or damaged.
        """
        from regionroute.adapters import style_encoder  # loads transformers' vision models

        return style_encoder.load_style_encoder(
            Path(self.folder) / style_encoder.FOLDER, self.device
        )

    def look(self, style: str, image: Tensor | None = None) -> Look:
        """Looks a style up.

        Args:
            style: a name, a phrase, or a blend such as "0.6 pixel-art + 0.4 line-art"; of an
                example picture anything.
            image: an example picture [3,H,W] in [0,1].

        Raises:
            UserError: an unknown style (names the nearest), or an example picture for experts that
                cannot use one.
        """
        if image is not None:
            if not self.by_example:
                raise UserError(
                    "these experts are chosen by a style's name: for an example picture give "
                    "experts that were trained with experts.router=similarity"
                )
            return Look(style.strip() or REFERENCE, REFERENCE, image=image)
        if self.registry is None or not style.strip():
            return Look(style, style)
        if self.by_example:
            weights = parse_blend(style, self.embeddings.name)
            name, blend = _said(style, weights), self.embeddings.blend(weights)
            return Look(name, REFERENCE, embedding=blend)
        registry = self.registry
        weights = parse_blend(style, registry.name)
        words = " and ".join(registry.styles[registry.index(name)].words for name in weights)
        return Look(_said(style, weights), words, blend=weights)

    def embedded(self, look: Look) -> Look:
        """The look with the embedding of its example picture, if it has one."""
        if look.image is None:
            return look
        embedding = self.encoder.embed(look.image).cpu()
        nearest = self.embeddings.nearest(embedding)
        return dataclasses.replace(look, embedding=embedding, nearest=nearest)

    def route(self, looks: Sequence[Look]) -> RouteContext | None:
        """The route of a batch with one look a row; None without experts."""
        if self.registry is None:
            return None
        embeddings = [look.embedding for look in looks if look.embedding is not None]
        if len(embeddings) == len(looks):
            return RouteContext(style_emb=torch.stack(embeddings).to(self.device))
        return blend_route([look.blend for look in looks], self.registry, self.device)


def _said(style: str, weights: Mapping[str, float]) -> str:
    """A lone style by its own name, a blend as the user wrote it."""
    return next(iter(weights)) if list(weights.values()) == [1.0] else " ".join(style.split())
