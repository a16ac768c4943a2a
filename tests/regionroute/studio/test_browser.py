"""The page in Chromium: what a person does, from the upload to the same bytes as the command.

With `REGIONROUTE_SCREENSHOTS=docs/studio` they also write the screenshots of the documentation.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the studio needs gradio")
sync_api = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")

from regionroute.cli.edit import main as edit_command  # noqa: E402
from regionroute.data.images import write_image  # noqa: E402
from regionroute.studio.jobs import read_settings  # noqa: E402
from regionroute.studio.server import Server, start_server  # noqa: E402
from regionroute.studio.settings import StudioSettings  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SHOTS = os.environ.get("REGIONROUTE_SCREENSHOTS")
WAIT = 180_000  # ms for an edit; test machines are busy
sync_api.expect.set_options(timeout=WAIT)
MOST_BYTES = 250_000  # of a screenshot
# Begin and end of the stroke, (x, y) as parts of the photo.
STROKE = np.array([[0.10, 0.85], [0.25, 0.90]])
# A part of each tab, by which to know that it is shown.
PARTS = {
    "Map": "#map .rr-map", "Region": "#editor canvas", "Settings": "#metadata",
    "Compare": "#compare", "Score": "#score-source", "Data": "#data-set",
}  # fmt: skip
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 920}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    settings = StudioSettings(port=0, device="cpu", max_steps=1000)
    running = start_server(settings)
    yield running
    running.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine: make browser, or apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        # Root may not use Chromium's sandbox; the editor's canvas needs WebGL.
        flags = ["--no-sandbox", "--enable-unsafe-swiftshader"]
        running = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield running
        running.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = pytest.importorskip("skimage.data", reason="the photo comes with scikit-image")
    path = tmp_path_factory.mktemp("photos") / "coffee.png"
    Image.fromarray(data.coffee()).resize((300, 200)).save(path)
    return path


def open_page(browser: Any, server: Server, **how: Any) -> Any:
    page = browser.new_page(**({"viewport": DESKTOP} | how))
    page.set_default_timeout(WAIT)
    page.goto(server.url)
    page.wait_for_selector("#edit")
    return page


def upload(page: Any, photo: Path) -> None:
    page.set_input_files("#photo input[type=file]", photo)
    page.wait_for_selector("#photo img")
    said(page, "Name an object")


def said(page: Any, text: str) -> str:
    """The page's message, once it holds a text."""
    box = page.locator("#message")
    sync_api.expect(box).to_contain_text(text, timeout=WAIT)
    return str(box.inner_text())


def edits(page: Any, count: int) -> None:
    """Wait until the history shows a number of edits."""
    sync_api.expect(page.locator("#history button img")).to_have_count(count)


def choose_style(page: Any, number: int, style: str) -> None:
    field = page.locator(f"#style-{number} input")
    field.fill(style)
    field.press("Enter")


def shot(page: Any, name: str, at: str = "body") -> None:
    """A screenshot of the documentation, if those are wanted."""
    if SHOTS:
        path = Path(SHOTS) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        page.evaluate(f"document.querySelector('{at}').scrollIntoView()")
        page.wait_for_timeout(1500)  # images and fades
        page.screenshot(path=path)
        with Image.open(path) as image:
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        assert path.stat().st_size < MOST_BYTES, f"{path} is too large"


def overflow(page: Any) -> int:
    """Pixels by which the page is wider than the window."""
    return int(
        page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    )


def downloaded(page: Any, folder: Path) -> tuple[Path, str]:
    """The file behind "Download image", and its address."""
    with page.expect_download() as found:
        page.click("#download")
    path = folder / found.value.suggested_filename
    found.value.save_as(path)
    return path, str(found.value.url)


def until(page: Any, holds: Callable[[], bool], what: str) -> None:
    """Wait for something that only a look at the page shows."""
    end = time.monotonic() + WAIT / 1000
    while not holds():
        assert time.monotonic() < end, what
        page.wait_for_timeout(200)


def editor_pixels(page: Any) -> np.ndarray:
    """What the brush editor's canvas shows, [h,w,3]."""
    picture = page.locator("#editor canvas").first.screenshot()
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def newest_region(server: Server) -> np.ndarray:
    """Where the latest edit found its first object, [H,W] in [0,1]."""
    files = sorted(server.folder.glob("edits/*/region-1.png"), key=lambda one: one.stat().st_mtime)
    found = np.asarray(Image.open(files[-1]).convert("L")) / 255
    assert found.any()
    return found


def painted(page: Any) -> int:
    """The number of pixels of the editor that show paint, a colour that the photo has not."""
    red, green, blue = np.moveaxis(editor_pixels(page), -1, 0)
    return int(((blue - green > 40) & (red - green > 60)).sum())


