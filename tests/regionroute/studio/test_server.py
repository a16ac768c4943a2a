"""A running server, asked by `gradio_client`: endpoints, limits, logins."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the studio needs gradio")

import httpx
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from regionroute.studio.guard import _is_open
from regionroute.studio.server import Server, start_server
from regionroute.studio.settings import StudioSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ENDPOINTS = {
    "/edit", "/compare", "/cancel", "/styles", "/settings", "/segment", "/score", "/samples",
    "/exclude",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, tiny_experts: Path
) -> Iterator[Server]:
    users = tmp_path_factory.mktemp("auth") / "users"
    users.write_text("ada:secret\n")
    settings = StudioSettings(
        port=0, bases=[str(tiny_base)], experts={"two": str(tiny_experts)}, device="cpu",
        auth=str(users), max_upload_mb=0.5, max_pixels=100_000, segmenter="grabcut", mcp=True,
    )  # fmt: skip
    running = start_server(settings)
    yield running
    running.close()
    assert not running.folder.exists()


@pytest.fixture(scope="module")
def client(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Client:
    folder = tmp_path_factory.mktemp("downloads")
    return Client(server.url, auth=("ada", "secret"), verbose=False, download_files=str(folder))


def image(path: Path, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def edit(client: Client, photo: Path, **options: Any) -> Any:
    given = {"experts": "two", "mode": "routed"} | options
    return client.predict(
        handle_file(photo), ["cat"], ["lines"], given, None, None, api_name="/edit"
    )


def test_every_action_is_a_documented_endpoint(client: Client) -> None:
    found = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(found) == ENDPOINTS
    assert all(entry["description"].strip() for entry in found.values())


def test_agents_get_every_action_as_a_tool(client: Client, server: Server) -> None:
    with httpx.Client(base_url=server.url, cookies=dict(client.cookies)) as user:
        tools = user.get("gradio_api/mcp/schema").json()
    names = {tool["name"] for tool in tools}
    assert {name.rpartition("/")[2] for name in ENDPOINTS} <= {
        one.removeprefix("RegionRoute_Studio_") for one in names
    }, names


def test_an_edit_and_its_settings(client: Client, server: Server, tmp_path: Path) -> None:
    photo = image(tmp_path / "my photo.png")
    edited, shown, regions, settings = edit(client, photo, seed=5, force=True)
    assert Image.open(edited).size == Image.open(shown).size == (64, 48)
    assert len(regions) == 1
    assert (settings["seed"], settings["experts"], settings["force"]) == (5, "two", True)
    assert str(server.folder) not in json.dumps(settings)
    read = client.predict(handle_file(edited), api_name="/settings")
    assert (read["seed"], read["object"], read["style"]) == (5, "cat", "lines")
    scores = client.predict(
        handle_file(photo), handle_file(edited), handle_file(regions[0]), None, api_name="/score"
    )
    assert any(name.startswith("Background error") for name, _, _ in scores)


def test_other_endpoints(client: Client, tmp_path: Path) -> None:
    assert client.predict("", "two", api_name="/styles") == ["pixel-art", "lines"]
    assert client.predict(api_name="/cancel") is False
    photo = image(tmp_path / "photo.png")
    mask = client.predict(handle_file(photo), 30, 20, api_name="/segment")
    assert Image.open(mask).size == (64, 48)
    edits, settings = client.predict(
        handle_file(photo), ["cat"], ["lines"], "0-1", "0.5, 1",
        {"experts": "two", "mode": "routed"},
        api_name="/compare",
    )  # fmt: skip
    assert len(edits) == 4
    assert [(one["seed"], one["strength"]) for one in settings] == [
        (0, 0.5), (0, 1.0), (1, 0.5), (1, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"style": "x"}, "Option 'style' is unknown"),
        ({"seed": "one"}, "Option seed"),
        ({"force": 1}, "Option force"),
        ({"steps": 10**6}, "this server allows"),
        ({"base": "/etc"}, "this server offers"),
        ({"experts": "/etc"}, "this server offers"),
    ],
)
def test_wrong_requests_get_one_sentence(
    client: Client, tmp_path: Path, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(AppError, match=problem):
        edit(client, image(tmp_path / "photo.png"), **options)


def test_bombs_and_other_files_are_refused(client: Client, server: Server, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(bomb_png(40_000, 40_000))
    text = tmp_path / "text.png"
    text.write_text("no image")
    for file, problem in ((bomb, "too many"), (text, "cannot be read")):
        with pytest.raises(AppError, match=problem) as caught:
            edit(client, file)
        assert str(server.folder) not in str(caught.value)
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * 2_000_000)
    with pytest.raises(Exception, match=r"413|maximum|larger|too large|MB"):
        edit(client, large)


def test_every_file_of_a_request_is_checked(client: Client, tmp_path: Path) -> None:
    photo, bomb = image(tmp_path / "photo.png"), tmp_path / "bomb.png"
    bomb.write_bytes(bomb_png(40_000, 40_000))
    good, bad = handle_file(photo), handle_file(bomb)
    words, options = (["cat"], ["lines"]), {"experts": "two", "mode": "routed"}
    requests: list[tuple[str, tuple[Any, ...]]] = [
        ("/edit", (good, *words, options, bad, None)),
        ("/edit", (good, *words, options, None, [bad])),
        ("/compare", (bad, *words, "0", "1", options)),
        ("/segment", (bad, 1, 1)),
        ("/score", (good, good, bad, None)),
        ("/score", (good, good, good, bad)),
        ("/settings", (bad,)),
    ]
    for name, given in requests:
        with pytest.raises(AppError, match="pixels are too many"):
            client.predict(*given, api_name=name)


@pytest.mark.parametrize("path", ["/etc/hostname", __file__, "http://127.0.0.1:1/a.png"])
def test_only_uploads_are_read(client: Client, server: Server, path: str, tmp_path: Path) -> None:
    given = {"path": path, "meta": {"_type": "gradio.FileData"}}
    words = (["cat"], ["lines"], {})
    requests: list[tuple[str, list[Any]]] = [
        ("edit", [given, *words, None, None]),
        ("edit", [None, *words, given, None]),
        ("edit", [None, *words, None, [given]]),
        ("settings", [given]),
        ("score", [given, given, given, None]),
        ("segment", [given, 1, 1]),
    ]
    with httpx.Client(base_url=server.url, cookies=dict(client.cookies)) as user:
        assert user.get(f"gradio_api/file={path}").status_code == 403
        for name, data in requests:
            answer = call(user, name, data)
            assert "event: error" in answer, name
            assert str(server.folder) not in answer


def test_answers_name_no_folder_of_the_server(
    client: Client, server: Server, tmp_path: Path, tiny_base: Path, tiny_experts: Path
) -> None:
    photo = image(tmp_path / "photo.png")
    with httpx.Client(base_url=server.url, cookies=dict(client.cookies)) as user:
        uploaded = user.post("gradio_api/upload", files={"files": photo.read_bytes()}).json()
        given = {"path": uploaded[0], "meta": {"_type": "gradio.FileData"}}
        options = {"experts": "two", "mode": "routed"}
        answer = call(user, "edit", [given, ["cat"], ["lines"], options, None, None])
        assert "event: complete" in answer
        texts = [answer, user.get("config").text, user.get("").text, json.dumps(uploaded)]
        texts.append(user.get("gradio_api/info").text)
    for text in texts:
        for place in (server.folder, tiny_base, tiny_experts, Path(__file__).parents[3]):
            assert str(place) not in text


def call(user: httpx.Client, name: str, data: list[Any]) -> str:
    """The events of a call of an endpoint."""
    asked = user.post(f"gradio_api/call/{name}", json={"data": data})
    return user.get(f"gradio_api/call/{name}/{asked.json()['event_id']}", timeout=300).text


def every_route(routes: list[Any], prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Paths and methods of routes, of the routers that they include and of what is mounted."""
    for route in routes:
        if hasattr(route, "original_router"):  # FastAPI's included router; its paths are whole
            yield from every_route(route.original_router.routes, prefix)
            continue
        path = prefix + getattr(route, "path", "")
        yield re.sub(r"\{[^}]*\}", "x", path) or "/", getattr(route, "methods", None) or set()
        yield from every_route(getattr(route, "routes", None) or [], path)


