"""Files: written under a temporary name first, JSON and JSON Lines, content hashes."""

import dataclasses
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePath
from typing import Any, NoReturn

from regionroute import remote
from regionroute.errors import UserError, printable, remedy

AnyPath = str | PathLike[str]
DEEPEST_JSON = 100  # brackets in brackets
_UMASK = os.umask(0)
os.umask(_UMASK)  # it can only be read by setting it


def shown_path(path: AnyPath) -> str:
    """A path as text for messages, without characters that a terminal would act on."""
    return printable(os.fspath(path))


def check_input_file(path: AnyPath, kind: str = "file", *, pipes: bool = False) -> None:
    """Refuses what cannot be opened and read to its end.

    Args:
        path: the file.
        kind: what it is meant to be, for the error's sentence.
        pipes: also accept a pipe, such as ``/dev/stdin`` or a shell's ``<(command)``.

    Raises:
        UserError: it is missing, a folder, a device, a pipe, or a name no file can have.
    """
    shown = shown_path(path)
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # NUL, or half of a character
        raise UserError(f"{shown}: no file can have this name, check the path") from error
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise UserError(f"{shown}: no such {kind}, check the path") from error
        raise UserError(f"{shown}: {remedy(error) or error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{shown}: this is a folder, give the {kind}'s file name")
    if not stat.S_ISREG(mode) and not (pipes and stat.S_ISFIFO(mode)):
        raise UserError(f"{shown}: this is a device, pipe or socket, not a file")


def check_output_file(path: AnyPath) -> None:
    """Refuses, before any work is done, a file that could not be written.

    Raises:
        UserError: a folder, device, pipe or socket is there, a part of the path is a file, or there
            is no permission.
    """
    if not str(path):
        raise UserError("the file name is empty, give one")
    if os.path.isdir(path):
        raise UserError(f"{path}: this is a folder, give a file name")
    _check_parent(path, Path(path))
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{shown_path(path)}: this is a device, pipe or socket, give a file name")


def check_inputs_kept(outputs: Iterable[AnyPath], inputs: Iterable[AnyPath]) -> None:
    """Refuses, before any work is done, outputs that would overwrite an input.

    Args:
        outputs: all files of a request or a whole batch that will be written.
        inputs: all files that are read, also those that are read only later.

    Raises:
        UserError: an output is an input, by its name, through a link, or as a hard link.
    """
    check_outputs(outputs, known_inputs(inputs))


def known_inputs(inputs: Iterable[AnyPath]) -> dict[object, AnyPath]:
    """What `check_outputs` compares with; looked up once for all outputs of a batch."""
    known: dict[object, AnyPath] = {}
    for path in inputs:
        known.update(dict.fromkeys(_identities(path), path))
    return known


def check_outputs(outputs: Iterable[AnyPath], known: Mapping[object, AnyPath]) -> None:
    """Refuses outputs that are one of the `known_inputs`.

    Raises:
        UserError: see `check_inputs_kept`.
    """
    for path in outputs:
        for identity in _identities(path):
            if identity in known:
                raise UserError(
                    f"{shown_path(path)}: this would overwrite the input "
                    f"{shown_path(known[identity])}, choose another name for the output"
                )


def _identities(path: AnyPath) -> list[object]:
    """What two names of one file have in common."""
    try:
        found: list[object] = [os.path.realpath(path)]
        facts = os.stat(path)
    except (OSError, ValueError):  # not there yet, or no name a file can have
        return [os.path.abspath(path)] if "\0" not in str(path) else []
    if stat.S_ISREG(facts.st_mode):
        found.append((facts.st_dev, facts.st_ino))
    return found


def check_output_folder(path: AnyPath) -> None:
    """Refuses, before any work is done, a folder that could not be made or written in.

    Raises:
        UserError: it or a part of its path is a file, or there is no permission.
    """
    if not str(path):
        raise UserError("the folder's name is empty, give one")
    if os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"{path}: this is a file, give a folder")
    _check_parent(path, Path(path) / "file")


def _check_parent(shown: AnyPath, file: Path) -> None:
    """Whether `file` can be made, judged by the nearest folder above it that is there."""
    shown = shown_path(shown)
    try:
        os.lstat(file)
        os.stat(file)
    except ValueError as error:  # NUL, or half of a character
        raise UserError(f"{shown}: no file can have this name, choose another") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{shown}: the name is too long, choose a shorter one") from error
        if error.errno == errno.ELOOP:
            raise UserError(f"{shown}: links lead in a circle, choose another name") from error
    parent = next(folder for folder in file.absolute().parents if os.path.exists(folder))
    if not parent.is_dir():
        raise UserError(f"{shown}: {parent} is a file, not a folder; choose another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{shown}: no permission to write in {parent}; choose another place")


