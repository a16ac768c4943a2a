"""Sphinx extension: pages of the command line, settings and model cards, written from the code.

They go to ``docs/reference`` when the site is built, and are not kept under version control.
"""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import licences

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo
    from sphinx.application import Sphinx

# Page: title, how its settings are given, model.
SETTINGS = {
    "training": (
        "Training",
        "Given to `regionroute train` and `regionroute plan`.",
        "regionroute.config.run:RunConfig",
    ),
    "style_encoder": (
        "Style encoder",
        "Given to `python train/style_encoder/run.py`.",
        "train.style_encoder.config:StyleEncoderConfig",
    ),
    "pretraining": (
        "Pre-training of the embedded bases",
        "Given to `python train/pretrain/run.py`.",
        "train.pretrain.config:PretrainConfig",
    ),
    "image_encoder": (
        "Image encoder",
        "Given to `python train/pretrain/train_image_encoder.py`.",
        "train.pretrain.image_encoder.config:ImageEncoderConfig",
    ),
    "stylegallery": (
        "StyleGallery",
        "Given to `regionroute gallery`.",
        "pseudo_labels.stylegallery.config:GalleryConfig",
    ),
    "stylemamba": (
        "StyleMamba",
        "Given to `regionroute mamba fit` and `regionroute mamba train`.",
        "pseudo_labels.stylemamba.config:MambaConfig",
    ),
    "studio": (
        "Studio",
        "Given to `regionroute serve`.",
        "regionroute.studio.settings:StudioSettings",
    ),
    "stylizer_filter": (
        "Stylizer `filter`",
        "The key `settings` of an entry in a styles file; each filter has further ones.",
        "pseudo_labels.stylize.functional:FilterSettings",
    ),
    "stylizer_painting": (
        "Stylizer `painting`",
        "The key `settings` of an entry in a styles file.",
        "pseudo_labels.stylize.painting:PaintingSettings",
    ),
    "stylizer_pairs": (
        "Stylizer `pairs`",
        "The key `settings` of an entry in a styles file.",
        "pseudo_labels.stylize.paired:PairedSettings",
    ),
    "stylizer_diffusion": (
        "Stylizer `diffusion`",
        "The key `settings` of an entry in a styles file.",
        "pseudo_labels.stylize.diffusion:DiffusionSettings",
    ),
    "stylizer_gallery": (
        "Stylizer `gallery`",
        "The key `settings` of an entry in a styles file.",
        "pseudo_labels.stylegallery.stylizer:GallerySettings",
    ),
    "stylizer_mamba": (
        "Stylizer `mamba`",
        "The key `settings` of an entry in a styles file.",
        "pseudo_labels.stylemamba.stylizer:MambaSettings",
    ),
    "judge": (
        "Judge",
        "Given to `regionroute score --judge-config`.",
        "eval.judge.questions:JudgeConfig",
    ),
}


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the extension."""
    app.connect("builder-inited", write_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def write_pages(app: Sphinx) -> None:
    """Writes all pages; an unchanged page is left alone, so that it is not built again."""
    reference = Path(app.srcdir) / "reference"
    for name, text in all_pages().items():
        path = reference / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def all_pages() -> dict[str, str]:
    """Every page by its path below ``reference``, without the ending."""
    generated = {"metrics": metrics_page(), "licences": licences.page()}
    return {**generated, **cli_pages(), **settings_pages(), **card_pages()}


def page_names() -> set[str]:
    """The names of `all_pages`, without importing what they are about."""
    from regionroute.cli.main import COMMANDS

    parts = {"cli": COMMANDS, "settings": SETTINGS, "cards": _cards()}
    names = {f"{part}/{name}" for part, pages in parts.items() for name in (*pages, "index")}
    return {"metrics", "licences", *names}


def metrics_page() -> str:
    """The catalogue of metrics."""
    from eval.metrics import CATALOGUE
    from eval.sets import DEFINITIONS

    rows = [
        f"| `{m.name}` | {m.label}, {m.better} is better | {m.unit} | {m.group} "
        f"| {_cell(m.short)} {_cell(m.definition)} |"
        for m in CATALOGUE.values()
    ]
    rows += [
        f"| `{name}` | | value | stylegallery | {_cell(d)} |" for name, d in DEFINITIONS.items()
    ]
    return _page(
        "# Metrics of `regionroute score`",
        "Written from the catalogue that the reports print. "
        "[Metrics](../explanation/metrics.md) says how to read them and what each misses.",
        "\n".join(["| name | | unit | group | definition |", "|---|---|---|---|---|", *rows]),
    )


def cli_pages() -> dict[str, str]:
    """Pages of the command line: one for each command, and their index."""
    from regionroute.cli.main import COMMANDS

    pages = {f"cli/{name}": command_page(name, entry.parser()) for name, entry in COMMANDS.items()}
    rows = [f"| [`regionroute {name}`]({name}.md) | {e.summary} |" for name, e in COMMANDS.items()]
    pages["cli/index"] = _page(
        "# Command line",
        "Exit codes: 0, done; 1, done with a negative result (a style not learned, problems "
        "found); 2, a mistake in what was given, in one sentence; 3, a threshold of "
        "`score --fail-if` was exceeded; 130, interrupted.",
        "\n".join(["| command | |", "|---|---|", *rows]),
        _toctree(COMMANDS),
    )
    return pages


def command_page(name: str, parser: argparse.ArgumentParser) -> str:
    """One command: description, examples, arguments, actions."""
    return _page(f"# regionroute {name}", *_parser_parts(parser, level=2))


def _parser_parts(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    mark = "#" * level
    yield " ".join((parser.description or "").split())
    usage = parser.format_usage().removeprefix("usage: ").strip()
    yield f"```text\n{usage}\n```"
    for group in parser._action_groups:
        actions = [
            a
            for a in group._group_actions
            if a.help != argparse.SUPPRESS
            and not isinstance(a, argparse._SubParsersAction | argparse._HelpAction)
        ]
        if actions:
            title = (group.title or "options").capitalize()
            yield f"{mark} {title}"
            yield from filter(None, [group.description])
            yield "\n".join(["| | |", "|---|---|", *(_argument_row(a) for a in actions)])
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub_name, sub in action.choices.items():
                yield f"{mark} {sub.prog.removeprefix('regionroute ') or sub_name}"
                yield from _parser_parts(sub, level + 1)
    if parser.epilog:
        yield f"{mark} Notes"
        yield f"```text\n{parser.epilog.rstrip()}\n```"


def _argument_row(action: argparse.Action) -> str:
    value = ""
    if action.nargs != 0:
        choices = ",".join(map(str, action.choices or ()))
        value = str(action.metavar or (f"{{{choices}}}" if choices else action.dest.upper()))
    names = [f"`{f'{o} {value}'.strip()}`" for o in action.option_strings] or [f"`{value}`"]
    text = (action.help or "").replace("%%", "%")
    needed = " **Required.**" if action.required and action.option_strings else ""
    return f"| {', '.join(names)} | {_cell(text)}{needed} |"


def settings_pages() -> dict[str, str]:
    """Pages of settings: one for each model, and their index."""
    pages = {}
    rows = []
    for name, (title, use, place) in SETTINGS.items():
        module, _, attribute = place.partition(":")
        model = getattr(importlib.import_module(module), attribute)
        doc = " ".join((model.__doc__ or "").split("\n\n")[0].split())
        table = ["| key | meaning |", "|---|---|", *_rows(model)]
        pages[f"settings/{name}"] = _page(f"# {title}", doc, use, "\n".join(table))
        rows.append(f"| [{title}]({name}.md) | {use} |")
    pages["settings/index"] = _page(
        "# Settings",
        "Every setting with its default and meaning. A key is written nested in YAML, or as an "
        "override: `train.steps=400`. `--print-config` prints all of them as a command would use "
        "them. Unknown keys and values out of range end the command with one sentence.",
        "\n".join(["| | |", "|---|---|", *rows]),
        _toctree(SETTINGS),
    )
    return pages


def card_pages() -> dict[str, str]:
    """The model cards that ship with the package, without the hub's header, and their index."""
    pages = {}
    rows = []
    for name, file in _cards().items():
        text = re.sub(r"\A---\n.*?^---\n", "", file.read_text(encoding="utf-8"), flags=re.S | re.M)
        title = name.replace("-", " / ", 1).replace("_", "-")
        pages[f"cards/{name}"] = re.sub(r"\A\s*# .*", f"# {title}", text)
        rows.append(f"- [{title}]({name}.md)")
    pages["cards/index"] = _page(
        "# Model cards", "\n".join(rows), _toctree([name.removeprefix("cards/") for name in pages])
    )
    return pages


