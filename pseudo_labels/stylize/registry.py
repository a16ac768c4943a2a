"""Styles files: the names of styles, their words in prompts, and how their images are made.

    styles:
      starry-night:
        phrase: starry night        # words in prompts (default: the name)
        stylizer: painting          # filter | painting | pairs | diffusion | gallery | mamba
        settings: {style: 19}       # settings of the stylizer

To add a kind of stylizer, subclass `pseudo_labels.stylize.base.Stylizer` and add an entry to
`STYLIZERS`.
"""

import importlib
import importlib.resources
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pseudo_labels.stylize.base import Stylizer
from regionroute.config.yaml_text import parse_yaml
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError, nearest


@dataclass(frozen=True)
class _Kind:
    """A stylizer's class, imported on first use so that filters do not import networks.

    Attributes:
        module: module of the class.
        name: name of the class.
        words: the setting whose default is the phrase.
    """

    module: str
    name: str
    words: str | None = None

    def build(self, **settings: Any) -> Stylizer[Any]:
        """The stylizer with these settings."""
        return self._class().build(**settings)

    def settings(self) -> Iterable[str]:
        """Names of the settings."""
        return self._class().settings_class.model_fields

    def _class(self) -> type[Stylizer[Any]]:
        found: type[Stylizer[Any]] = getattr(importlib.import_module(self.module), self.name)
        return found


STYLIZERS: dict[str, _Kind] = {
    "filter": _Kind("pseudo_labels.stylize.functional", "FunctionalStylizer"),
    "painting": _Kind("pseudo_labels.stylize.painting", "PaintingStylizer"),
    "pairs": _Kind("pseudo_labels.stylize.paired", "PairedStylizer"),
    "diffusion": _Kind("pseudo_labels.stylize.diffusion", "DiffusionStylizer"),
    "gallery": _Kind("pseudo_labels.stylegallery.stylizer", "AttentionEnergyStylizer"),
    "mamba": _Kind("pseudo_labels.stylemamba.stylizer", "MambaStylizer", words="prompt"),
}

# Settings that are file names, relative to the styles file; the second group may be hub ids.
_PATHS = ("reference", "references", "fitted", "picture", "images", "vgg", "sam", "config", "after")
_PATHS_OR_IDS = ("model", "lora", "dino", "depth")

# Style names become parts of file names and folders of experts.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class StyleEntry:
    """One style of a styles file.

    Attributes:
        spec: name and phrase.
        stylizer: a key of `STYLIZERS`.
        settings: settings of the stylizer; file names are absolute.
    """

    spec: StyleSpec
    stylizer: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Stylizer[Any]:
        """Make the stylizer.

        Raises:
            UserError: a setting has a wrong value.
        """
        kind = STYLIZERS[self.stylizer]
        words = {} if kind.words is None else {kind.words: self.spec.words}
        try:
            return kind.build(**words | dict(self.settings))
        except (TypeError, ValueError) as error:
            raise UserError(f"style '{self.spec.name}': {error}") from error


def packaged_styles() -> list[str]:
    """Names of the styles files that come with the package, e.g. "painting"."""
    folder = importlib.resources.files("pseudo_labels") / "styles"
    files = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def load_styles(source: str | Path, names: Iterable[str] | None = None) -> list[StyleEntry]:
    """Read a styles file.

    Args:
        source: path of a YAML file, or the name of a packaged one (`packaged_styles`).
        names: only these styles, in this order; None for all in the file's order.

    Returns:
        The styles, at least one.

    Raises:
        UserError: no such file, wrong YAML, an unknown key or style (with the nearest known one).
    """
    text, label, folder = _read(source)
    entries = style_entries(parse_yaml(text, label), label, folder)
    if names is None:
        return entries
    names = list(names)
    if not names:
        raise UserError(f"{label}: no style is chosen, name one or leave the choice (--only) out")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{label}: style '{name}' is named twice")
    known = {entry.spec.name: entry for entry in entries}
    return [_named(known, name, label) for name in names]


