"""Finds a base (folder, hub id or embedded name) and checks that it is complete.

Every way this can fail ends in one sentence; diffusers and transformers answer with tracebacks,
with invented tokenizers, or with random weights.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from regionroute.diffusion.families import EXAMPLES, PIPELINES, Family, named
from regionroute.errors import UserError, first_line, nearest
from regionroute.files import is_hub_id
from regionroute.hub_names import split_revision
from regionroute.models import embedded as nano
from regionroute.models.formats.packed import CONFIG_KEY, is_nf4
from regionroute.pretrained import LOAD_ERRORS

SETTINGS_FILE = "regionroute.json"
RENAMED = {"closer": "refine_crop"}  # keys of bases saved by earlier versions
INDEX_FILE = "model_index.json"
KNOWN = " or ".join(PIPELINES)


@dataclass(frozen=True)
class BaseSettings:
    """Settings of a base: its family's defaults, overridden by ``regionroute.json`` in its folder.

    Attributes:
        steps: model calls for one edit.
        guidance: strength fed to guidance-distilled transformers, or of classifier-free guidance.
        max_text_length: tokens a prompt is padded to, the same in training and inference
            because Flux attends to padding; at most 512.
        resolution: side of the square whose area an image is resized to.
        refine_crop: whether routed edits of larger images restyle the object once more in a crop
            around it, see `regionroute.editing.refine_crop`.
    """

    steps: int = 28
    guidance: float = 3.5
    max_text_length: int = 512
    resolution: int = 1024
    refine_crop: bool = False


def resolve(spec: str) -> Path | str:
    """Where a base's files are: a checked local folder, or the hub id, without ``@revision``.

    Raises:
        UserError: neither an embedded name, nor a pipeline's folder, nor the form of a hub id.
    """
    if spec in nano.NAMES:
        embedded = nano.nano_folder(spec)
        _check_folder(embedded)
        return embedded
    folder = Path(spec).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return folder
    if folder.exists():
        raise UserError(f"base {spec}: this is a file; give the folder that has model_index.json")
    repository = split_revision(spec)[0]
    if not is_hub_id(repository):
        raise UserError(
            f"base {spec!r}: no such folder; give {' or '.join(nano.NAMES)}, a folder with "
            "model_index.json, or a hub id such as "
            f"{' or '.join(EXAMPLES)}"
        )
    return repository


def read_settings(folder: Path) -> BaseSettings:
    """``regionroute.json`` of a base's folder over its family's defaults.

    Raises:
        UserError: not JSON, unknown key, or a value of the wrong kind.
    """
    path = folder / SETTINGS_FILE
    defaults = default_settings(read_index(str(folder), folder))
    if not path.is_file():
        return defaults
    data = {RENAMED.get(key, key): value for key, value in _read_object(path).items()}
    kinds = {
        field.name: type(getattr(BaseSettings(), field.name)) for field in fields(BaseSettings)
    }
    for key, value in data.items():
        if key not in kinds:
            raise UserError(f"{path}: unknown key {key!r}; did you mean {nearest(key, kinds)}?")
        if kinds[key] is bool:
            if not isinstance(value, bool):
                raise UserError(f"{path}: {key} must be true or false, not {value!r}")
            continue
        allowed = (int, float) if kinds[key] is float else (int,)
        if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < math.inf:
            raise UserError(f"{path}: {key} must be a positive number, not {value!r}")
    settings = BaseSettings(**(asdict(defaults) | data))
    if settings.max_text_length > 512:
        raise UserError(f"{path}: max_text_length is at most 512, the pipelines take no more")
    return settings


def default_settings(index: dict[str, Any]) -> BaseSettings:
    """Settings of a base that has only its ``model_index.json``."""
    values: dict[str, Any] = family_in(index).defaults(is_distilled(index))
    return BaseSettings(**values)


def is_distilled(index: dict[str, Any]) -> bool:
    """Whether the base was distilled to few steps without guidance."""
    return bool(index.get("is_distilled", False))


def family_in(index: dict[str, Any]) -> Family:
    """The family of a base, by its ``model_index.json`` as `read_index` gives it."""
    family = named(index["_class_name"])
    assert family is not None, "read_index refuses other pipelines"
    return family


def find_index(spec: str, source: Path | str, revision: str | None = None) -> Path:
    """``model_index.json`` of a folder, or of a repository on the hub, downloaded.

    Args:
        spec: as the user gave it; what follows its ``@`` is a revision.
        source: see `resolve`.
        revision: branch, tag or commit on the hub, None: that of `spec`, or its main branch.

    Raises:
        UserError: a revision of a local folder.
    """
    if isinstance(source, Path):
        if revision is not None:
            raise UserError(
                f"base {spec}: revision {revision!r} is given, but only bases on the hub have "
                "revisions and this one is a local folder: leave it out"
            )
        return source / INDEX_FILE
    # Asked directly: diffusers' own loaders turn every refusal into one vague message.
    revision = revision or split_revision(spec)[1]
    return Path(hf_hub_download(source, INDEX_FILE, revision=revision))


def refuse_quantized(
    spec: str, source: Path | str, networks: Iterable[str], revision: str | None = None
) -> None:
    """Refuse a base that is stored in fewer bits in another way than the transformer in nf4.

    Its weights are packed, and the libraries that unpack them are hidden from quick commands, see
    `regionroute.cli.start`; nf4 is unpacked by `regionroute.models.formats.packed`.

    Args:
        spec: as the user gave it, for errors.
        source: see `resolve`.
        networks: their folders.
        revision: branch, tag or commit on the hub, None: its main branch.

    Raises:
        UserError: naming the network and the format.
    """
    for name in networks:
        file = f"{name}/config.json"
        if isinstance(source, Path):
            path = source / file
        else:
            path = Path(hf_hub_download(source, file, revision=revision))
        config = _read_object(path) if path.is_file() else {}
        stored = config.get(CONFIG_KEY)
        if stored and not (name == "transformer" and isinstance(source, Path) and is_nf4(config)):
            method = stored.get("quant_method") if isinstance(stored, dict) else None
            raise UserError(
                f"base {spec}: its {name} is stored in {method or 'a quantized format'}; give the "
                "base in full precision (or a local folder whose transformer alone is in nf4), and "
                "--quantize nf4 or base.quantize=nf4 to store it in 4 bits while it is used"
            )


def read_index(spec: str, source: Path | str, revision: str | None = None) -> dict[str, Any]:
    """``model_index.json`` of a folder or of a repository on the hub.

    Raises:
        UserError: not JSON, of a pipeline of no known family, or it cannot be had.
    """
    with explained(spec, source):
        index = _read_object(find_index(spec, source, revision))
    found = index.get("_class_name")
    if named(found) is None:
        raise UserError(f"base {spec}: this is a {found}, but editing needs a {KNOWN}")
    return index


@contextlib.contextmanager
def explained(spec: str, source: Path | str) -> Iterator[None]:
    """Turns errors while a base loads into one sentence.

    Raises:
        UserError: in place of any other error of a missing, forbidden or damaged base.
    """
    try:
        yield
    except UserError:
        raise
    except LocalEntryNotFoundError:
        raise UserError(
            f"base {spec}: no such folder here, and the hub cannot be reached; check the path "
            "or the connection, or download it first"
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"base {spec}: the repository on the hub has no such revision; give a branch, a tag or "
            "a commit of it"
        ) from None
    except EntryNotFoundError:
        raise UserError(f"base {spec}: this repository lacks files of a {KNOWN}") from None
    except GatedRepoError:
        raise UserError(
            f"base {spec}: its licence has to be accepted on the hub first; do that at "
            f"https://huggingface.co/{source}, then log in here with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"base {spec}: neither a folder here nor a repository on the hub you may read; check "
            "the name, or log in with `hf auth login`"
        ) from None
    except LOAD_ERRORS as error:
        problem = (
            "its files are damaged, copy it again"
            if isinstance(source, Path)
            else "it could not be fetched from the hub, check the connection"
        )
        raise UserError(f"base {spec}: {problem}: {first_line(error)}") from None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); fix or remove the file") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return data


def _check_folder(folder: Path) -> None:
    """Checks a folder for missing files before anything is loaded."""
    if not (folder / INDEX_FILE).is_file():
        raise UserError(
            f"base {folder}: no model_index.json; give a folder saved by "
            "save_pretrained of a pipeline"
        )
    family = family_in(read_index(str(folder), folder))
    for name in family.networks:
        part = folder / name
        if not (part / "config.json").is_file():
            raise UserError(f"base {folder}: {name}/config.json is missing; copy the whole folder")
        if not any(part.glob("*.safetensors")) and not any(part.glob("*.bin")):
            raise UserError(f"base {folder}: {name} has no weights; copy the whole folder")
    for name, files in family.small_files.items():
        # transformers creates an empty tokenizer when there is none.
        if not any((folder / name / file).is_file() for file in files):
            raise UserError(
                f"base {folder}: {name} has no {' or '.join(files)}; copy the whole folder"
            )