def _cards() -> dict[str, Path]:
    models = Path(__file__).resolve().parents[2] / "regionroute" / "models"
    files = sorted(models.rglob("README.md"))
    return {"-".join(file.relative_to(models).parts[:-1]): file for file in files}


def _rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    from regionroute.config.aliases import group_of

    for name, info in model.model_fields.items():
        key = f"{prefix}{name}"
        group = group_of(info)
        if group is not None and not info.is_required():
            yield f"| **`{key}`** | {_cell(info.description or group.__doc__ or '')} |"
            yield from _rows(group, f"{key}.")
        else:
            facts = "; ".join(filter(None, [_values(info), _default(info)]))
            yield f"| `{key}` | {_cell(info.description or '')} ({facts}) |"


def _default(info: FieldInfo) -> str:
    import json

    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "default: null"
    try:
        return f"default: `{json.dumps(value)}`"
    except TypeError:
        return f"default: `{value}`"


def _values(info: FieldInfo) -> str:
    """Choices or bounds, as far as pydantic knows them."""
    found: list[str] = []
    _collect(info.annotation, found)
    found += [_bound(item) for item in info.metadata]
    return " ".join(dict.fromkeys(filter(None, found)))


def _collect(kind: Any, found: list[str]) -> None:
    from typing import Annotated, Literal

    if get_origin(kind) is Literal:
        found.append(", ".join(f"`{choice}`" for choice in get_args(kind)))
    elif get_origin(kind) is Annotated:
        inner, *metadata = get_args(kind)
        _collect(inner, found)
        for item in metadata:
            found += [_bound(part) for part in getattr(item, "metadata", [item])]
    elif kind in (bool, int, float, str):
        found.append({bool: "true or false", int: "integer", float: "number", str: "text"}[kind])
    else:
        for part in get_args(kind):
            _collect(part, found)


def _bound(item: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return " ".join(
        f"{sign} {getattr(item, name):g}"
        for name, sign in signs.items()
        if isinstance(getattr(item, name, None), int | float)
    )


def _cell(text: str) -> str:
    """Plain text in a cell of a table: Markdown's own signs are escaped outside of code."""
    text = " ".join(text.split())
    parts = re.split(r"(`[^`]*`)", text)
    escaped = [p if p.startswith("`") else re.sub(r"([*_<>\[\]$])", r"\\\1", p) for p in parts]
    return "".join(escaped).replace("|", "\\|")


def _page(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _toctree(names: Any) -> str:
    return "\n".join(["```{toctree}", ":hidden:", "", *names, "```"])
