"""YAML and command line to a pydantic model of settings, and back to commented YAML.

Nothing here knows which settings there are: `load_config(path, overrides, model)` serves every
model whose classes forbid extra keys.
"""

import argparse
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from regionroute.config.aliases import current_key, group_of, with_current_names
from regionroute.config.shipped import find_config
from regionroute.config.yaml_text import parse_yaml, read_yaml
from regionroute.errors import Parser, UserError, nearest
from regionroute.files import AnyPath, atomic_write

Model = TypeVar("Model", bound=BaseModel)
FILE_NAME = "config.yaml"
LONGEST_SHOWN = 120  # characters of an override in an error's sentence


def load_config(path: AnyPath | None, overrides: Sequence[str], model: type[Model]) -> Model:
    """Reads settings: the model's defaults, under the YAML file, under the overrides.

    Args:
        path: YAML file, or the name of a shipped one (`regionroute.config.shipped`); None for the
            defaults alone.
        overrides: ``"a.b=value"`` each, the value in YAML (``train.steps=400``, ``x=[1, 2]``).
        model: the class to fill.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown (the nearest known one is
            named), a key is given under its old and its new name, or a value is of the wrong type
            or out of range.
    """
    # What is not given of a group is as in this default, not as in the group's own.
    settings: dict[str, Any] = {
        name: field.default.model_dump(mode="json")
        for name, field in model.model_fields.items()
        if isinstance(field.default, BaseModel)
    }
    sources: dict[str, str] = {}
    given: dict[str, str] = {}
    if path is not None:
        path = find_config(path)
        _merge(settings, _checked(_file_settings(path), model, str(path)), model)
    for override in overrides:
        shown = override if len(override) <= LONGEST_SHOWN else f"{override[:LONGEST_SHOWN]}..."
        source = f"override {shown!r}"
        key, extra = _parse_override(override, source)
        current = current_key(key, model)
        if given.setdefault(current, key) != key:
            raise UserError(f"{source}: {given[current]} and {key} are one setting, give it once")
        _merge(settings, _checked(extra, model, source), model)
        sources[current] = source
    try:
        # Strict JSON mode: lists are read as tuples, but 1 is no bool and "4" no number.
        return model.model_validate_json(_as_json(settings, str(path or "overrides")), strict=True)
    except ValidationError as error:
        raise UserError(
            _value_problem(error, model, settings, str(path or "defaults"), sources)
        ) from error


def dump_config(config: BaseModel) -> str:
    """All settings as YAML, each under its description; `load_config` reads it back."""
    return "\n".join(_dump_lines(config, indent=0)).rstrip() + "\n"


def save_config(config: BaseModel, folder: AnyPath) -> Path:
    """Writes `dump_config` to ``folder/config.yaml`` and returns that path."""
    path = Path(folder) / FILE_NAME
    with atomic_write(path) as temporary:
        temporary.write_text(dump_config(config), encoding="utf-8")
    return path


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--config FILE``, ``--print-config`` and the positional ``KEY=VALUE`` overrides.

    Call the parser's `parse_intermixed_args`, so that overrides may be given between options.
    """
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file of settings, or the name of a shipped one, such as nano_photos",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print all settings with their meaning, as they would be used, and exit",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings that override the file, for example train.steps=400",
    )


def command_settings(
    prog: str, description: str | None, model: type[Model], argv: Sequence[str] | None
) -> Model | None:
    """The settings of a command that takes nothing else, see `add_config_arguments`.

    Args:
        prog: the command's name.
        description: what ``--help`` says.
        model: the class to fill.
        argv: arguments; None for those of the process.

    Returns:
        The settings; None after ``--print-config``: they are printed, there is nothing to do.

    Raises:
        UserError: see `load_config`.
    """
    parser = Parser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    settings = load_config(args.config, args.overrides, model)
    if args.print_config:
        print(dump_config(settings))
        return None
    return settings


def known_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all settings and groups of a model, in their order."""
    keys = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        group = group_of(info)
        if group is not None:
            keys += known_keys(group, f"{prefix}{name}.")
    return keys


def _as_json(settings: dict[str, Any], where: str) -> str:
    try:
        return json.dumps(settings, default=str)
    # A list that holds itself, or keys that are dates: right YAML, but no settings.
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: these settings cannot be used ({error})") from error


def _file_settings(path: AnyPath) -> dict[str, Any]:
    settings = read_yaml(path)
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise UserError(f"{path}: a configuration is a list of 'key: value' lines, this is not")
    return settings


