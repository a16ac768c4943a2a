"""Upload a folder to the Hugging Face Hub: experts as a model, training pairs as a data set."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regionroute.errors import UserError, first_line, printable
from regionroute.files import AnyPath

RepoType = Literal["model", "dataset"]
PLACES = {"model": "https://huggingface.co/", "dataset": "https://huggingface.co/datasets/"}


@dataclass(frozen=True)
class Upload:
    """What goes where.

    Attributes:
        repo: id on the hub, ``owner/name``.
        kind: "model" or "dataset".
        folder: whose files are uploaded.
        files: paths relative to the folder, sorted.
        size: of all files, in bytes.
        private: whether a new repository is private.
    """

    repo: str
    kind: RepoType
    folder: Path
    files: tuple[str, ...]
    size: int
    private: bool

    def describe(self) -> str:
        """The upload in a few lines, for a dry run."""
        access = "private" if self.private else "public"
        lines = [f"{len(self.files)} files, {self.size / 1e6:.1f} MB, to {PLACES[self.kind]}"]
        lines[0] += f"{self.repo} ({access} if it is new)"
        shown = self.files[:20]
        more = len(self.files) - len(shown)
        lines += [f"  {name}" for name in shown]
        return printable("\n".join([*lines, f"  … {more} more"] if more else lines))


def plan_upload(
    folder: AnyPath, repo: str, kind: RepoType, patterns: Sequence[str], *, private: bool = True
) -> Upload:
    """List the files of an upload, without a network.

    Args:
        folder: that holds them.
        repo: id on the hub, ``owner/name``.
        kind: "model" or "dataset".
        patterns: of relative paths, as in `fnmatch`, where ``*`` also matches ``/``.
        private: whether a new repository is private; an existing one stays as it is.

    Raises:
        UserError: the id cannot be one of the hub, or no file matches.
    """
    check_repo(repo)
    folder = Path(folder)
    names = sorted(
        name
        for name in (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        and (folder / name).is_file()
    )
    if not names:
        raise UserError(f"{folder}: there is nothing to upload, make it first")
    size = sum((folder / name).stat().st_size for name in names)
    return Upload(repo, kind, folder, tuple(names), size, private)


def check_repo(repo: str) -> None:
    """Refuse what is no id of the hub.

    Raises:
        UserError: it is not ``owner/name``, or has characters that the hub does not take.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{repo}: this is no repository of the hub ({error})") from error
    if repo.count("/") != 1:
        raise UserError(f"{repo}: name the repository as OWNER/NAME, for example me/{repo}")


def push(upload: Upload) -> str:
    """Upload; makes the repository if there is none. Needs ``hf auth login`` or ``HF_TOKEN``.

    Returns:
        Its address.

    Raises:
        UserError: no token, no permission, or no network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    # Of the hub's HTTP library, whose name varies, and OSError.
    unreachable: tuple[type[BaseException], ...] = HfHubHTTPError.__bases__
    api = HfApi()
    try:
        api.create_repo(upload.repo, repo_type=upload.kind, private=upload.private, exist_ok=True)
        api.upload_folder(
            repo_id=upload.repo,
            repo_type=upload.kind,
            folder_path=upload.folder,
            allow_patterns=[glob.escape(name) for name in upload.files],
            commit_message="Upload with regionroute",
        )
    except (LocalTokenNotFoundError, HfHubHTTPError) as error:
        raise UserError(
            f"{upload.repo}: the hub refused the upload; log in with `hf auth login` as somebody "
            f"who may write there ({first_line(error)})"
        ) from error
    except unreachable as error:
        raise UserError(
            f"{upload.repo}: the hub cannot be reached; try again with a network, what is uploaded "
            f"is kept ({error})"
        ) from error
    return f"{PLACES[upload.kind]}{upload.repo}"
