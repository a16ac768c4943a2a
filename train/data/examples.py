"""The samples of a run as training reads them: keys of cached tensors, held in columns.

A million samples are a million rows of numbers and bytes, not of Python objects.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

import numpy as np

H = TypeVar("H", bound=Hashable)


@dataclass(frozen=True)
class TrainingExample:
    """A sample ready for training: its expert, its style tokens and the keys of its tensors.

    Attributes:
        id: the sample's.
        expert: index of its style, and of that style's expert where each has one.
        content: what its images show, see `train.style_encoder.images`.
        token_index: for each region, the positions of its style phrase among the T5 tokens.
        size: (H,W) in pixels at which the model sees its images.
        context, target, text: cache keys.
        masks: cache keys, one a region.
    """

    id: str
    expert: int
    content: str
    token_index: tuple[tuple[int, ...], ...]
    size: tuple[int, int]
    context: str
    target: str
    text: str
    masks: tuple[str, ...]


class TrainingExamples(Sequence[TrainingExample]):
    """Training examples in columns; one is put together when it is asked for.

    Args:
        rows: the examples, looked at once.
    """

    def __init__(self, rows: Iterable[TrainingExample] = ()) -> None:
        self._ids, self._contents = _Texts(), _Texts()
        self._experts, self._bounds = array("i"), array("q", [0])
        self._pictures, self._texts, self._masks = array("Q"), array("Q"), array("Q")
        self._tokens: _Few[tuple[tuple[int, ...], ...]] = _Few()
        self._sizes: _Few[tuple[int, int]] = _Few()
        for row in rows:
            self.append(row)

    def append(self, example: TrainingExample) -> None:
        """Adds an example at the end."""
        self._ids.append(example.id)
        self._contents.append(example.content)
        self._experts.append(example.expert)
        self._tokens.append(example.token_index)
        self._sizes.append(example.size)
        self._pictures.extend((_number(example.context), _number(example.target)))
        self._texts.append(_number(example.text))
        self._masks.extend(map(_number, example.masks))
        self._bounds.append(len(self._masks))

    def __len__(self) -> int:
        return len(self._experts)

    @overload
    def __getitem__(self, row: int) -> TrainingExample: ...
    @overload
    def __getitem__(self, row: slice) -> list[TrainingExample]: ...
    def __getitem__(self, row: int | slice) -> TrainingExample | list[TrainingExample]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        first, last = self._bounds[row], self._bounds[row + 1]
        return TrainingExample(
            id=self._ids[row],
            expert=self._experts[row],
            content=self._contents[row],
            token_index=self._tokens[row],
            size=self._sizes[row],
            context=_key(self._pictures[2 * row]),
            target=_key(self._pictures[2 * row + 1]),
            text=_key(self._texts[row]),
            masks=tuple(map(_key, self._masks[first:last])),
        )

    def keys(self) -> dict[str, np.ndarray]:
        """Cache keys by kind, uint64, as often as samples use them."""
        columns = {"images": self._pictures, "texts": self._texts, "masks": self._masks}
        return {kind: np.frombuffer(column, np.uint64) for kind, column in columns.items()}

    @property
    def buckets(self) -> np.ndarray:
        """Number of each sample's size in `sizes`, [n] int32."""
        return np.frombuffer(self._sizes.numbers, np.int32)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The sizes (H,W) that occur."""
        return self._sizes.values

    def digest(self) -> str:
        """Hash of ids and contents in their order."""
        digest, separator = hashlib.sha256(b"["), b""
        for row in range(len(self)):
            e = self[row]
            line = json.dumps([e.id, e.context, e.target, e.text, *e.masks], separators=(",", ":"))
            digest.update(separator + line.encode())
            separator = b","
        digest.update(b"]")
        return digest.hexdigest()[:16]


class _Texts:
    """Texts end to end in one piece of memory."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        self._bytes += text.encode()
        self._ends.append(len(self._bytes))

    def __getitem__(self, row: int) -> str:
        return self._bytes[self._ends[row] : self._ends[row + 1]].decode()


class _Few(Generic[H]):
    """Values of which few differ, each kept once."""

    def __init__(self) -> None:
        self.values: list[H] = []
        self.numbers = array("i")
        self._number: dict[H, int] = {}

    def append(self, value: H) -> None:
        number = self._number.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        self.numbers.append(number)

    def __getitem__(self, row: int) -> H:
        return self.values[self.numbers[row]]


def _number(key: str) -> int:
    return int(key, 16)


def _key(number: int) -> str:
    return f"{number:016x}"