def _parse_override(override: str, source: str) -> tuple[str, dict[str, Any]]:
    """The dotted key and the nested settings of an override."""
    key, equals, text = (part.strip() for part in override.partition("="))
    if not equals or not key:
        raise UserError(f"{source}: write it as key=value, for example train.steps=400")
    value = parse_yaml(text, source)
    for part in reversed(key.split(".")):
        value = {part: value}
    return key, value


def _checked(
    settings: dict[str, Any],
    model: type[BaseModel],
    source: str,
    prefix: str = "",
    root: Any = None,
) -> dict[str, Any]:
    """A copy under current names, in which every key is known and every group is a dict."""
    if root is None:
        root, settings = model, with_current_names(settings, model, source)
    copy = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if key not in model.model_fields:
            close = nearest(name, known_keys(root))
            raise UserError(f"{source}: unknown key {name!r}, the nearest known one is {close!r}")
        group = group_of(model.model_fields[key])
        if group is not None:
            value = {} if value is None else value  # a group whose lines are all commented out
            if not isinstance(value, dict):
                first = next(iter(group.model_fields))
                raise UserError(
                    f"{source}: {name!r} is a group of settings and not a value, "
                    f"write for example {name}.{first}=..."
                )
            value = _checked(value, group, source, f"{name}.", root)
        copy[key] = value
    return copy


def _merge(settings: dict[str, Any], extra: dict[str, Any], model: type[BaseModel]) -> None:
    """Lays `extra` over `settings`: groups key by key, values as a whole."""
    for key, value in extra.items():
        group = group_of(model.model_fields[key])
        if group is None:
            settings[key] = value
        else:
            _merge(settings.setdefault(key, {}), value, group)


def _value_problem(
    error: ValidationError,
    model: type[BaseModel],
    settings: dict[str, Any],
    file: str,
    sources: dict[str, str],
) -> str:
    """One sentence on the wrong values; the branches of a union are listed as alternatives."""
    known = set(known_keys(model))
    expected: dict[str, list[str]] = {}
    for item in error.errors():
        parts = [str(part) for part in item["loc"]]
        while parts and ".".join(parts) not in known:
            parts.pop()
        expected.setdefault(".".join(parts), []).append(_expectation(item, len(parts)))
    sentences = []
    for key, wants in expected.items():
        source = next((text for name, text in sources.items() if _covers(name, key)), file)
        alternatives = " or ".join(dict.fromkeys(wants))
        value = _value_at(settings, key)
        missing = wants == ["be given"] or isinstance(value, dict)
        given = "" if missing or _is_group(key, model) else f", not {_inline_yaml(value)}"
        sentences.append(f"{source}: {key} must {alternatives}{given}")
    return "; ".join(sentences)


def _expectation(item: ErrorDetails, depth: int) -> str:
    """What follows "must" for one error of pydantic's."""
    message = item["msg"]
    if item["type"] == "missing":
        return "be given"
    place = next(
        (f" in item {part + 1}" for part in item["loc"][depth:] if isinstance(part, int)), ""
    )
    message = re.sub(r"^.*? should | after validation.*$", "", message)
    return message.removeprefix("Value error, ") + place


def _is_group(key: str, model: type[BaseModel]) -> bool:
    return any(name.startswith(f"{key}.") for name in known_keys(model))


def _covers(name: str, key: str) -> bool:
    return key == name or key.startswith(name + ".") or name.startswith(key + ".")


def _value_at(settings: Any, key: str) -> Any:
    for part in key.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def _dump_lines(config: BaseModel, indent: int) -> Iterator[str]:
    margin = " " * indent
    values = config.model_dump(mode="json")
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        for line in textwrap.wrap(_describe(info), 96 - indent, break_on_hyphens=False):
            yield f"{margin}# {line}"
        if isinstance(value, BaseModel):
            yield f"{margin}{name}:"
            yield from _dump_lines(value, indent + 2)
        else:
            yield f"{margin}{name}: {_inline_yaml(values[name])}"
        if indent == 0:
            yield ""


def _describe(info: FieldInfo) -> str:
    """A field's description with its choices, where there are some."""
    kinds = [info.annotation, *get_args(info.annotation)]
    choices = [
        str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)
    ]
    text = info.description or ""
    return f"{text} ({' | '.join(choices)})" if len(choices) > 1 else text


def _inline_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("...\n").strip()