def test_no_route_answers_without_a_login(server: Server) -> None:
    """Every route that Gradio has, and every method of it."""
    asked = set()
    with httpx.Client(base_url=server.url) as stranger:
        for path, methods in every_route(server.page.app.routes):
            if _is_open(path) or path == "/assets":
                continue
            for method in methods or {"GET", "POST"}:
                answer = stranger.request(method, path)
                assert answer.status_code == 401, (method, path)
                asked.add(path)
    api = {f"/gradio_api/{name}" for name in ("upload", "call/x", "queue/join", "info", "file=x")}
    assert {"/config", "/gradio_api/mcp", *api} <= asked, asked


def test_the_login_page_reveals_nothing(server: Server) -> None:
    with httpx.Client(base_url=server.url) as stranger:
        page = stranger.get("")
        assert page.status_code == 200
        assert "Restyle objects" not in page.text  # nothing of the endpoints
        assert str(server.folder) not in page.text
        wrong = {"username": "ada", "password": "wrong"}
        assert stranger.post("login", data=wrong).status_code == 400
        assert stranger.post("login", data=wrong | {"password": "secret"}).status_code == 200
        assert stranger.get("config").status_code == 200


def test_eight_clients_at_once_get_their_own_results(server: Server, tmp_path: Path) -> None:
    found: dict[int, bytes] = {}

    def one(number: int) -> None:
        own = Client(
            server.url, auth=("ada", "secret"), verbose=False,
            download_files=str(tmp_path / f"{number}"), httpx_kwargs={"timeout": 120},
        )  # fmt: skip
        edited, *_ = edit(own, image(tmp_path / f"{number}.png", number), seed=number)
        found[number] = Image.open(edited).tobytes()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert len(set(found.values())) == 8
    for number in (0, 7):  # the same alone
        own = Client(
            server.url, auth=("ada", "secret"), verbose=False, download_files=str(tmp_path / "x")
        )
        edited, *_ = edit(own, tmp_path / f"{number}.png", seed=number)
        assert Image.open(edited).tobytes() == found[number]


def bomb_png(width: int, height: int) -> bytes:
    """A small file that claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + parts


def test_a_server_that_is_stopped_deletes_uploads_and_results(
    tiny_base: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-u", "-m", "regionroute.cli.main", "serve", "--port", "0"]
    command += ["--base", str(tiny_base), "--device", "cpu"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert any("the studio is at" in line for line in process.stdout)
        assert list(tmp_path.glob("regionroute-studio-*"))
        process.terminate()
        try:
            process.communicate(timeout=120)  # reads on, so that no full pipe holds it up
        finally:
            process.kill()
    assert process.returncode == 0
    assert not list(tmp_path.glob("regionroute-studio-*"))
