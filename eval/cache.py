"""Measured values, cached by the content of the files they were measured on.

One file of JSON lines, appended to after every batch: a killed run resumes there, and a further
metric or method costs only itself. A finished run sorts the lines. Entries cannot be stale: a key
is a hash over all files of a pair, and the name of a value includes a hash of the metric's
definition.
"""

import json
import math
from pathlib import Path
from typing import Any

from regionroute.data.manifest import EditSample
from regionroute.errors import UserError
from regionroute.files import atomic_write, file_hash, settings_hash, text_hash
from regionroute.remote import grown

CACHE_FILE = "cache.jsonl"
REVISION = 1  # raise when a metric's arithmetic changes without its definition
_MISSING = "-"


class FileHashes:
    """Hashes of files' contents, each read once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """The hash, or a placeholder for a file that cannot be read."""
        if path not in self._known:
            try:
                self._known[path] = file_hash(path)
            except (OSError, UserError):
                self._known[path] = _MISSING
        return self._known[path]


def pair_key(sample: EditSample, files: list[Path], method: str, hashes: FileHashes) -> str | None:
    """The key of an edit: of what all its files hold and of the sample's words.

    Args:
        sample: whose prompt and regions belong to the key.
        files: every file that the numbers depend on.
        method: "floor" or "ceiling", or an empty text for edits, whose name does not matter.
        hashes: of files.

    Returns:
        None if a file is missing, whose key would change.
    """
    found = [hashes.of(file) for file in files]
    if _MISSING in found:
        return None
    words = [[r.object, r.style, r.object_span, r.style_span] for r in sample.regions]
    return settings_hash([sample.prompt, words, method, found])


def value_name(name: str, definition: str, encoder: dict[str, str]) -> str:
    """A metric's name with a hash of how exactly it is computed."""
    return f"{name}@{text_hash(json.dumps([REVISION, definition, encoder], sort_keys=True))[:8]}"


class ValueCache:
    """Records by key, kept in a file.

    Args:
        path: the file, created with the first record; None: nothing is written.

    Raises:
        UserError: the path is a folder.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._records: dict[str, dict[str, Any]] = {}
        self._torn = False
        if path is None or not path.exists():
            return
        if path.is_dir():
            raise UserError(f"{path}: this folder is in the way of a file, remove it")
        self._read(path.read_bytes())

    def _read(self, data: bytes) -> None:
        """Add the records of a file's bytes to those known."""
        self._torn = bool(data) and not data.endswith(b"\n")
        for line in data.split(b"\n"):
            try:
                entry = json.loads(line)
                if _is_record(entry["record"]):
                    self._merge(str(entry["key"]), entry["record"])
            # Cut off when a run was killed, or not ours: such a line costs only its own values.
            except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError):
                continue

    def get(self, key: str | None) -> dict[str, Any] | None:
        """The record of a key, None if there is none."""
        return None if key is None else self._records.get(key)

    def put(self, records: dict[str, dict[str, Any]]) -> None:
        """Keeps records {key: {..., "values": {name: number}}}; values add to those known."""
        lines = []
        for key, record in records.items():
            if set(record["values"]) <= set(self._records.get(key, {}).get("values", {})):
                continue
            self._merge(key, record)
            lines.append(_line(key, record))
        if self.path is None or not lines:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if self._torn else "") + "".join(lines))
        self._torn = False
        grown(self.path)

    def sort(self) -> None:
        """Write the file anew in the order of keys, one line each.

        Its bytes then say nothing of the order in which workers measured. What another run has
        added until then is kept.
        """
        if self.path is None or not self.path.exists():
            return
        data = self.path.read_bytes()
        self._read(data)
        text = "".join(_line(key, self._records[key]) for key in sorted(self._records))
        if data != text.encode():
            with atomic_write(self.path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            self._torn = False

    def _merge(self, key: str, record: dict[str, Any]) -> None:
        values = {**self._records.get(key, {}).get("values", {}), **record["values"]}
        self._records[key] = {**record, "values": values}


def _line(key: str, record: dict[str, Any]) -> str:
    return json.dumps({"key": key, "record": record}, allow_nan=False, sort_keys=True) + "\n"


def _is_record(record: dict[str, Any]) -> bool:
    """Whether a record has the form that :class:`eval.scoring.Scorer` writes."""
    height, width = record["size"]
    numbers = [height, width, record["mask_share"]]
    numbers += [value for value in record["values"].values() if value is not None]
    finite = all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
    return (
        finite
        and min(height, width) > 0
        and 0 <= record["mask_share"] <= 1
        and all({"kind", "text"} == set(remark) for remark in record["remarks"])
        and all(isinstance(text, str) for remark in record["remarks"] for text in remark.values())
    )