def style_entries(content: Any, label: str, folder: Path) -> list[StyleEntry]:
    """The styles of a styles file's content, at least one.

    Args:
        content: parsed YAML.
        label: of the file, in messages.
        folder: of relative file names.

    Raises:
        UserError: an unknown key, or a style that cannot be used.
    """
    rows = content.get("styles") if isinstance(content, dict) else None
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{label}: a styles file holds 'styles:' with one entry per style")
    for key in content:
        if key != "styles":
            raise UserError(f"{label}: unknown key '{key}', the only one is 'styles'")
    entries = {str(name): _entry(str(name), row, label, folder) for name, row in rows.items()}
    _check_phrases(entries, label)
    return list(entries.values())


def _read(source: str | Path) -> tuple[str, str, Path]:
    """Text, name in messages, and the folder of relative file names."""
    path = Path(source)
    if str(source) in packaged_styles() and not path.is_file():
        file = importlib.resources.files("pseudo_labels") / "styles" / f"{source}.yaml"
        return file.read_text(encoding="utf-8"), f"styles '{source}'", Path()
    try:
        return path.read_text(encoding="utf-8"), str(path), path.resolve().parent
    except (FileNotFoundError, IsADirectoryError) as error:
        packaged = ", ".join(packaged_styles())
        raise UserError(
            f"{source}: no such styles file; packaged files: {packaged} (name single "
            "styles with --only)"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: this file is not UTF-8 text, save it as UTF-8") from error


def _entry(name: str, row: Any, label: str, folder: Path) -> StyleEntry:
    where = f"{label}: style '{name}'"
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: use letters, digits, '-' and '_' in names of styles")
    if not isinstance(row, dict):
        raise UserError(f"{where}: needs 'stylizer' and 'settings' under it")
    known = ("phrase", "stylizer", "settings")
    for key in row:
        if key not in known:
            raise UserError(_unknown(where, "key", key, known))
    phrase = row.get("phrase")
    if phrase is not None and not (isinstance(phrase, str) and phrase.strip()):
        raise UserError(f"{where}: 'phrase' must be text")
    kind = row.get("stylizer")
    if not isinstance(kind, str) or kind not in STYLIZERS:
        raise UserError(_unknown(where, "stylizer", kind, STYLIZERS))
    settings = _settings(row.get("settings") or {}, kind, where, folder)
    return StyleEntry(StyleSpec(name, phrase.strip() if phrase else None), kind, settings)


def _settings(settings: Any, kind: str, where: str, folder: Path) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise UserError(f"{where}: 'settings' must be a mapping of names to values")
    known = list(STYLIZERS[kind].settings())
    for key in settings:
        if key not in known:
            raise UserError(_unknown(where, "setting", key, known))
        _check_path(key, settings[key], where)
    return {key: _located(key, value, folder) for key, value in settings.items()}


def _check_path(key: str, value: Any, where: str) -> None:
    """Refuse a file setting that is no text."""
    if key in (*_PATHS, *_PATHS_OR_IDS) and not isinstance(value, str):
        raise UserError(f"{where}: setting '{key}' must be a file name, not {value!r}")
    if key == "loras":
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise UserError(f"{where}: setting 'loras' must be a list of {{file: ..., scale: ...}}")
        for item in value:
            _check_path("lora", item.get("file"), f"{where}: loras")


def _located(key: str, value: Any, folder: Path) -> Any:
    """File names as paths from where the program runs."""
    if key == "loras":
        return [item | {"file": _located("lora", item["file"], folder)} for item in value]
    is_file = key in _PATHS or (key in _PATHS_OR_IDS and (folder / value).exists())
    return str(folder / value) if is_file else value


def _check_phrases(entries: Mapping[str, StyleEntry], label: str) -> None:
    """Two styles with one phrase could not be distinguished in a prompt."""
    seen: dict[str, str] = {}
    for name, entry in entries.items():
        other = seen.setdefault(entry.spec.words.lower(), name)
        if other != name:
            raise UserError(
                f"{label}: styles '{other}' and '{name}' share the phrase '{entry.spec.words}', "
                "give them different ones"
            )


def _named(entries: Mapping[str, StyleEntry], name: str, label: str) -> StyleEntry:
    if name not in entries:
        raise UserError(_unknown(label, "style", name, entries))
    return entries[name]


def _unknown(where: str, what: str, name: Any, known: Iterable[str]) -> str:
    close = nearest(str(name), list(known))
    return f"{where}: unknown {what} '{name}', the nearest known one is '{close}'"
