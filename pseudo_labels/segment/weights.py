"""Small networks as files: where they are looked for, how they are fetched, how they are run."""

import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch

from regionroute.errors import UserError, first_line
from regionroute.files import atomic_write, file_hash, text_hash

_WHOLE = 64 * 2**20  # bytes up to which a file is hashed as a whole
_END = 2**20  # bytes of either end that stand for a larger one


@dataclass(frozen=True)
class WeightsFile:
    """A published file of weights.

    Attributes:
        name: its file name.
        url: where it can be had.
        md5: first hexadecimal digits of its MD5, against broken downloads.
    """

    name: str
    url: str
    md5: str


def weights_folders() -> list[Path]:
    """Where files are looked for: the folders of rembg, and torch's, where they are fetched to."""
    home = Path.home()
    folders = [
        Path(os.environ["U2NET_HOME"]) if os.environ.get("U2NET_HOME") else home / ".u2net",
        Path(os.environ.get("REMBG_HOME", home / ".rembg")) / "models" / "u2netp",
        Path(torch.hub.get_dir()) / "checkpoints",
    ]
    return [folder.expanduser() for folder in folders]


def find_weights(file: WeightsFile, given: str | None = None) -> Path:
    """The file on this machine; fetched if it is nowhere.

    Args:
        file: which one.
        given: the user's own path to it, None to look for it.

    Returns:
        Its path.

    Raises:
        UserError: the given path is no file, or it cannot be fetched.
    """
    if given is not None:
        if not Path(given).expanduser().is_file():
            raise UserError(f"{given}: no such file of weights, it can be had at {file.url}")
        return Path(given).expanduser()
    folders = weights_folders()
    for folder in folders:
        if (folder / file.name).is_file():
            return folder / file.name
    return _fetch(file, folders[-1] / file.name)


def _fetch(file: WeightsFile, path: Path) -> Path:
    try:
        with atomic_write(path) as temporary:
            torch.hub.download_url_to_file(file.url, str(temporary))
            with temporary.open("rb") as fetched:
                digest = hashlib.file_digest(fetched, "md5").hexdigest()
            if not digest.startswith(file.md5):
                raise UserError(f"{file.url}: the download is damaged, try again")
    except OSError as error:
        raise UserError(
            f"{file.name}: it is not on this machine and could not be fetched ({error}); get "
            f"{file.url} and put it into {path.parent}, or name the file, see "
            "`regionroute label --help`"
        ) from error
    return path


@functools.cache
def onnx_session(path: Path) -> onnxruntime.InferenceSession:
    """One session a process and file, on one thread, so that sums are the same on any machine.

    Raises:
        UserError: the file is damaged or no ONNX network.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for every way to fail
        raise UserError(
            f"{path}: this is no ONNX network, or it is damaged ({first_line(error)})"
        ) from error


@functools.cache
def fingerprint(source: str) -> str:
    """What identifies weights: a file, a folder of them, or a hub id.

    Large files count by their size and both ends: reading gigabytes would cost more than the
    rest of a run in which nothing is left to do.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _file_print(path)
    if path.is_dir():
        files: Sequence[Path] = sorted(item for item in path.rglob("*") if item.is_file())
        return text_hash(
            "\n".join(f"{item.relative_to(path)} {_file_print(item)}" for item in files)
        )
    return f"hub {source}"


def _file_print(path: Path) -> str:
    size = path.stat().st_size
    if size <= _WHOLE:
        return file_hash(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_END))
        file.seek(-_END, os.SEEK_END)
        digest.update(file.read(_END))
    return digest.hexdigest()[:16]
