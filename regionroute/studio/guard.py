"""Middleware in front of Gradio's routes: login, size limits, and no paths of this machine.

Gradio addresses uploads by their path on the server. Answers get another folder of the same length
in its place, and requests the real one again, so that clients never see where files are.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Without these the login page could not be shown; none of them runs or reveals anything.
OPEN_PATHS = ("/", "/login", "/logout", "/theme.css", "/favicon.ico", "/robots.txt")
OPEN_FOLDERS = ("/assets/", "/static/", "/svelte/")
API = "/gradio_api"
STARTUP = f"{API}/startup-events"  # asked once by the server itself while it starts
# Gradio writes the list of endpoints into the login page as well.
ENDPOINTS = re.compile(rb"(?<=window\.gradio_api_info = )\{.*?\}(?=;</script>)", re.DOTALL)
NO_ENDPOINTS = b'{"named_endpoints":{},"unnamed_endpoints":{}}'
TEXTS = (b"application/json", b"text/", b"application/javascript")
SLACK = 2**20  # bytes of a request besides its file
MOST_JSON = 64 * 2**20  # bytes of a JSON request, which may hold painted layers
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"SAMEORIGIN"),
)


class Guard:
    """ASGI middleware in front of a Gradio app.

    Args:
        app: the app.
        folder: where uploads and results are; its name appears in no answer.
        max_bytes: largest file of an upload.
        login: whether every route but the login page needs a logged-in user.
    """

    def __init__(self, app: Any, folder: Path, max_bytes: int, login: bool) -> None:
        self.app = app
        self.real = str(folder)
        self.public = _public_name(self.real)
        self.max_bytes = max_bytes
        self.login = login
        self.started = False

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        first, self.started = not self.started, self.started or path == STARTUP
        itself = first and path == STARTUP
        stranger = self.login and not (itself or _logged_in(scope))
        if stranger and not _is_open(path):
            await _refuse(send, 401, "Log in first")
            return
        if "file=http" in path or "/proxy=" in path:
            await _refuse(send, 403, "This server fetches no addresses for its users")
            return
        if self.real in path:  # only its public name is a name
            await _refuse(send, 403, "File not allowed")
            return
        headers = dict(scope["headers"])
        is_json = headers.get(b"content-type", b"").startswith(b"application/json")
        limit = max(MOST_JSON, self.max_bytes) if is_json else self.max_bytes
        if int(headers.get(b"content-length", b"0") or 0) > limit + SLACK:
            await _refuse(send, 413, f"A file may have at most {self.max_bytes / 2**20:g} MB")
            return
        scope = {**scope, "path": path.replace(self.public, self.real)}
        scope["raw_path"] = scope.get("raw_path", b"").replace(*self._pair(inwards=True))
        receive = self._receive(receive, limit + SLACK, is_json)
        await self.app(scope, receive, self._send(send, stranger=stranger))

    def _pair(self, *, inwards: bool) -> tuple[bytes, bytes]:
        """What to replace, and by what."""
        public, real = self.public.encode(), self.real.encode()
        return (public, real) if inwards else (real, public)

    def _receive(self, receive: Any, limit: int, is_json: bool) -> Any:
        """Requests that end at the limit; JSON in one piece, with the real names."""
        seen = 0

        async def limited() -> dict[str, Any]:
            nonlocal seen
            found: dict[str, Any] = await receive()
            seen += len(found.get("body", b""))
            return {"type": "http.disconnect"} if seen > limit else found

        async def whole() -> dict[str, Any]:
            body = b""
            while True:
                found = await limited()
                if found["type"] != "http.request":
                    return found
                body += found.get("body", b"")
                if not found.get("more_body"):
                    return {**found, "body": body.replace(*self._pair(inwards=True))}

        return whole if is_json else limited

    def _send(self, send: Any, *, stranger: bool) -> Any:
        """Answers with public names, for strangers without endpoints; images pass as they are."""
        text = False

        async def renamed(found: dict[str, Any]) -> None:
            nonlocal text
            if found["type"] == "http.response.start":
                kinds = [value for key, value in found["headers"] if key == b"content-type"]
                text = any(kind.startswith(TEXTS) for kind in kinds)
                found = {**found, "headers": [*found["headers"], *SECURITY_HEADERS]}
            elif text and found["type"] == "http.response.body":
                body = found.get("body", b"").replace(*self._pair(inwards=False))
                if stranger:
                    body = ENDPOINTS.sub(_no_endpoints, body)
                found = {**found, "body": body}
            await send(found)

        return renamed


def _public_name(real: str) -> str:
    """A folder name of the same length, so that no length of an answer changes."""
    return "/" + ("files" * len(real))[: len(real) - 1]


def _no_endpoints(found: re.Match[bytes]) -> bytes:
    """An empty list of endpoints, of the same length so that no length of an answer changes."""
    return NO_ENDPOINTS.ljust(len(found[0]))


def _is_open(path: str) -> bool:
    """Whether the login page needs a path."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS) or path == f"{API}/login_check"


def _logged_in(scope: dict[str, Any]) -> bool:
    """Whether the request carries the cookie of a login, as Gradio sets it."""
    from starlette.requests import Request

    app = scope["app"]
    cookies = Request(scope).cookies
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(cookies.get(name) in app.tokens for name in names if cookies.get(name))


async def _refuse(send: Any, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence, "error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def delete_old(folder: Path, age: float, keep: frozenset[Path] = frozenset()) -> int:
    """Delete the files of a folder that are older than `age` seconds, and folders left empty.

    Args:
        folder: of uploads and results.
        age: in seconds.
        keep: files that stay, such as the page's own examples.

    Returns:
        The number of files deleted.
    """
    oldest, deleted = time.time() - age, 0
    for path in sorted(folder.rglob("*"), reverse=True):  # files before the folders they are in
        try:
            if path.is_dir():
                if path.stat().st_mtime < oldest and not any(path.iterdir()):
                    path.rmdir()
            elif path not in keep and path.lstat().st_mtime < oldest:
                path.unlink()
                deleted += 1
        except OSError:  # somebody else was faster
            continue
    return deleted


class Sweeper:
    """Deletes old files of a folder in the background, and all of them at the end.

    Args:
        folder: of uploads and results.
        age: seconds after which files are deleted.
        keep: files that stay until the end.
    """

    def __init__(self, folder: Path, age: float, keep: Iterable[Path] = ()) -> None:
        self._folder, self._age, self._keep = folder, age, frozenset(keep)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="sweeper")

    def start(self) -> None:
        """Look every tenth of the age, at least every ten minutes."""
        self._thread.start()

    def close(self) -> None:
        """Stop, and delete the folder."""
        self._stop.set()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self) -> None:
        while not self._stop.wait(min(self._age / 10, 600)):
            delete_old(self._folder, self._age, self._keep)
