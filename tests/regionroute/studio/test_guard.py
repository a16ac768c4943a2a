"""In front of the routes: logins, limits, names of places; and the deletion of old files."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the studio needs gradio, which needs starlette")

from regionroute.studio.guard import Guard, Sweeper, delete_old


class App:
    """Stands for Gradio's app: answers with what it was asked, as JSON or as an image."""

    cookie_id = "id"
    tokens = {"secret": "ada"}  # noqa: RUF012

    def __init__(self, folder: Path, kind: bytes = b"application/json") -> None:
        self.folder, self.kind = folder, kind

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        found = await receive()
        gone = found["type"] != "http.request"
        answer = {
            "path": scope["path"], "body": found.get("body", b"").decode(),
            "file": f"{self.folder}/a.png", "gone": gone,
        }  # fmt: skip
        body = json.dumps(answer).encode()
        headers = [(b"content-type", self.kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def ask(
    app: App, path: str, *, login: bool = False, cookie: str = "", body: bytes = b"",
    chunks: int = 1, guard: Guard | None = None, **headers: str,
) -> tuple[int, dict[str, Any], dict[bytes, bytes]]:  # fmt: skip
    """Status, answer and headers of a request."""
    guard = guard or Guard(app, app.folder, max_bytes=1000, login=login)
    given = {"content-type": "application/json"} | {
        key.replace("_", "-"): value for key, value in headers.items()
    }
    given |= {"cookie": f"access-token-id={cookie}"} if cookie else {}
    scope = {
        "type": "http", "path": path, "raw_path": path.encode(), "app": app, "method": "POST",
        "headers": [(key.encode(), value.encode()) for key, value in given.items()],
    }  # fmt: skip
    size = max(1, -(-len(body) // chunks))
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(found: dict[str, Any]) -> None:
        sent.append(found)

    asyncio.run(guard(scope, receive, send))
    content = b"".join(part.get("body", b"") for part in sent[1:])
    found = dict(sent[0]["headers"])
    assert int(found[b"content-length"]) == len(content)
    return sent[0]["status"], json.loads(content), found


@pytest.fixture
def app(tmp_path: Path) -> App:
    return App(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "/config", "/gradio_api/info", "/gradio_api/queue/join", "/gradio_api/call/edit",
        "/gradio_api/upload", "/gradio_api/cancel", "/gradio_api/file=x", "/gradio_api/mcp/sse",
        "/gradio_api/heartbeat/x", "/gradio_api/app_id",
        "/gradio_api/reset", "/manifest.json", "/monitoring", "/anything",
    ],
)  # fmt: skip
def test_nothing_answers_without_a_login(app: App, path: str) -> None:
    assert ask(app, path, login=True)[0] == 401
    assert ask(app, path, login=True, cookie="wrong")[0] == 401
    assert ask(app, path, login=True, cookie="secret")[0] == 200


def test_the_server_itself_may_start_once(app: App) -> None:
    guard = Guard(app, app.folder, max_bytes=1000, login=True)
    path = "/gradio_api/startup-events"
    statuses = [ask(app, path, guard=guard)[0] for _ in range(2)]
    assert statuses == [200, 401]


def test_the_login_page_is_shown(app: App) -> None:
    for path in ("/", "/login", "/assets/index.js", "/theme.css"):
        assert ask(app, path, login=True)[0] == 200


def test_the_login_page_lists_no_endpoints(app: App) -> None:
    listed = b'{"named_endpoints":{"/edit":{"a":"};"}},"unnamed_endpoints":{}}'
    page = b"<script>window.gradio_api_info = " + listed + b";</script><p>log in"

    async def asked(cookie: str) -> bytes:
        sent: list[dict[str, Any]] = []

        async def send(found: dict[str, Any]) -> None:
            sent.append(found)

        async def html(scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"content-type", b"text/html"), (b"content-length", b"%d" % len(page))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": page})

        headers = [(b"cookie", b"access-token-id=" + cookie.encode())]
        scope = {"type": "http", "path": "/", "app": app, "headers": headers}
        await Guard(html, app.folder, max_bytes=1000, login=True)(scope, None, send)
        return bytes(sent[1]["body"])

    stranger = asyncio.run(asked("wrong"))
    assert b"/edit" not in stranger
    assert stranger.endswith(b"<p>log in")
    assert len(stranger) == len(page)
    assert asyncio.run(asked("secret")) == page


def test_answers_name_no_folder_and_requests_get_the_real_one(app: App) -> None:
    status, answer, headers = ask(app, "/gradio_api/call/edit")
    assert status == 200
    assert str(app.folder) not in json.dumps(answer)
    public = answer["file"].removesuffix("/a.png")
    body = json.dumps({"path": f"{public}/a.png"}).encode()
    again = ask(app, f"/gradio_api/file={public}/a.png", body=body, chunks=7)[1]
    assert again["path"] == f"/gradio_api/file={public}/a.png"  # renamed in the answer once more
    assert json.loads(again["body"]) == {"path": f"{public}/a.png"}
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert ask(app, f"/gradio_api/file={app.folder}/a.png")[0] == 403


def test_images_pass_unchanged(tmp_path: Path) -> None:
    answer = ask(App(tmp_path, b"image/png"), "/x")[1]
    assert answer["file"] == f"{tmp_path}/a.png"


def test_addresses_are_not_fetched(app: App) -> None:
    assert ask(app, "/gradio_api/file=http://169.254.169.254/")[0] == 403
    assert ask(app, "/gradio_api/proxy=https://x.hf.space/")[0] == 403


def test_large_requests_are_refused(app: App) -> None:
    kind = "multipart/form-data"
    large = str(3 * 2**20)
    assert ask(app, "/gradio_api/upload", content_type=kind, content_length=large)[0] == 413
    # Without a length, what comes is counted.
    body = b"x" * (2 * 2**20)
    assert ask(app, "/gradio_api/upload", content_type=kind, body=body)[1]["gone"]
    assert not ask(app, "/gradio_api/upload", content_type=kind, body=b"x" * 900)[1]["gone"]


def test_old_files_are_deleted_and_the_pages_own_kept(tmp_path: Path) -> None:
    names = ("uploads/old.png", "uploads/new.png", "own/old.png")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    then = time.time() - 100
    for name in names[::2]:
        os.utime(tmp_path / name, (then, then))
    assert delete_old(tmp_path, 50, frozenset([tmp_path / "own/old.png"])) == 1
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["new.png", "old.png"]
    assert (tmp_path / "own/old.png").is_file()


def test_the_sweeper_deletes_in_the_background_and_everything_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    folder.mkdir()
    upload, own = folder / "upload.png", folder / "example.png"
    upload.write_text("x")
    own.write_text("x")
    sweeper = Sweeper(folder, 0.5, [own])
    sweeper.start()
    end = time.monotonic() + 60
    while upload.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not upload.exists()
    assert own.exists()
    sweeper.close()
    assert not folder.exists()
