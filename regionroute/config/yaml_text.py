"""YAML as the settings are written in: bounded in size, depth and what its aliases expand to."""

import re
from typing import Any

import yaml

from regionroute.errors import UserError
from regionroute.files import AnyPath

MOST_BYTES = 256 * 1024  # of a document; the largest of ours has 10 kB
MOST_DEPTH = 32  # lists and mappings inside each other
MOST_VALUES = 8_000  # keys and values, those behind aliases counted at every use
LONGEST_VALUE = 10_000  # characters


class _Loader(yaml.SafeLoader):
    """Safe, bounded YAML in which 1e-4 is a number, as in YAML 1.2, and keys are unique."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._values = 0  # so far, aliases expanded
        self._sizes: dict[int, int] = {}  # id of a complete node -> values in it

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Composes a node and refuses it as soon as a bound is exceeded."""
        event, before = self.peek_event(), self._values
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise _refused(f"values are nested deeper than {MOST_DEPTH} levels", event)
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_VALUE:
            raise _refused(f"a value is longer than {LONGEST_VALUE} characters", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _refused(f"the alias *{event.anchor} is inside what it stands for", event)
            self._values += self._sizes[id(node)]
        else:
            self._values += 1
            self._sizes[id(node)] = self._values - before
        if self._values > MOST_VALUES:
            raise _refused(f"more than {MOST_VALUES} values, aliases included", event)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Constructs a mapping and refuses a repeated key."""
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key_node.value!r} is given twice",
                    problem_mark=key_node.start_mark,
                )
            seen.add(str(key_node.value))
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """Reads YAML in which 1e-4 is a number and a key may be given only once.

    Args:
        text: the YAML.
        where: what holds it, for the error's sentence.

    Raises:
        UserError: it is not valid YAML, or too large, too deep, or expands to too much.
    """
    if len(text) > MOST_BYTES:
        raise _too_large(where)
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise UserError(f"{where}{line}: this is not valid YAML ({problem})") from error
    # Dates that do not exist, numbers that are too long, keys that cannot be keys.
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: this is not valid YAML ({error})") from error


def read_yaml(path: AnyPath) -> Any:
    """Reads a YAML file as `parse_yaml` does.

    Raises:
        UserError: the file is missing, too large, not UTF-8 or not valid YAML.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such configuration, check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: this is a folder, give a YAML file") from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{path!r}: this is no file name ({error})") from error
    if len(data) > MOST_BYTES:
        raise _too_large(str(path))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this is not UTF-8 text, save it as UTF-8") from error
    return parse_yaml(text, str(path))


def _refused(problem: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = event.start_mark  # of the scanner in Python or in C
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _too_large(where: str) -> UserError:
    return UserError(
        f"{where}: this YAML has more than {MOST_BYTES // 1024} kB, which no settings need: check "
        "that it is the right file"
    )
