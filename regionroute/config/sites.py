"""Where attention is read: which block, which image tokens ask, which heads, which word.

One form of words says it in a configuration, in ``experts.json`` and on the command line:

    BLOCK[.target|.context][:HEAD[,HEAD...]][@style|@object]

"double.1" is the mean over the heads of a block, "double.1:0,3" over two of them,
"double.1.context:2" asks the context picture's tokens, "all@object" reads the object's word in
every block.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

from regionroute.errors import UserError

Queries = Literal["target", "context", "both"]
Tokens = Literal["target", "context"]
Word = Literal["style", "object"]
WORDS: tuple[Word, ...] = get_args(Word)
ALL = "all"  # stands for every block

_FORM = re.compile(
    r"(?P<block>[a-z_]+(?:\.\d+)?)(?:\.(?P<tokens>target|context))?"
    r"(?::(?P<heads>\d+(?:,\d+)*))?(?:@(?P<word>style|object))?"
)


@dataclass(frozen=True)
class Reading:
    """One place where attention is read.

    Attributes:
        block: its name as `attention.layer_names` gives it, or "all".
        tokens: image tokens that ask: of the noisy "target" or of the "context" picture; None
            leaves it to the ``queries`` setting beside the reading.
        heads: numbers of the heads, ascending; None: the mean over all.
        word: the phrase that is asked for.
    """

    block: str
    tokens: Tokens | None = None
    heads: tuple[int, ...] | None = None
    word: Word = "style"

    @property
    def place(self) -> str:
        """The reading without its word: what a recorder calls the map."""
        tokens = f".{self.tokens}" if self.tokens else ""
        heads = f":{','.join(map(str, self.heads))}" if self.heads is not None else ""
        return f"{self.block}{tokens}{heads}"

    def __str__(self) -> str:
        return self.place if self.word == "style" else f"{self.place}@{self.word}"


def parse_reading(text: str) -> Reading:
    """The reading that a text such as "double.1.context:2@object" stands for.

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
    return Reading(found["block"], tokens, heads or None, word or "style")


def parse_readings(layers: str | Sequence[str]) -> list[Reading]:
    """Several readings, each once: a list of texts, or one text with spaces between them.

    Raises:
        UserError: one is not of the form, or there is none.
    """
    texts = layers.split() if isinstance(layers, str) else layers
    readings = list(dict.fromkeys(parse_reading(text) for text in texts))
    if not readings:
        raise UserError('there is no block to read, name some or "all"')
    return readings


class MapChoice(BaseModel):
    """How a region map is made of attention; ``extra.map`` in ``experts.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: list[str] = Field([ALL], description="readings, or the text `all`")
    queries: Queries = Field("target", description="for readings that do not say target or context")
    norm: Literal["full", "text", "selected"] = "full"
    combine: Literal["mean", "normalised"] = Field(
        "mean", description="mean of the maps as they are, or of the maps over their own means"
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
        parse_readings(layers)
        return layers

    def settings(self) -> dict[str, Any]:
        """What an edit's settings file says of its map: all but the provenance, JSON-able."""
        return self.model_dump(mode="json", exclude={"provenance"})


@dataclass(frozen=True)
class Place:
    """A reading of one block of a given model; nothing is left open.

    Attributes:
        name: of its map: the reading without its word, ".target" or ".context" only where the
            reading or ``queries="both"`` says so.
        block: the block's name.
        tokens: which image tokens ask.
        heads: numbers of the heads, None: the mean over all.
        word: the phrase that is asked for.
    """

    name: str
    block: str
    tokens: Tokens
    heads: tuple[int, ...] | None
    word: Word


def resolve(
    readings: Sequence[Reading], queries: Queries, heads: Mapping[str, int], source: str
) -> list[Place]:
    """What readings mean in a model.

    Args:
        readings: may say "all" and leave the tokens open.
        queries: tokens for those that leave them open.
        heads: number of heads by block, in the order of the model.
        source: names the readings in errors, such as "supervision.layers".

    Returns:
        Each place once, in the order of the model's blocks and, within a block, of the readings.

    Raises:
        UserError: a block or a head that the model does not have.
    """
    for reading in readings:
        _check(reading, heads, source)
    open_tokens: tuple[Tokens, ...] = ("target", "context") if queries == "both" else (queries,)
    places: dict[Place, None] = {}
    for block in heads:
        for reading in readings:
            if reading.block not in (ALL, block):
                continue
            for tokens in (reading.tokens,) if reading.tokens else open_tokens:
                told = tokens if reading.tokens or queries == "both" else None
                name = Reading(block, told, reading.heads).place
                places[Place(name, block, tokens, reading.heads, reading.word)] = None
    return list(places)


def _check(reading: Reading, heads: Mapping[str, int], source: str) -> None:
    if reading.block not in (ALL, *heads):
        near = difflib.get_close_matches(reading.block, heads, n=1, cutoff=0.0)
        hint = f', the nearest is "{near[0]}"' if near else ""
        raise UserError(f'{source}: the model has no block "{reading.block}"{hint}')
    count = min(heads.values()) if reading.block == ALL else heads[reading.block]
    if reading.heads and reading.heads[-1] >= count:
        raise UserError(f'{source}: "{reading}": the heads are 0 to {count - 1}')
