"""What training start-up needs of a manifest's rows, in a Parquet file beside each of its files.

A row of one object is described by its columns alone: ids, split, prompt, object and style with
their places in the prompt, sizes, and hashes of what its images hold. Other rows are parsed. Their
column files are written by `regionroute.data.startup.pack`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regionroute.errors import UserError

if TYPE_CHECKING:
    import pyarrow

ENDING = ".parquet"
FORMAT = "regionroute columns 1"
FEW = ("split", "prompt", "object", "style")  # texts of which few differ
TEXTS = ("id", "content", *FEW)
NUMBERS = {  # one a row; those of the object are 0 unless `regions` is 1
    "name": "uint64",  # hash of the id
    "offset": "int64",  # of the row in its file, in bytes
    "regions": "int32",
    "height": "int32",
    "width": "int32",
    "context": "uint64",  # hashes of contents
    "target": "uint64",
    "mask": "uint64",
    "top": "int32",  # the object's box
    "left": "int32",
    "bottom": "int32",
    "right": "int32",
    "span_start": "int32",  # the style's characters in the prompt, -1 if the row does not say
    "span_end": "int32",
}


@dataclass(frozen=True)
class Columns:
    """The columns of a whole manifest, an entry per row.

    Attributes:
        counts: rows of each file.
        ids, contents: of all rows; `contents` are the stems of the contexts' files.
        codes: for each name of `FEW` the number of each row's text in `texts`, [n] int32.
        texts: for each name of `FEW` the texts that occur.
        numbers: for each name of `NUMBERS` its column, [n].
    """

    counts: list[int]
    ids: pyarrow.Array
    contents: pyarrow.Array
    codes: dict[str, np.ndarray]
    texts: dict[str, list[str]]
    numbers: dict[str, np.ndarray]

    def __len__(self) -> int:
        return sum(self.counts)

    def rows_of(self, split: str) -> np.ndarray:
        """Places of the rows of a split, [k] int64."""
        known = self.texts["split"]
        return np.flatnonzero(self.codes["split"] == (known.index(split) if split in known else -1))


def column_file(file: Path) -> Path:
    """The column file of a manifest's file."""
    return file.with_suffix(ENDING)


def facts_of(file: Path) -> dict[str, Any]:
    """What a column file knows its manifest's file by; the hash takes reading it."""
    found = os.stat(file)
    with open(file, "rb") as opened:
        content = hashlib.file_digest(opened, "sha256").hexdigest()
    return {
        "format": FORMAT, "bytes": found.st_size, "modified": found.st_mtime_ns, "sha256": content
    }  # fmt: skip


def is_current(file: Path) -> bool:
    """Whether the column file of a manifest's file is there and describes its present bytes."""
    known = _known_facts(column_file(file))
    if known.get("format") != FORMAT:
        return False
    found = os.stat(file)
    if known["bytes"] != found.st_size:
        return False
    # A copy has another time and the same bytes.
    return bool(
        known["modified"] == found.st_mtime_ns or known["sha256"] == facts_of(file)["sha256"]
    )


def _known_facts(path: Path) -> dict[str, Any]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        found = parquet.read_schema(path).metadata or {}
        facts: dict[str, Any] = json.loads(found.get(b"regionroute", b"{}"))
    except (OSError, ValueError, pyarrow.ArrowException):
        return {}
    return facts


def read_columns(files: Sequence[Path]) -> Columns | None:
    """The columns of a manifest's files; None if one of them is not packed.

    Raises:
        UserError: a file was changed since it was packed.
    """
    if not files or not all(column_file(file).is_file() for file in files):
        return None
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        print(
            f"{files[0].parent}: it is packed, but PyArrow is missing: "
            "pip install 'regionroute[pack]'; reading all rows instead",
            file=sys.stderr,
        )
        return None
    for file in files:
        if not is_current(file):
            raise UserError(
                f"{column_file(file)}: {file.name} was changed since it was packed, run "
                f"`regionroute manifest pack {file.parent}` again"
            )
    # Not `read_table`, which imports PyArrow's data sets: more than a second of processor time.
    tables = [
        parquet.ParquetFile(column_file(file), read_dictionary=list(FEW)).read() for file in files
    ]
    counts = [len(table) for table in tables]
    table = pyarrow.concat_tables(tables).unify_dictionaries().combine_chunks()
    del tables
    few = {name: _one(table.column(name)) for name in FEW}
    return Columns(
        counts=counts,
        ids=_one(table.column("id")),
        contents=_one(table.column("content")),
        codes={name: np.asarray(column.indices) for name, column in few.items()},
        texts={name: column.dictionary.to_pylist() for name, column in few.items()},
        numbers={name: np.asarray(_one(table.column(name))) for name in NUMBERS},
    )


def _one(column: pyarrow.ChunkedArray) -> Any:
    """A column as one array."""
    found = column.combine_chunks()
    return found.chunk(0) if hasattr(found, "num_chunks") else found
