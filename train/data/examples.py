"""The samples of a run as training reads them: keys of cached tensors, held in columns.

A million samples are a million rows of numbers and bytes, not of Python objects.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import numpy as np

H = TypeVar("H", bound=Hashable)
DIGESTED = 100_000  # rows that `digest` takes at once


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

    @classmethod
    def of_columns(
        cls,
        *,
        ids: Any,
        contents: Any,
        experts: np.ndarray,
        pictures: np.ndarray,
        texts: np.ndarray,
        masks: np.ndarray,
        tokens: tuple[list[tuple[tuple[int, ...], ...]], np.ndarray],
        sizes: tuple[list[tuple[int, int]], np.ndarray],
    ) -> TrainingExamples:
        """Examples of one object each, all at once.

        Args:
            ids: PyArrow array of long texts, as are `contents`.
            contents: see `TrainingExample`, as the others.
            experts: [n].
            pictures: keys of context and target, [n,2] uint64.
            texts: keys, [n] uint64.
            masks: keys, [n] uint64.
            tokens: the different values, and the number of each row's, [n]; `sizes` likewise.
            sizes: different sizes may be equal.
        """
        made = cls()
        made._ids, made._contents = _Texts.of(ids), _Texts.of(contents)
        made._experts = array("i", experts.astype(np.int32).tobytes())
        made._pictures = array("Q", pictures.tobytes())
        made._texts, made._masks = array("Q", texts.tobytes()), array("Q", masks.tobytes())
        made._bounds = array("q", np.arange(len(experts) + 1, dtype=np.int64).tobytes())
        made._tokens, made._sizes = _Few.of(*tokens), _Few.of(*sizes)
        return made

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
        for first in range(0, len(self), DIGESTED):
            last = min(first + DIGESTED, len(self))
            lines = self._joined_lines(first, last)
            digest.update(separator)
            digest.update(self._lines(first, last) if lines is None else lines)
            separator = b","
        digest.update(b"]")
        return digest.hexdigest()[:16]

    def _lines(self, first: int, last: int) -> bytes:
        """The lists [id, context, target, text, *masks] of some rows, as JSON writes them."""
        pictures, texts, masks, bounds = self._pictures, self._texts, self._masks, self._bounds
        lines = [
            f'[{json.dumps(self._ids[row])},"{pictures[2 * row]:016x}",'
            f'"{pictures[2 * row + 1]:016x}","{texts[row]:016x}"'
            + "".join([f',"{mask:016x}"' for mask in masks[bounds[row] : bounds[row + 1]]])
            + "]"
            for row in range(first, last)
        ]
        return ",".join(lines).encode()

    def _joined_lines(self, first: int, last: int) -> bytes | None:
        """`_lines` without a loop; None without PyArrow, one mask a row, or plain ids."""
        try:
            import pyarrow
            import pyarrow.compute as compute
        except ImportError:
            return None
        bounds = np.frombuffer(self._bounds, np.int64)[first : last + 1]
        ids = self._ids.to_arrow(first, last)
        if _to_be_escaped(ids.buffers()[2]) or not (np.diff(bounds) == 1).all():
            return None
        pictures = np.frombuffer(self._pictures, np.uint64)[2 * first : 2 * last].reshape(-1, 2)
        end = np.empty((last - first, 21), np.uint8)  # a mask, and what is between two rows
        end[:, :16] = hexadecimal(np.frombuffer(self._masks, np.uint64)[bounds[:-1]])
        end[:, 16:] = np.frombuffer(b'"],["', np.uint8)
        keys = [pictures[:, 0], pictures[:, 1], np.frombuffer(self._texts, np.uint64)[first:last]]
        columns = [ids, *(_to_arrow(hexadecimal(column)) for column in keys), _to_arrow(end)]
        between = pyarrow.scalar(b'","', pyarrow.large_binary())
        _, ends, data = compute.binary_join_element_wise(*columns, between).buffers()
        length = int(np.frombuffer(ends, np.int64)[last - first])
        return b'["' + data[: length - 5].to_pybytes() + b'"]'


class _Texts:
    """Texts end to end in one piece of memory."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("q", [0])

    @classmethod
    def of(cls, texts: Any) -> _Texts:
        """The texts of a PyArrow array."""
        made = cls()
        _, ends, data = texts.buffers()
        found = np.frombuffer(ends, np.int64)[texts.offset :][: len(texts) + 1]
        made._bytes = bytearray(memoryview(data)[found[0] : found[-1]] if data else b"")
        made._ends = array("q", (found - found[0]).tobytes())
        return made

    def to_arrow(self, first: int, last: int) -> Any:
        """Some texts as a PyArrow array of bytes."""
        ends = np.frombuffer(self._ends, np.int64)[first : last + 1]
        data = bytes(memoryview(self._bytes)[ends[0] : ends[-1]])
        return _arrow_bytes(ends - ends[0], data)

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

    @classmethod
    def of(cls, values: list[H], numbers: np.ndarray) -> _Few[H]:
        """Values of which some may be equal, and the number of each row's."""
        made: _Few[H] = cls()
        new = np.array([made._add(value) for value in values], np.int32)
        made.numbers = array("i", new[numbers].tobytes() if len(new) else b"")
        return made

    def _add(self, value: H) -> int:
        number = self._number.setdefault(value, len(self.values))
        if number == len(self.values):
            self.values.append(value)
        return number

    def append(self, value: H) -> None:
        self.numbers.append(self._add(value))

    def __getitem__(self, row: int) -> H:
        return self.values[self.numbers[row]]


def hexadecimal(numbers: np.ndarray) -> np.ndarray:
    """Keys as 16 digits each: [n] uint64 -> [n,16] uint8."""
    digits = np.ascontiguousarray(numbers).astype(">u8").tobytes().hex().encode()
    return np.frombuffer(digits, np.uint8).reshape(-1, 16)


def _to_arrow(rows: np.ndarray) -> Any:
    """Texts of one length, [n,length] uint8, as a PyArrow array of bytes."""
    return _arrow_bytes(np.arange(len(rows) + 1) * rows.shape[1], rows.tobytes())


def _arrow_bytes(ends: np.ndarray, data: bytes) -> Any:
    import pyarrow

    buffers = [None, pyarrow.py_buffer(ends.astype(np.int64)), pyarrow.py_buffer(data)]
    return pyarrow.Array.from_buffers(pyarrow.large_binary(), len(ends) - 1, buffers)


def _to_be_escaped(data: Any) -> bool:
    """Whether JSON writes some of the bytes in another way."""
    found = np.frombuffer(data, np.uint8)
    return bool(((found < 0x20) | (found > 0x7E) | (found == 0x22) | (found == 0x5C)).any())


def _number(key: str) -> int:
    return int(key, 16)


def _key(number: int) -> str:
    return f"{number:016x}"
