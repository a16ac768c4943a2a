"""Packs a manifest: cuts it into files and writes the columns of each beside it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from regionroute.data.manifest import (
    EditSample,
    Manifest,
    load_manifest,
    manifest_files,
    parse_row,
)
from regionroute.data.shards import lines_of, row_name, text_of
from regionroute.data.startup.columns import (
    FEW,
    NUMBERS,
    TEXTS,
    column_file,
    facts_of,
    is_current,
)
from regionroute.data.startup.contents import Contents, FileFacts, read_facts
from regionroute.engines.base import EngineSettings, Lost
from regionroute.engines.run import run
from regionroute.errors import UserError
from regionroute.files import atomic_write

if TYPE_CHECKING:
    import pyarrow

ROWS = 100_000  # of a file
CUT = "manifest-{:05}.jsonl"
ASIDE = "manifest.whole.jsonl"


def pack(path: Path, rows: int = ROWS, engine: EngineSettings | None = None) -> list[Path]:
    """Write the columns of each of a manifest's files; what is packed already is left alone.

    A single file of more rows is cut into ``manifest-00000.jsonl`` and so on, and then renamed to
    `ASIDE`.

    Args:
        path: ``manifest.jsonl``, its folder, or a pattern of several files.
        rows: of a file at most, when a single one is cut.
        engine: where files are packed: images are read to hash them.

    Returns:
        The manifest's files.

    Raises:
        UserError: PyArrow is missing, or a row or an image is not right.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError("manifest pack: pip install 'regionroute[pack]' for PyArrow") from error
    files = manifest_files(path)
    if len(files) == 1 and not files[0].name.startswith("manifest-"):
        files = _cut(files[0], rows)
    missing = [file for file in files if not is_current(file)]
    work = run(missing, _packer, engine or EngineSettings())
    with tqdm(total=len(files), initial=len(files) - len(missing), desc="pack", unit="file") as bar:
        for number, found in work:
            if isinstance(found, Lost):
                raise UserError(f"{missing[number]}: {found.reason}")
            bar.update()
    load_manifest(path)  # refuses ids that are used twice
    return files


def _cut(file: Path, rows: int) -> list[Path]:
    """A file in several, or itself if it has fewer rows."""
    lines = (line for _, _, line in lines_of(file))
    parts: list[Path] = []
    while part := list(islice(lines, rows)):
        if not parts and len(part) < rows:
            return [file]
        parts.append(file.with_name(CUT.format(len(parts))))
        with atomic_write(parts[-1]) as temporary:
            temporary.write_bytes(b"".join(line.rstrip(b"\r\n") + b"\n" for line in part))
    if not parts:
        raise UserError(f"{file}: the manifest holds no samples to pack")
    file.rename(file.with_name(ASIDE))
    return parts


def _packer() -> Callable[[Path], Path]:
    return pack_file


def pack_file(file: Path) -> Path:
    """Write the column file of one of a manifest's files.

    Raises:
        UserError: a row or an image is not right.
    """
    import pyarrow.parquet as parquet

    facts = facts_of(file)
    table = _table(file).replace_schema_metadata({"regionroute": json.dumps(facts)})
    with atomic_write(column_file(file)) as temporary:
        parquet.write_table(table, temporary, use_dictionary=list(FEW), compression="zstd")
    return column_file(file)


def _table(file: Path) -> pyarrow.Table:
    import pyarrow

    columns: dict[str, list[Any]] = {name: [] for name in (*TEXTS, *NUMBERS)}
    row_of = _Rows(Manifest(file.parent, []))
    for offset, number, line in lines_of(file):
        row = row_of.columns(parse_row(file, number, text_of(file, line)))
        for name, value in ({"offset": offset} | row).items():
            columns[name].append(value)
    types = dict.fromkeys(TEXTS, pyarrow.large_string())
    types |= {name: pyarrow.type_for_alias(kind) for name, kind in NUMBERS.items()}
    return pyarrow.table({n: pyarrow.array(columns[n], types[n]) for n in columns})


class _Rows:
    """Rows as columns; images that `regionroute label` hashed are not read, others once."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self._contents = Contents(manifest.root)
        self._facts = functools.lru_cache(maxsize=2**16)(self._look)

    def _look(self, path: Path) -> FileFacts:
        return self._contents.of(path) or read_facts(path)

    def _hash(self, path: Path) -> int:
        return int(self._facts(path).content, 16)

    def columns(self, sample: EditSample) -> dict[str, Any]:
        """The values of a row, without its offset."""
        context, target = map(self.manifest.path, (sample.context, sample.target))
        height, width = self._facts(context).size
        if self._facts(target).size != (height, width):
            self.manifest.target(sample)  # says what is wrong
        row: dict[str, Any] = dict.fromkeys(NUMBERS, 0)
        row |= {
            "id": sample.id,
            "name": row_name(sample.id),
            "content": Path(sample.context).stem,
            "split": sample.split,
            "prompt": sample.prompt,
            "object": "",
            "style": "",
            "regions": len(sample.regions),
            "height": height,
            "width": width,
            "context": self._hash(context),
            "target": self._hash(target),
        }
        del row["offset"]
        if len(sample.regions) == 1:
            region = sample.regions[0]
            start, end = region.style_span or (-1, -1)
            row |= dict(zip(("top", "left", "bottom", "right"), region.box, strict=True))
            row |= {
                "object": region.object,
                "style": region.style,
                "mask": self._hash(self.manifest.path(region.mask)),
                "span_start": start,
                "span_end": end,
            }
        return row
