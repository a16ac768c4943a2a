"""Records the attention of an edit's words at the chosen sites and combines it to one map.

Shape legend: R rows (the pairs of all images of a batch), W words (style, object), K tokens of
a phrase, h w the token grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from regionroute.attention import AttentionPlan, AttentionRecorder, combine_maps
from regionroute.attention.recorder import Core
from regionroute.config.sites import WORDS, AttentionSite, MapChoice, Word


class Phrases(Protocol):
    """A prompt with known token positions of its phrases."""

    def tokens(self, word: Word) -> list[int]:
        """Positions of the object's or the style's tokens."""


class MapReader:
    """Records attention in calls of a transformer.

    Args:
        transformer: with or without adapters.
        choice: the attention sites, and how their maps are combined.
        source: names the choice in errors, such as its file and key.

    Raises:
        UserError: a block or a head that the transformer does not have.
    """

    def __init__(self, transformer: Any, choice: MapChoice, source: str = "map") -> None:
        self.transformer, self.choice = transformer, choice
        self.recorder = AttentionRecorder(choice.layers, choice.queries, choice.norm, source)
        self.sites = self.recorder.sites(transformer)
        self.words = [word for word in WORDS if any(site.word == word for site in self.sites)]

    def reads(self, step: int) -> bool:
        """Whether this sampling step, counted from 0, is recorded."""
        return step == 0 or self.choice.steps == "all"

    def plan(self, rows: Sequence[Phrases], grid: tuple[int, int], text_len: int) -> AttentionPlan:
        """Prepare the recording of R rows; nothing is supervised.

        Args:
            rows: one edit each.
            grid: rows and columns of image tokens.
            text_len: number of text tokens.
        """
        tokens = [[row.tokens(word) for word in self.words] for row in rows]
        longest = max(len(positions) for row in tokens for positions in row)
        index = torch.full((len(rows), len(self.words), longest), -1, dtype=torch.long)
        for r, row in enumerate(tokens):
            for w, positions in enumerate(row):
                index[r, w, : len(positions)] = torch.tensor(positions)
        return AttentionPlan(
            token_index=index,
            masks=torch.zeros(*index.shape[:2], *grid),
            valid=torch.ones(index.shape[:2], dtype=torch.bool),
            text_len=text_len,
            image_len=grid[0] * grid[1],
        )

    def recording(self, plan: AttentionPlan) -> AbstractContextManager[None]:
        """Context manager around a call of the transformer."""
        return self.recorder.recording(self.transformer, plan.to(self.transformer.device))

    def cores(self, plan: AttentionPlan) -> AbstractContextManager[dict[str, Core]]:
        """As `recording`, for a call with other attention processors, see `RowCache.full`."""
        return self.recorder.cores(self.transformer, plan.to(self.transformer.device))

    def maps(self) -> dict[AttentionSite, Tensor]:
        """The maps of the latest recorded call by site, [R,h,w] each, fp32."""
        found = self.recorder.maps()
        return {site: found[site.name][:, self.words.index(site.word)] for site in self.sites}

    def combined(self) -> Tensor:
        """The combined map of the latest call, [R,h,w]."""
        return combine_maps(list(self.maps().values()), self.choice.combine)

    def attention(self) -> Tensor:
        """Mean attention probability of the words in the latest call, [R,h,w]."""
        return combine_maps(list(self.maps().values()), "mean")
