"""Models on the hub by name, and by revision: ``owner/name@revision``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regionroute.files import is_hub_id


def split_revision(name: str) -> tuple[str, str | None]:
    """Split a name into the repository and its revision.

    Args:
        name: a folder, ``owner/name``, or ``owner/name@revision`` with a branch, tag or commit.

    Returns:
        Folder or repository, and the revision; None: its main branch, or a folder.
    """
    repository, _, revision = name.partition("@")
    if not revision or Path(name).expanduser().exists() or not is_hub_id(repository):
        return name, None
    return repository, revision


def hub_arguments(name: str) -> tuple[str, dict[str, Any]]:
    """Arguments of ``from_pretrained`` of transformers and diffusers for a name.

    Args:
        name: see `split_revision`; a folder wins over a repository.

    Returns:
        Folder or repository, and the keyword arguments: a folder is never looked for on the hub.
    """
    source, revision = split_revision(name)
    where: dict[str, Any] = {"local_files_only": Path(name).expanduser().is_dir()}
    if revision is not None:
        where["revision"] = revision
    return source, where


def hub_commit(name: str, index: str = "config.json") -> str | None:
    """The commit that a name means now, so that all parts are loaded from the same one.

    Args:
        name: see `split_revision`.
        index: a small file of the repository, which is downloaded.

    Returns:
        The commit, or the revision where the hub's client does not tell; None for a folder.

    Raises:
        OSError: the hub cannot be reached, or has no such repository, revision or file.
    """
    from huggingface_hub import hf_hub_download

    if Path(name).expanduser().is_dir():
        return None
    source, revision = split_revision(name)
    return commit_of(Path(hf_hub_download(source, index, revision=revision))) or revision


def hub_head(name: str) -> str:
    """The name with the commit that its revision means now, for a repository of unknown files.

    Args:
        name: see `split_revision`.

    Returns:
        ``owner/name@commit``; a folder or a file as it is.

    Raises:
        OSError: the hub cannot be reached, or has no such repository or revision.
    """
    from huggingface_hub import HfApi

    source, revision = split_revision(name)
    if Path(name).expanduser().exists() or not is_hub_id(source):
        return name
    return used_name(name, HfApi().model_info(source, revision=revision).sha)


def commit_of(file: Path) -> str | None:
    """The commit of a file in the hub's cache (``snapshots/<commit>/<file>``), None elsewhere."""
    return file.parent.name if file.parent.parent.name == "snapshots" else None


def used_name(name: str, commit: str | None) -> str:
    """The name to write down: with the commit that was loaded, where one is known."""
    source, revision = split_revision(name)
    return f"{source}@{commit or revision}" if commit or revision else name


def commit_of_model(model: Any) -> str | None:
    """The commit that a network of transformers was loaded from, None for a folder."""
    found = getattr(getattr(model, "config", None), "_commit_hash", None)
    return found if isinstance(found, str) else None
