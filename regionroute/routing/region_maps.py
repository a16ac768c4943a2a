"""Reads the attention of an edit's words where a choice says, and makes one map of it.

Shape legend: R rows (the clauses of all pictures of a batch), W words (style, object), K tokens of
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
    """A prompt whose phrases are known by their token positions."""

    def tokens(self, word: Word) -> list[int]:
        """Positions of the object's or the style's tokens."""


class MapReader:
    """Records attention in calls of a transformer, for the words of some edits.

    Args:
        transformer: with or without adapters.
        choice: where attention is read, and how that becomes one map.
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
        """Whether the choice wants this sampling step, counted from 0."""
        return step == 0 or self.choice.steps == "all"

    def plan(self, rows: Sequence[Phrases], grid: tuple[int, int], text_len: int) -> AttentionPlan:
        """What to record of R rows; nothing is supervised.

        Args:
            rows: an edit each.
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
        """Surrounds a call of the transformer."""
        return self.recorder.recording(self.transformer, plan.to(self.transformer.device))

    def cores(self, plan: AttentionPlan) -> AbstractContextManager[dict[str, Core]]:
        """As `recording`, for a call with other attention processors, see `RowCache.full`."""
        return self.recorder.cores(self.transformer, plan.to(self.transformer.device))

    def maps(self) -> dict[AttentionSite, Tensor]:
        """What each site gave in the latest recorded call, [R,h,w] each, fp32."""
        found = self.recorder.maps()
        return {site: found[site.name][:, self.words.index(site.word)] for site in self.sites}

    def combined(self) -> Tensor:
        """The latest call's one map, [R,h,w]."""
        return combine_maps(list(self.maps().values()), self.choice.combine)

    def attention(self) -> Tensor:
        """Plain mean of the latest call's maps, [R,h,w]: the words' probability, not its shape."""
        return combine_maps(list(self.maps().values()), "mean")
