"""The list of a bank's styles: a styles file of `label` with descriptions and style images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pseudo_labels.stylize.registry import StyleEntry, style_entries
from regionroute.config.yaml_text import parse_yaml
from regionroute.errors import UserError

_MORE = ("words", "image")  # keys of a style beyond those of a styles file


@dataclass(frozen=True)
class BankStyle:
    """One style of a bank.

    Attributes:
        entry: how its targets are painted.
        words: descriptions that mean it; the first is its phrase.
        image: style image for the Gram losses; None: its painted targets.
    """

    entry: StyleEntry
    words: tuple[str, ...]
    image: Path | None

    @property
    def name(self) -> str:
        """Its name."""
        return self.entry.spec.name


def read_bank(path: str | Path) -> list[BankStyle]:
    """Read a bank file: at least two styles.

    Raises:
        UserError: no such file, or one of its styles cannot be used.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--bank {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--bank {path}: this file is not UTF-8 text, save it as UTF-8") from error
    content = parse_yaml(text, str(path))
    more = _taken(content)
    entries = style_entries(content, str(path), path.resolve().parent)
    if len(entries) < 2:
        raise UserError(f"{path}: a bank needs at least two styles")
    return [_style(entry, more.get(entry.spec.name, {}), path) for entry in entries]


def _taken(content: Any) -> dict[str, dict[str, Any]]:
    """Remove the further keys of every style from the content, and return them by name."""
    rows = content.get("styles") if isinstance(content, dict) else None
    if not isinstance(rows, dict):
        return {}
    return {
        str(name): {key: row.pop(key) for key in _MORE if key in row}
        for name, row in rows.items()
        if isinstance(row, dict)
    }


def _style(entry: StyleEntry, more: dict[str, Any], path: Path) -> BankStyle:
    where = f"{path}: style '{entry.spec.name}'"
    words = more.get("words", [])
    if not isinstance(words, list) or not all(isinstance(w, str) and w.strip() for w in words):
        raise UserError(f"{where}: 'words' must be a list of descriptions")
    image = more.get("image")
    if image is not None:
        if not isinstance(image, str) or not (path.parent / image).is_file():
            raise UserError(f"{where}: image {image!r} is no file, give it relative to {path.name}")
        image = path.parent / image
    return BankStyle(entry, (entry.spec.words, *words), image)
