"""Attention sites: the block, query tokens, heads and word whose attention is read.

A configuration, ``experts.json`` and the command line share one text form:

    BLOCK[.target|.context][:HEAD[,HEAD...]][@style|@object]

"double.1" is the mean over the heads of a block, "double.1:0,3" over two of them,
"double.1.context:2" takes the queries of the context image's tokens, "all@object" reads the
object's word in every block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from regionroute.config.choices import Norm
from regionroute.errors import UserError, nearest

Queries = Literal["target", "context", "both"]
Tokens = Literal["target", "context"]
Word = Literal["style", "object"]
Combine = Literal["mean", "normalised", "geometric"]
WORDS: tuple[Word, ...] = get_args(Word)
ALL = "all"  # means every block
MAP_KEY = "map"  # of a `MapChoice` in experts.json

_FORM = re.compile(
    r"(?P<block>[a-z_]+(?:\.\d+)?)(?:\.(?P<tokens>target|context))?"
    r"(?::(?P<heads>\d+(?:,\d+)*))?(?:@(?P<word>style|object))?"
)


@dataclass(frozen=True)
class SiteSpec:
    """One or several attention sites, as a user writes them; `resolve_sites` finds them in a model.

    Attributes:
        block: its name, such as "double.0" or "single.3", or "all".
        tokens: the queries: tokens of the noisy "target" or of the "context" image; None: as the
            ``queries`` setting says.
        heads: numbers of the heads, ascending; None: the mean over all.
        word: the phrase whose keys are read.
    """

    block: str
    tokens: Tokens | None = None
    heads: tuple[int, ...] | None = None
    word: Word = "style"

    @property
    def name(self) -> str:
        """The text without its word: a recorder's name for the map."""
        tokens = f".{self.tokens}" if self.tokens else ""
        heads = f":{','.join(map(str, self.heads))}" if self.heads is not None else ""
        return f"{self.block}{tokens}{heads}"

    def __str__(self) -> str:
        return self.name if self.word == "style" else f"{self.name}@{self.word}"


def parse_site(text: str) -> SiteSpec:
    """Parse a text such as "double.1.context:2@object".

    Raises:
        UserError: the text is not of that form.
    """
    found = _FORM.fullmatch(text.strip()) if isinstance(text, str) else None
    if not found:
        raise UserError(
            f'"{text}" is not of the form BLOCK[.target|.context][:HEADS][@object], for example '
            '"double.1" or "double.1.context:0,3"'
        )
    heads = found["heads"] and tuple(sorted({int(head) for head in found["heads"].split(",")}))
    tokens: Any = found["tokens"]
    word: Any = found["word"]
    return SiteSpec(found["block"], tokens, heads or None, word or "style")


def parse_sites(layers: str | Sequence[str]) -> list[SiteSpec]:
    """Parse a list of texts, or one text with spaces between the sites; duplicates are dropped.

    Raises:
        UserError: one is not of the form, or there is none.
    """
    texts = layers.split() if isinstance(layers, str) else layers
    specs = list(dict.fromkeys(parse_site(text) for text in texts))
    if not specs:
        raise UserError('there is no block to read, name some or "all"')
    return specs


class MapChoice(BaseModel):
    """How attention becomes a region map; ``extra.map`` in ``experts.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: list[str] = Field([ALL], description="attention sites, or the text `all`")
    queries: Queries = Field("target", description="for sites that name neither target nor context")
    norm: Norm = "full"
    combine: Combine = Field(
        "mean",
        description="mean of the maps as they are, of the maps over their own means, or their "
        "geometric mean",
    )
    steps: Literal["all", "first"] = Field("all", description="sampling steps that are read")
    provenance: dict[str, Any] = Field({}, description="how the choice came about")

    @field_validator("layers", mode="before")
    @classmethod
    def _listed(cls, layers: Any) -> Any:
        return layers.split() if isinstance(layers, str) else layers

    @field_validator("layers")
    @classmethod
    def _well_formed(cls, layers: list[str]) -> list[str]:
        parse_sites(layers)
        return layers

    def settings(self) -> dict[str, Any]:
        """The settings that an edit's metadata records: all but the provenance, JSON-able."""
        return self.model_dump(mode="json", exclude={"provenance"})


@dataclass(frozen=True)
class AttentionSite:
    """Attention in one block of a given model: a fully resolved `SiteSpec`.

    Attributes:
        name: of its map: the text without its word, with ".target" or ".context" only where the
            spec or ``queries="both"`` says so.
        block: the block's name.
        tokens: the image tokens whose queries are used.
        heads: numbers of the heads, None: the mean over all.
        word: the phrase whose keys are read.
    """

    name: str
    block: str
    tokens: Tokens
    heads: tuple[int, ...] | None
    word: Word


def resolve_sites(
    specs: Sequence[SiteSpec], queries: Queries, heads: Mapping[str, int], source: str
) -> list[AttentionSite]:
    """Find the sites that specs name in a model.

    Args:
        specs: may say "all" and leave the tokens open.
        queries: tokens for those that leave them open.
        heads: number of heads by block, in the order of the model.
        source: names the specs in errors, such as "supervision.layers".

    Returns:
        Each site once, in the order of the model's blocks and, within a block, of the specs.

    Raises:
        UserError: a block or a head that the model does not have.
    """
    for spec in specs:
        _check(spec, heads, source)
    open_tokens: tuple[Tokens, ...] = ("target", "context") if queries == "both" else (queries,)
    sites: dict[AttentionSite, None] = {}
    for block in heads:
        for spec in specs:
            if spec.block not in (ALL, block):
                continue
            for tokens in (spec.tokens,) if spec.tokens else open_tokens:
                suffix = tokens if spec.tokens or queries == "both" else None
                name = SiteSpec(block, suffix, spec.heads).name
                sites[AttentionSite(name, block, tokens, spec.heads, spec.word)] = None
    return list(sites)


def _check(spec: SiteSpec, heads: Mapping[str, int], source: str) -> None:
    if spec.block not in (ALL, *heads):
        hint = f', the nearest is "{nearest(spec.block, heads)}"' if heads else ""
        raise UserError(f'{source}: the model has no block "{spec.block}"{hint}')
    count = min(heads.values()) if spec.block == ALL else heads[spec.block]
    if spec.heads and spec.heads[-1] >= count:
        raise UserError(f'{source}: "{spec}": the heads are 0 to {count - 1}')
