"""Starts the studio: scratch folder, guard, Gradio's server."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from regionroute.data.image_files import LIMIT_VARIABLE
from regionroute.errors import UserError
from regionroute.studio.settings import StudioSettings, is_private, read_users

# Before Gradio is imported: it sends nothing home, and looks for no newer version of itself.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


@dataclass
class Server:
    """A running studio.

    Attributes:
        url: where the page is.
        folder: of uploads and results, deleted by `close`.
        page: Gradio's app.
    """

    url: str
    folder: Path
    page: Any
    sweeper: Any
    engine: Any

    def close(self) -> None:
        """Stop the server and delete all uploads and results."""
        self.page.close()
        self.sweeper.close()

    def wait(self) -> None:
        """Serve until Ctrl-C, or SIGTERM after `exit_on_sigterm`; from the main thread."""
        try:
            self.page.block_thread()
        finally:
            self.close()


def exit_on_sigterm() -> None:
    """End as after Ctrl-C, with the scratch folder deleted; from the main thread, before a start.

    The handler comes before the start: a server that is stopped while it loads leaves nothing.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def start_server(settings: StudioSettings) -> Server:
    """Load the default base and serve the page in the background.

    Args:
        settings: of the studio.

    Raises:
        UserError: Gradio is missing, the port is taken, users or bases cannot be read.
    """
    users = read_users(settings)
    folder = Path(tempfile.mkdtemp(prefix="regionroute-studio-")).resolve()
    try:
        return _start(settings, users, folder)
    except BaseException:  # Ctrl-C and SIGTERM too
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _start(settings: StudioSettings, users: list[tuple[str, str]], folder: Path) -> Server:
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # before the page's components are made
    _check_gradio()
    from starlette.middleware import Middleware

    from regionroute.studio.engine import Engine
    from regionroute.studio.guard import Guard, Sweeper
    from regionroute.studio.page.build import CSS, build_page, theme

    engine = Engine(settings, folder)
    engine.load()  # so that the first edit need not
    page = build_page(engine)
    max_bytes = int(settings.max_upload_mb * 2**20)
    guard = Middleware(Guard, folder=folder, max_bytes=max_bytes, login=bool(users))
    page.queue(max_size=settings.max_waiting, default_concurrency_limit=4)
    try:
        _, local, shared = page.launch(
            server_name=settings.host,
            server_port=settings.port or _free_port(settings.host),
            share=settings.share,
            auth=users or None,
            auth_message="Log in to the studio.",
            max_file_size=max_bytes,
            allowed_paths=[],
            mcp_server=settings.mcp,
            app_kwargs={"middleware": [guard]},
            footer_links=["api", "settings"],
            run_history=False,
            ssr_mode=False,
            theme=theme(),
            css_paths=[CSS],
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            enable_monitoring=False,
            pwa=False,
        )
    except OSError as error:
        page.close()
        raise UserError(
            f"--port {settings.port}: it cannot be used ({error}); choose another, or 0 for any"
        ) from None
    keep = [path for path in folder.rglob("*") if path.is_file()]  # the page's own examples
    sweeper = Sweeper(folder, settings.keep_hours * 3600, keep)
    sweeper.start()
    return Server(shared or local, folder, page, sweeper, engine)


def limit_process(settings: StudioSettings) -> None:
    """Set the limit of pixels for every image that this process decodes, in Gradio too."""
    os.environ[LIMIT_VARIABLE] = str(settings.max_pixels)
    Image.MAX_IMAGE_PIXELS = max(1, settings.max_pixels // 2)  # Pillow refuses above twice this


def warnings_of(settings: StudioSettings) -> list[str]:
    """What a person who starts a server should know, one sentence each."""
    open_to_all = settings.share or not is_private(settings.host)
    if not open_to_all or read_users(settings):
        return []
    where = "the internet" if settings.share else f"the network ({settings.host})"
    return [f"everybody on {where} can use this server: set --auth FILE to ask for a password"]


def _check_gradio() -> None:
    try:
        importlib.import_module("gradio")
    except ImportError as error:
        raise UserError(
            "the studio needs the package gradio: pip install 'regionroute[studio]'"
        ) from error


def _free_port(host: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port