def brush(page: Any) -> None:
    """Paint a short stroke at the lower left of the photo, where the cup is not."""
    dark = editor_pixels(page).min(-1) < 150  # the photo; around it everything is light
    rows = np.flatnonzero(dark.mean(1) > 0.5)
    columns = np.flatnonzero(dark[rows].mean(0) > 0.5)
    box = page.locator("#editor canvas").first.bounding_box()

    def move(across: float, down: float) -> None:
        x = columns[0] + across * (columns[-1] - columns[0])
        y = rows[0] + down * (rows[-1] - rows[0])
        page.mouse.move(box["x"] + x, box["y"] + y)

    move(*STROKE[0])
    page.mouse.down()
    for part in np.linspace(0, 1, 9):
        move(*(STROKE[0] + part * (STROKE[1] - STROKE[0])))
    page.mouse.up()


def test_upload_edit_brush_and_the_same_bytes_as_the_command(
    browser: Any, server: Server, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = open_page(browser, server, accept_downloads=True)
    upload(page, photo)
    page.fill("#object-1 textarea, #object-1 input", "cup")
    choose_style(page, 1, "woodcut")
    page.click("#add-object")
    page.fill("#object-2 textarea, #object-2 input", "spoon")
    choose_style(page, 2, "neon")
    page.click("#edit")
    said(page, "Done in")
    sync_api.expect(page.locator("#slider img").nth(1)).to_be_attached()
    shot(page, "desktop")

    page.get_by_role("tab", name="Map", exact=True).click()
    drawn = page.locator("#map .rr-map")
    sync_api.expect(drawn).to_be_visible()
    before = drawn.evaluate("e => getComputedStyle(e).opacity")
    page.locator("#opacity input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    assert float(drawn.evaluate("e => getComputedStyle(e).opacity")) < float(before)
    shot(page, "map")

    page.get_by_role("tab", name="Region", exact=True).click()
    sync_api.expect(page.locator("#editor canvas").first).to_be_visible()
    sync_api.expect(page.locator("#editor button.highlight[aria-label=Brush]")).to_be_visible()
    shown = newest_region(server)
    until(page, lambda: painted(page) > (shown > 0.9).sum() / 2, "the editor shows no region")
    found = painted(page)
    brush(page)
    until(page, lambda: painted(page) > found + 100, "the stroke is not seen")
    shot(page, "region")
    page.click("#apply-region")
    edits(page, 2)
    first, address = downloaded(page, tmp_path)
    regions = read_settings(first).regions()
    assert len(regions) == 2, "both regions are stored in the PNG"
    x, y = STROKE.mean(0) * (regions[0].shape[1], regions[0].shape[0])
    assert regions[0][int(y), int(x)] == 1, "the stroke belongs to the region"
    assert regions[1][int(y), int(x)] < 1, "only to that of its object"
    assert (regions[0].numpy() > shown - 0.01).all(), "the stroke adds to the region"

    page.click("#advanced > button")
    page.fill("#seed input", "7")
    with page.expect_file_chooser() as chooser:
        page.click("#load-settings")
    chooser.value.set_files(first)
    said(page, "press Edit to repeat")
    sync_api.expect(page.locator("#seed input")).to_have_value("0")
    page.click("#edit")
    edits(page, 3)
    said(page, "Done in")
    (tmp_path / "again").mkdir()
    again, other = downloaded(page, tmp_path / "again")
    assert other != address, "this is the new file"
    assert again.read_bytes() == first.read_bytes()

    page.get_by_role("tab", name="Settings", exact=True).click()
    sync_api.expect(page.locator("#command")).to_be_visible()
    command = page.locator("#command").inner_text()
    assert "--region-map region-1.png" in command
    shot(page, "settings")
    page.close()
    assert by_command(first, photo, tmp_path, monkeypatch) == first.read_bytes()


def by_command(edited: Path, photo: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The same edit by `regionroute edit`, with the regions that the PNG stores."""
    work = folder / "command"
    work.mkdir()
    shutil.copy(photo, work)
    arguments = [photo.name]
    saved = read_settings(edited)
    rows = zip(saved.objects, saved.styles, saved.regions(), strict=True)
    for number, (word, style, mask) in enumerate(rows):
        write_image(work / f"{number}.png", mask[None])
        arguments += ["--object", word, "--style", style, "--region-map", f"{number}.png"]
    monkeypatch.chdir(work)
    assert edit_command([*arguments, "--device", "cpu", "--out", "out.png"]) == 0
    return (work / "out.png").read_bytes()


def test_each_mistake_shows_one_clear_message(
    browser: Any, server: Server, photo: Path, tmp_path: Path
) -> None:
    page = open_page(browser, server, accept_downloads=True)
    page.click("#edit")
    said(page, "The photo is missing")
    wrong = tmp_path / "notes.png"
    wrong.write_text("no image")
    page.set_input_files("#photo input[type=file]", wrong)
    told = said(page, "cannot be read")
    assert str(server.folder) not in told
    page.reload()
    page.wait_for_selector("#edit")
    upload(page, photo)
    page.click("#edit")
    said(page, "Object 1 is empty")
    page.fill("#object-1 textarea, #object-1 input", "cup")
    choose_style(page, 1, "watercolor-ish")
    page.click("#edit")
    said(page, "watercolour")  # the nearest known one
    choose_style(page, 1, "neon")
    page.fill("#object-1 textarea, #object-1 input", "zebra")
    page.click("#edit")
    told = said(page, "was not found in the image, so it was left unchanged")
    assert "Advanced has a switch to edit all the same" in told
    shot(page, "absent")
    (tmp_path / "absent").mkdir()
    unchanged, _ = downloaded(page, tmp_path / "absent")
    assert Image.open(unchanged).convert("RGB").tobytes() == Image.open(photo).tobytes()
    page.click("#advanced > button")
    page.check("#force input")
    page.click("#edit")
    edits(page, 2)
    sync_api.expect(page.locator("#message")).not_to_contain_text("left unchanged")
    forced, _ = downloaded(page, tmp_path)
    assert Image.open(forced).convert("RGB").tobytes() != Image.open(photo).tobytes()
    page.close()


def test_a_long_run_shows_its_steps_and_can_be_cancelled(
    browser: Any, server: Server, photo: Path
) -> None:
    page = open_page(browser, server)
    upload(page, photo)
    page.fill("#object-1 textarea, #object-1 input", "cup")
    page.click("#advanced > button")
    page.fill("#steps textarea, #steps input", "1000")
    page.click("#edit")
    page.locator("text=/Sampling/ >> visible=true").first.wait_for()
    page.click("#cancel")
    said(page, "Cancelled")
    page.fill("#steps textarea, #steps input", "1")
    page.click("#edit")
    said(page, "Done in")
    page.close()


def test_history_and_comparison_return_to_an_edit(
    browser: Any, server: Server, photo: Path
) -> None:
    page = open_page(browser, server)
    upload(page, photo)
    page.fill("#object-1 textarea, #object-1 input", "cup")
    page.click("#edit")
    said(page, "Done in")
    page.get_by_role("tab", name="Compare", exact=True).click()
    if not SHOTS:  # six take their time
        page.fill("#seeds textarea, #seeds input", "0, 2")
        page.fill("#strengths textarea, #strengths input", "1")
    page.click("#compare")
    count = 6 if SHOTS else 2
    sync_api.expect(page.locator("#compared img")).to_have_count(count, timeout=WAIT)
    shot(page, "compare")
    page.locator("#compared button img").nth(count - 1).click()
    said(page, "seed 2 · strength 1")
    edits(page, count + 1)
    page.locator("#history button img").last.click()
    said(page, "seed 0 · strength 1")
    page.close()


def test_a_click_marks_the_object(browser: Any, server: Server, photo: Path) -> None:
    pytest.importorskip("cv2", reason="GrabCut needs OpenCV")
    page = open_page(browser, server)
    upload(page, photo)
    page.fill("#object-1 textarea, #object-1 input", "cup")
    page.get_by_role("tab", name="Region", exact=True).click()
    shown = page.locator("#click-photo img")
    sync_api.expect(shown).to_be_visible()
    box = shown.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    said(page, "the region is")
    page.click("#apply-region")
    said(page, "Done in")
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_on_a_phone(
    browser: Any, server: Server, photo: Path, scheme: str
) -> None:
    page = open_page(browser, server, viewport=PHONE, color_scheme=scheme, has_touch=True)
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", colour)[0]) < 128) == (scheme == "dark"), colour
    if SHOTS or scheme == "light":
        upload(page, photo)
        page.fill("#object-1 textarea, #object-1 input", "cup")
        page.click("#edit")
        said(page, "Done in")
    shot(page, f"phone-{scheme}", "#message" if scheme == "dark" else "body")
    for name, part in PARTS.items():
        page.get_by_role("tab", name=name, exact=True).click()
        if SHOTS or scheme == "light":  # else there is no edit to be shown
            sync_api.expect(page.locator(part).first).to_be_visible()
        assert overflow(page) <= 0, name
    page.close()


def test_everything_is_reached_by_keyboard_and_has_a_name(browser: Any, server: Server) -> None:
    page = open_page(browser, server)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('input, textarea, button, select')]
            .filter(e => e.offsetParent !== null && e.type !== 'file')
            .filter(e => !(e.labels?.length || e.ariaLabel || e.title || e.innerText.trim()
                || e.placeholder || e.getAttribute('aria-labelledby')))
            .map(e => e.outerHTML.slice(0, 160))"""
    )
    assert unnamed == []
    reached = set()
    page.locator("body").focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.closest('[id]')?.id"))
    assert {"edit", "cancel", "add-object", "object-1", "style-1"} <= reached, reached
    page.close()
