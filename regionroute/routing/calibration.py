"""Choose attention sites: scores on labelled images, forward selection, intervals.

Shape legend: C candidate sites, P images, h w the token grid of a image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regionroute.attention import map_scores, normalised
from regionroute.config.sites import AttentionSite, SiteSpec, Word
from regionroute.data.stats import describe

MIN_GAIN = 0.005  # of IoU that a further site must add (and twice its standard error)


@dataclass(frozen=True)
class Interval:
    """A mean over images with its bootstrap interval; that of a difference is paired."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, eq=False)
class Row:
    """The scores of one choice of sites.

    Attributes:
        name: label in tables.
        sites: their specs, as text.
        iou: of region map and object, one value per image, [P].
        share: of the attention that lies inside the mask, [P].
    """

    name: str
    sites: list[str]
    iou: np.ndarray
    share: np.ndarray

    def on(self, images: np.ndarray) -> Row:
        """The row restricted to some images, bool [P]."""
        return Row(self.name, self.sites, self.iou[images], self.share[images])


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of many sites, each by itself.

    Attributes:
        sites: C of them.
        iou: of region map and object, [C,P].
        share: of the attention that lies inside the mask, [C,P].
    """

    sites: list[AttentionSite]
    iou: np.ndarray
    share: np.ndarray

    def ranking(self, images: np.ndarray, word: Word | None = None) -> list[int]:
        """Indices of the sites by mean IoU on some images, then share, best first.

        Args:
            images: bool [P].
            word: only those of this word; None: all.
        """
        iou, share = self.iou[:, images].mean(1), self.share[:, images].mean(1)
        members = [c for c, site in enumerate(self.sites) if word in (None, site.word)]
        return sorted(members, key=lambda c: (-iou[c], -share[c]))

    def row(self, name: str, site: int) -> Row:
        """The scores of one site, by its number."""
        text = spec_of(self.sites[site])
        return Row(f"{name} ({text})", [text], self.iou[site], self.share[site])

    def average(self, name: str) -> Row:
        """The mean over all sites: what a random site would score."""
        return Row(name, [], self.iou.mean(0), self.share.mean(0))


def estimate(values: np.ndarray) -> Interval:
    """Mean of finite `values` [P], P >= 1, with its 95 % interval (`regionroute.data.stats`).

    A single value is its own interval.
    """
    found = describe(values)
    mean = float("nan") if found.mean is None else found.mean
    low, high = (mean if end is None else end for end in (found.low, found.high))
    return Interval(mean, low, high)


def spec_of(site: AttentionSite) -> str:
    """The text of a site, always with its query tokens."""
    return str(SiteSpec(site.block, site.tokens, site.heads, site.word))


def choose(maps: Sequence[Tensor], masks: Sequence[Tensor], top: int) -> list[int]:
    """Forward selection: the best site first, then the one that improves it most, and so on.

    Sites are combined by the mean of their normalised maps. A further site has to raise the mean
    IoU by `MIN_GAIN` and by twice the standard error of the gain: among many candidates some seem
    useful by chance.

    Args:
        maps: attention of each image, [C,h,w]; the grids may differ.
        masks: soft object masks, [h,w] each.
        top: sites at most, >= 1.

    Returns:
        Indices of the chosen sites, best first.
    """
    each = [normalised(image) for image in maps]
    totals = [torch.zeros_like(image[0]) for image in each]
    chosen: list[int] = []
    reached = np.zeros(len(each))  # [P]
    while len(chosen) < min(top, len(each[0])):
        scores = [
            torch.stack(map_scores(total + image, mask))
            for total, image, mask in zip(totals, each, masks, strict=True)
        ]
        iou, share = torch.stack(scores, dim=-1).double().cpu().numpy()  # [C,P] each
        means = iou.mean(1), share.mean(1)
        left = [c for c in range(len(iou)) if c not in chosen]
        best = max(left, key=lambda c: (means[0][c], means[1][c]))  # equals: more of it inside
        gain = iou[best] - reached
        error = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
        if chosen and gain.mean() < max(MIN_GAIN, 2 * error):
            break
        reached = iou[best]
        chosen.append(best)
        totals = [total + image[best] for total, image in zip(totals, each, strict=True)]
    return chosen


def comparison(choice: Row, others: Sequence[Row]) -> list[dict[str, Any]]:
    """Every row's scores and how far the choice is ahead of it in IoU, JSON-able."""
    found = []
    for row in (choice, *others):
        values: dict[str, Any] = {"name": row.name, "sites": row.sites}
        values |= {"iou": asdict(estimate(row.iou)), "share": asdict(estimate(row.share))}
        if row is not choice:
            values["gain"] = asdict(estimate(choice.iou - row.iou))
        found.append(values)
    return found


def comparison_table(choice: Row, others: Sequence[Row]) -> list[str]:
    """The same as lines of text."""
    width = max(len(row.name) for row in (choice, *others))
    lines = [f"{'':{width}}  {'IoU':18} {'share in mask':18} choice ahead by"]
    for row in (choice, *others):
        ahead = "" if row is choice else str(estimate(choice.iou - row.iou))
        scores = f"{estimate(row.iou)!s:18} {estimate(row.share)!s:18} {ahead}"
        lines.append(f"{row.name:{width}}  {scores}".rstrip())
    return lines


def head_table(scores: Mapping[str, Scores], chosen_on: np.ndarray) -> list[str]:
    """Single heads by word and tokens: the best one's IoU, which one it is, and the mean of all.

    Args:
        scores: model -> its heads.
        chosen_on: bool [P], the images the best one is chosen on; shown is its IoU on the rest.
    """
    width = max(map(len, scores))
    lines = [f"{'':{width}}  word    asked by  best  head         mean"]
    for model, heads in scores.items():
        order, rest = heads.ranking(chosen_on), heads.iou[:, ~chosen_on].mean(1)
        for word, tokens in dict.fromkeys((site.word, site.tokens) for site in heads.sites):
            members = [
                c for c in order if (heads.sites[c].word, heads.sites[c].tokens) == (word, tokens)
            ]
            best = heads.sites[members[0]]
            head = SiteSpec(best.block, None, best.heads).name
            lines.append(
                f"{model:{width}}  {word:7} {tokens:9} {rest[members[0]]:.2f}  {head:12} "
                f"{rest[members].mean():.2f}"
            )
    return lines