@contextmanager
def atomic_write(path: AnyPath) -> Iterator[Path]:
    """Yields a temporary name in the same folder; it becomes `path` when the block ends well.

    The temporary file keeps the suffix, by which many writers choose their format. After an
    error it is removed and an older file at `path` is untouched. Missing folders are made. If
    `path` stands for one in an object store (`regionroute.remote`), it is uploaded first.
    """
    path = Path(path)
    temporary = remote.temporary_name(path)
    try:
        yield temporary
        if temporary.is_file():
            make_readable(temporary)
        remote.send(temporary, path)
        temporary.replace(path)
    except OSError as error:
        # A write to an open file does not say which, and nobody knows the temporary name.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def make_readable(path: Path) -> None:
    """Gives a file the permissions of a new one: safetensors lets only the owner read its files."""
    path.chmod(0o666 & ~_UMASK)


def write_json(path: AnyPath, obj: Any) -> None:
    """Writes indented JSON; data classes, pydantic models and paths are written as plain values."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, default=_plain)
    write_text(path, text + "\n")


def read_json(path: AnyPath) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: the file is missing or not JSON.
    """
    return parse_json(_read_text(path), shown_path(path))


def parse_json(text: str | bytes, source: str) -> Any:
    """Parses JSON of any origin; nesting and numbers are bounded.

    Args:
        text: the JSON.
        source: names it in errors, such as its file.

    Raises:
        UserError: it is not JSON, or nested deeper than `DEEPEST_JSON`.
    """
    try:
        value = json.loads(text)
        _check_depth([value])
        return value
    except json.JSONDecodeError as error:
        raise UserError(
            f"{source}:{error.lineno}: this is not JSON ({error.msg}), fix or rebuild the file"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
        raise UserError(
            f"{source}: this JSON cannot be read ({error}), rebuild the file"
        ) from error


def _check_depth(value: Any) -> None:
    """Refuses what code that walks the value could not."""
    level = [value]
    for _ in range(DEEPEST_JSON + 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEEPEST_JSON} deep")


def write_jsonl(path: AnyPath, rows: Iterable[Any]) -> None:
    """Writes one JSON value a line."""
    lines = [json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows]
    write_text(path, "".join(lines))


def read_jsonl(path: AnyPath) -> list[dict[str, Any]]:
    """Reads a file of one JSON object a line; empty lines are skipped.

    Raises:
        UserError: the file is missing, or a line (named) is not a JSON object.
    """
    return [parse_json_line(path, number, line) for number, line in numbered_lines(path)]


def numbered_lines(path: AnyPath) -> list[tuple[int, str]]:
    """The non-empty lines of a UTF-8 file with their numbers, counted from 1.

    Raises:
        UserError: the file is missing or not UTF-8 text.
    """
    lines = enumerate(_read_text(path).split("\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def parse_json_line(path: AnyPath, number: int, line: str) -> dict[str, Any]:
    """One line of a JSON-lines file as a dict; `path` and `number` are for the error's sentence.

    Raises:
        UserError: the line is not a JSON object.
    """
    try:
        row = json.loads(line, parse_constant=_no_constant)
        _check_depth([row])
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # refuses halves of characters
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{number}: this line is not JSON ({error.msg} at column {error.colno}), "
            "fix or remove it"
        ) from error
    except (ValueError, RecursionError) as error:  # numbers too long, brackets too deep
        raise UserError(
            f"{path}:{number}: this line cannot be read ({error}), fix or remove it"
        ) from error
    if not isinstance(row, dict):
        raise UserError(f"{path}:{number}: this line must be a JSON object {{...}}")
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def is_hub_id(spec: str) -> bool:
    """Whether a text has the form of a repository's name on the hub."""
    return spec.count("/") == 1 and not spec.startswith((".", "/", "~")) and spec[-1] != "/"


def file_hash(path: AnyPath) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file's bytes.

    Raises:
        UserError: the file is missing or a special one.
    """
    check_input_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def text_hash(text: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_hash(obj: Any) -> str:
    """`text_hash` of `settings_text`: the same for equal settings."""
    return text_hash(settings_text(obj))


def settings_text(obj: Any) -> str:
    """The object as JSON with sorted keys."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(obj: Any) -> Any:
    from pydantic import BaseModel  # not for --help

    if isinstance(obj, BaseModel):
        return obj.model_dump(mode="json")
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return dataclasses.asdict(obj)
    if isinstance(obj, PurePath):
        return obj.as_posix()
    raise TypeError(f"{type(obj).__name__} cannot be written as JSON")


def _read_text(path: AnyPath) -> str:
    check_input_file(path, pipes=True)
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this is not UTF-8 text, save it as UTF-8") from error


def write_text(path: AnyPath, text: str) -> None:
    """Writes text in UTF-8; staged paths in it become the URLs that they stand for."""
    with atomic_write(path) as temporary:
        temporary.write_text(remote.with_urls(text), encoding="utf-8")
