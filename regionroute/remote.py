"""Files in object stores, staged in a local folder for commands that read and write files.

What ``s3://bucket/photos`` names is at one place below the staging folder
(``$REGIONROUTE_STAGING``, else ``~/.cache/regionroute/staging``), and a command sees that path
alone. What is there is downloaded before the command starts. What the command writes is uploaded
by the process that wrote it before it gets its name (`regionroute.files.atomic_write`): a file
that has a name here is in the store, and a run that dies resumes from there. The store is the
truth, the staging folder a cache of it, where the time of a file names its version. Credentials
are those that fsspec's libraries find in the environment.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any

from regionroute.errors import UserError
from regionroute.stores import attempt, connect

PROTOCOLS = "s3|gs|gcs|az|abfs|memory|file"
ARGUMENT = re.compile(rf"^(.*=)?((?:{PROTOCOLS})://\S*)$")  # also --out=URL and NAME=URL
FOLDER, RUN = "REGIONROUTE_STAGING", "REGIONROUTE_STAGING_RUN"  # in the environment
LEFT_OVER = re.compile(r"\.[0-9a-f]{12}\.tmp(\.\w+)?")
DOWNLOADS = 16  # at a time
UPLOAD_SECONDS = 30.0  # between two uploads of a file that grows
LISTS = (".jsonl", ".json")  # files that name others, relative to their folder
VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "created")
PAST = 7 * 10**17  # ns after 1970: times of files are before this one in 1992


def staging() -> Path:
    """The staging folder, an absolute path."""
    named = os.environ.get(FOLDER) or Path.home() / ".cache" / "regionroute" / "staging"
    return Path(os.path.abspath(named))


def local_path(url: str) -> Path:
    """Where a URL is staged.

    Raises:
        UserError: a part of it cannot be a file's name.
    """
    protocol, _, rest = url.partition("://")
    parts = rest.strip("/").split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise UserError(f"{url}: a part of this name cannot be a file's, rename the object")
    return staging().joinpath(protocol, *parts)


def temporary_name(path: Path) -> Path:
    """A name in the folder of a path, which is made if it is missing, for what will get the path.

    It keeps the suffix, by which many writers choose their format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{uuid.uuid4().hex[:12]}.tmp{path.suffix}")


def is_left_over(path: PurePath) -> bool:
    """Whether this is a `temporary_name`, of a process that was killed or is busy."""
    return LEFT_OVER.fullmatch(path.name) is not None


def with_urls(text: str) -> str:
    """A text with URLs in place of staged paths."""
    folder = f"{os.environ[FOLDER]}{os.sep}" if RUN in os.environ else None
    if folder is None or folder not in text:
        return text
    staged = re.compile(rf"{re.escape(folder)}({PROTOCOLS})/")
    return staged.sub(lambda found: "file:///" if found[1] == "file" else f"{found[1]}://", text)


def url_of(path: Path) -> str | None:
    """The URL that a staged path stands for; None for any other path."""
    shown = os.path.abspath(path)
    found = with_urls(shown)
    return None if found == shown else found


