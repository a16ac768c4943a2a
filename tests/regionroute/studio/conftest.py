"""A browser, and a page of the studio with the steps that its tests take again and again.

With `REGIONROUTE_SCREENSHOTS=docs/studio` they also write the screenshots of the documentation.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SHOTS = os.environ.get("REGIONROUTE_SCREENSHOTS")
WAIT = 180_000  # ms for an edit; test machines are busy
MOST_BYTES = 250_000  # of a screenshot
DESKTOP = {"width": 1280, "height": 920}


@pytest.fixture(scope="session")
def sync_api() -> Any:
    """Playwright."""
    found = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
    found.expect.set_options(timeout=WAIT)
    return found


@pytest.fixture(scope="module")
def browser(sync_api: Any) -> Iterator[Any]:
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine: make browser, or apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # Root may not use Chromium's sandbox; the editor's canvas needs WebGL.
        flags = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        running = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Any, server: Any, sync_api: Any) -> Iterator[Callable[..., StudioPage]]:
    """Opens pages of the studio, given options of Playwright's `new_page`; closes them."""
    pages = []

    def opened(**how: Any) -> StudioPage:
        page = browser.new_page(**({"viewport": DESKTOP} | how))
        pages.append(page)
        page.set_default_timeout(WAIT)
        page.goto(server.url)
        page.wait_for_selector("#edit")
        return StudioPage(page, sync_api.expect)

    yield opened
    for page in pages:
        page.close()


class StudioPage:
    """Playwright's page, with the studio's steps.

    Args:
        page: of Playwright; it answers whatever is not defined here.
        expect: Playwright's assertions.
    """

    def __init__(self, page: Any, expect: Any) -> None:
        self._page, self.expect = page, expect

    def __getattr__(self, name: str) -> Any:
        return getattr(self._page, name)

    @property
    def wants_shots(self) -> bool:
        """Whether screenshots of the documentation are made."""
        return SHOTS is not None

    def upload(self, photo: Path) -> None:
        self.set_input_files("#photo input[type=file]", photo)
        self.wait_for_selector("#photo img")
        self.said("Name an object")

    def said(self, text: str) -> str:
        """The page's message, once it holds a text."""
        box = self.locator("#message")
        self.expect(box).to_contain_text(text, timeout=WAIT)
        return str(box.inner_text())

    def edits(self, count: int) -> None:
        """Wait until the history shows a number of edits."""
        self.expect(self.locator("#history button img")).to_have_count(count)

    def advanced(self, selector: str, value: str | None = None) -> None:
        """Fill a field behind "Advanced", or check it without a value.

        Gradio may reset what is filled while the panel opens: filled again until it is kept.
        """
        field = self.locator(selector)
        if not field.is_visible():
            self.click("#advanced > button")

        def kept() -> bool:
            if value is None:
                field.check()
            else:
                field.fill(value)
            self.wait_for_timeout(500)
            return bool(field.is_checked() if value is None else field.input_value() == value)

        self.until(kept, f"{selector} does not keep what is filled in")

    def choose_style(self, number: int, style: str) -> None:
        field = self.locator(f"#style-{number} input")
        field.fill(style)
        field.press("Enter")

    def shot(self, name: str, at: str = "body") -> None:
        """A screenshot of the documentation, if those are wanted."""
        if SHOTS:
            path = Path(SHOTS) / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.evaluate(f"document.querySelector('{at}').scrollIntoView()")
            self.wait_for_timeout(1500)  # images and fades
            self.screenshot(path=path)
            with Image.open(path) as image:
                small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
                small.save(path, optimize=True)
            assert path.stat().st_size < MOST_BYTES, f"{path} is too large"

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        page = "document.documentElement"
        return int(self.evaluate(f"{page}.scrollWidth - {page}.clientWidth"))

    def downloaded(self, folder: Path) -> tuple[Path, str]:
        """The file behind "Download image", and its address."""
        with self.expect_download() as found:
            self.click("#download")
        path = folder / found.value.suggested_filename
        found.value.save_as(path)
        return path, str(found.value.url)

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for something that only a look at the page shows."""
        end = time.monotonic() + WAIT / 1000
        while not holds():
            assert time.monotonic() < end, what
            self.wait_for_timeout(200)