def staged(main: Callable[[list[str] | None], int]) -> Callable[[list[str] | None], int]:
    """Let the arguments of a command be URLs.

    Args:
        main: takes the argument list (None: the process's own) and returns the exit code.

    Returns:
        A function of the same form, see `run_staged`.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        arguments = sys.argv[1:] if argv is None else argv
        if not any(ARGUMENT.match(argument) for argument in arguments):
            return main(argv)
        return run_staged(main, arguments)

    return run


def run_staged(main: Callable[[list[str] | None], int], arguments: list[str]) -> int:
    """Run a command with local paths in place of URLs.

    Args:
        main: takes the arguments and returns the exit code.
        arguments: some are URLs, or end in ``=URL``.

    Raises:
        UserError: a URL cannot be staged; or what `main` raises, with URLs in it.
        StoreError: one cannot be read or written.
    """
    found = [(argument, ARGUMENT.match(argument)) for argument in arguments]
    local = [f"{at[1] or ''}{local_path(at[2])}" if at else argument for argument, at in found]
    with _run():
        for url in _sources(at[2].rstrip("/") for _, at in found if at):
            download(url)
        try:
            return main(local)
        except UserError as error:
            raise UserError(with_urls(str(error))) from error
        finally:
            _upload_grown()


@contextmanager
def _run() -> Iterator[None]:
    """Name the staging folder in the environment, and a mark to know it by on other nodes."""
    before = {name: os.environ.get(name) for name in (FOLDER, RUN)}
    os.environ[FOLDER] = str(staging())
    staging().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".run-", dir=staging()) as mark:
        os.environ[RUN] = mark
        try:
            yield
        finally:
            for name, value in before.items():
                del os.environ[name]
                os.environ.update({name: value} if value else {})


def environment() -> dict[str, str]:
    """What workers on other nodes need in their environment."""
    return {name: os.environ[name] for name in (FOLDER, RUN) if RUN in os.environ}


def enter(variables: Mapping[str, str]) -> None:
    """Use the staging folder of the process that started this one.

    Args:
        variables: `environment` of that process.

    Raises:
        UserError: the folder of this node is another one.
    """
    if variables and not os.path.isdir(variables[RUN]):
        raise UserError(
            f"{variables[FOLDER]}: not all nodes share this folder, in which files of object "
            f"stores are staged: set {FOLDER} to one that they share"
        )
    os.environ.update(variables)


def _sources(urls: Iterable[str]) -> list[str]:
    """What to download: for a list of files its folder, for what is in another nothing."""
    found = set()
    for url in urls:
        if url.endswith(LISTS):
            folder = url.rpartition("/")[0]
            if "/" not in folder.partition("://")[2]:
                raise UserError(
                    f"{url}: its folder is read with it, and that is the whole bucket: put the "
                    "file and what it names into a folder"
                )
            url = folder
        found.add(url)
    return sorted(url for url in found if not any(url.startswith(f"{o}/") for o in found))


def download(url: str) -> None:
    """Make what is staged of a URL, of a file or a folder if any, equal to what the store has.

    Raises:
        UserError: the protocol is unknown, or a name in it cannot be a file's.
        StoreError: it cannot be read.
    """
    from concurrent.futures import ThreadPoolExecutor

    from tqdm import tqdm

    files, root = connect(url)

    def listed() -> dict[str, Any]:
        files.invalidate_cache()
        found: dict[str, Any] = files.find(root, detail=True)
        return found

    there: dict[Path, tuple[str, int]] = {}
    for name, facts in attempt(url, listed).items():
        ours = name == root or name.startswith(f"{root}/")
        if ours and name[-1] != "/" and not is_left_over(Path(name)):
            there[local_path(f"{url}{name[len(root) :]}")] = name, version_of(facts)
    here = local_path(url)
    for path in here.rglob("*") if here.is_dir() else [here]:
        if path.is_file() and path not in there and not is_left_over(path):
            path.unlink()
    missing = [(path, *found) for path, found in there.items() if _version_here(path) != found[1]]

    def fetch(wanted: tuple[Path, str, int]) -> None:
        path, name, version = wanted
        temporary = temporary_name(path)
        try:
            attempt(f"{url}{name[len(root) :]}", lambda: files.get_file(name, str(temporary)))
            os.utime(temporary, ns=(version, version))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    bar = tqdm(total=len(missing), desc=f"download {url}", unit="file", disable=not missing)
    with bar, ThreadPoolExecutor(DOWNLOADS) as pool:
        try:
            for _ in pool.map(fetch, missing):
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def send(temporary: Path, path: Path) -> None:
    """Upload what is about to get a staged path; nothing happens for another path.

    Args:
        temporary: the file; its time then names its version.
        path: the name that it will get.

    Raises:
        StoreError: it cannot be written.
    """
    url = url_of(path)
    if url is None:
        return
    files, name = connect(url)

    def write() -> None:
        if "file" not in files.protocol:
            files.put_file(str(temporary), name)  # shown once all of it is there
            return
        other = temporary_name(Path(name))
        other.write_bytes(temporary.read_bytes())
        other.replace(name)

    attempt(url, write)
    version = version_of(attempt(url, lambda: files.info(name)))
    os.utime(temporary, ns=(version, version))


_grown: dict[Path, float] = {}  # files that were appended to, and when they were uploaded last


def grown(path: Path) -> None:
    """Upload a file that was appended to: now and then, and when the command ends."""
    now = time.monotonic()
    if url_of(path) and now - _grown.setdefault(path, now) >= UPLOAD_SECONDS:
        send(path, path)
        _grown[path] = now


def _upload_grown() -> None:
    while _grown:
        path, _ = _grown.popitem()
        send(path, path)


def version_of(facts: Mapping[str, Any]) -> int:
    """The time, in ns, that a staged file gets for a version of its object.

    Args:
        facts: what fsspec says of the object: its size and hash, else its time.
    """
    known = next((facts[name] for name in VERSIONS if facts.get(name)), "")
    known = known.timestamp() if isinstance(known, datetime) else known
    digest = hashlib.sha256(f"{known} {facts.get('size')}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % PAST


def _version_here(path: Path) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
