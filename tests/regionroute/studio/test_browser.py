"""The page in Chromium: what a person does, from the upload to the same bytes as the command."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the studio needs gradio")

from regionroute.cli.edit import main as edit_command
from regionroute.data.images import write_image
from regionroute.studio.jobs import read_settings
from regionroute.studio.server import Server, start_server
from regionroute.studio.settings import StudioSettings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
# Begin and end of the stroke, (x, y) as parts of the photo.
STROKE = np.array([[0.10, 0.85], [0.25, 0.90]])
# A part of each tab, by which to know that it is shown.
PARTS = {
    "Map": "#map .rr-map", "Region": "#editor canvas", "Settings": "#metadata",
    "Compare": "#compare", "Score": "#score-source", "Data": "#data-set",
}  # fmt: skip
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def server(browser: Any) -> Iterator[Server]:  # without a browser it need not start
    settings = StudioSettings(port=0, device="cpu", max_steps=1000)
    running = start_server(settings)
    yield running
    running.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = pytest.importorskip("skimage.data", reason="the photo comes with scikit-image")
    path = tmp_path_factory.mktemp("photos") / "coffee.png"
    Image.fromarray(data.coffee()).resize((300, 200)).save(path)
    return path


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
    open_page: Callable[..., Any],
    server: Server,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = open_page(accept_downloads=True)
    page.upload(photo)
    page.fill("#object-1 textarea, #object-1 input", "cup")
    page.choose_style(1, "woodcut")
    page.click("#add-object")
    page.fill("#object-2 textarea, #object-2 input", "spoon")
    page.choose_style(2, "neon")
    page.click("#edit")
    page.said("Done in")
    page.expect(page.locator("#slider img").nth(1)).to_be_attached()
    page.shot("desktop")

    page.get_by_role("tab", name="Map", exact=True).click()
    drawn = page.locator("#map .rr-map")
    page.expect(drawn).to_be_visible()
    opacity = "e => Number(getComputedStyle(e).opacity)"
    before = drawn.evaluate(opacity)
    page.locator("#opacity input[type=range]").focus()
    page.keyboard.press("ArrowLeft")
    page.until(lambda: drawn.evaluate(opacity) < before, "the slider does not fade the map")
    page.shot("map")

    page.get_by_role("tab", name="Region", exact=True).click()
    page.expect(page.locator("#editor canvas").first).to_be_visible()
    page.expect(page.locator("#editor button.highlight[aria-label=Brush]")).to_be_visible()
    shown = newest_region(server)
    page.until(lambda: painted(page) > (shown > 0.9).sum() / 2, "the editor shows no region")
    found = painted(page)
    brush(page)
    page.until(lambda: painted(page) > found + 100, "the stroke is not seen")
    page.shot("region")
    page.click("#apply-region")
    page.edits(2)
    first, address = page.downloaded(tmp_path)
    regions = read_settings(first).regions()
    assert len(regions) == 2, "both regions are stored in the PNG"
    x, y = STROKE.mean(0) * (regions[0].shape[1], regions[0].shape[0])
    assert regions[0][int(y), int(x)] == 1, "the stroke belongs to the region"
    assert regions[1][int(y), int(x)] < 1, "only to that of its object"
    assert (regions[0].numpy() > shown - 0.01).all(), "the stroke adds to the region"

    page.advanced("#seed input", "7")
    with page.expect_file_chooser() as chooser:
        page.click("#load-settings")
    chooser.value.set_files(first)
    page.said("press Edit to repeat")
    page.expect(page.locator("#seed input")).to_have_value("0")
    page.click("#edit")
    page.edits(3)
    page.said("Done in")
    (tmp_path / "again").mkdir()
    again, other = page.downloaded(tmp_path / "again")
    assert other != address, "this is the new file"
    assert again.read_bytes() == first.read_bytes()

    page.get_by_role("tab", name="Settings", exact=True).click()
    page.expect(page.locator("#command")).to_be_visible()
    command = page.locator("#command").inner_text()
    assert "--region-map region-1.png" in command
    page.shot("settings")
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
    open_page: Callable[..., Any], server: Server, photo: Path, tmp_path: Path
) -> None:
    page = open_page(accept_downloads=True)
    page.click("#edit")
    page.said("The photo is missing")
    wrong = tmp_path / "notes.png"
    wrong.write_text("no image")
    page.set_input_files("#photo input[type=file]", wrong)
    told = page.said("cannot be read")
    assert str(server.folder) not in told
    page.reload()
    page.wait_for_selector("#edit")
    page.upload(photo)
    page.click("#edit")
    page.said("Object 1 is empty")
    page.fill("#object-1 textarea, #object-1 input", "cup")
    page.choose_style(1, "watercolor-ish")
    page.click("#edit")
    page.said("watercolour")  # the nearest known one
    page.choose_style(1, "neon")
    page.fill("#object-1 textarea, #object-1 input", "zebra")
    page.click("#edit")
    told = page.said("was not found in the image, so it was left unchanged")
    assert "Advanced has a switch to edit all the same" in told
    page.shot("absent")
    (tmp_path / "absent").mkdir()
    unchanged, _ = page.downloaded(tmp_path / "absent")
    assert Image.open(unchanged).convert("RGB").tobytes() == Image.open(photo).tobytes()
    page.advanced("#force input")
    page.click("#edit")
    page.edits(2)
    page.expect(page.locator("#message")).not_to_contain_text("left unchanged")
    forced, _ = page.downloaded(tmp_path)
    assert Image.open(forced).convert("RGB").tobytes() != Image.open(photo).tobytes()


def test_a_long_run_shows_its_steps_and_can_be_cancelled(
    open_page: Callable[..., Any], server: Server, photo: Path
) -> None:
    page = open_page()
    page.upload(photo)
    page.fill("#object-1 textarea, #object-1 input", "cup")
    page.advanced("#steps input", "1000")
    page.click("#edit")
    page.locator("text=/Sampling/ >> visible=true").first.wait_for()
    page.click("#cancel")
    page.said("Cancelled")
    page.advanced("#steps input", "1")
    page.click("#edit")
    page.said("Done in")


def test_history_and_comparison_return_to_an_edit(
    open_page: Callable[..., Any], server: Server, photo: Path
) -> None:
    page = open_page()
    page.upload(photo)
    page.fill("#object-1 textarea, #object-1 input", "cup")
    page.click("#edit")
    page.said("Done in")
    page.get_by_role("tab", name="Compare", exact=True).click()
    if not page.wants_shots:  # six take their time
        page.fill("#seeds textarea, #seeds input", "0, 2")
        page.fill("#strengths textarea, #strengths input", "1")
    page.click("#compare")
    count = 6 if page.wants_shots else 2
    page.expect(page.locator("#compared img")).to_have_count(count)
    page.shot("compare")
    page.locator("#compared button img").nth(count - 1).click()
    page.said("seed 2 · strength 1")
    page.edits(count + 1)
    page.locator("#history button img").last.click()
    page.said("seed 0 · strength 1")


def test_a_click_marks_the_object(
    open_page: Callable[..., Any], server: Server, photo: Path
) -> None:
    pytest.importorskip("cv2", reason="GrabCut needs OpenCV")
    page = open_page()
    page.upload(photo)
    page.fill("#object-1 textarea, #object-1 input", "cup")
    page.get_by_role("tab", name="Region", exact=True).click()
    shown = page.locator("#click-photo img")
    page.expect(shown).to_be_visible()
    box = shown.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    page.said("the region is")
    page.click("#apply-region")
    page.said("Done in")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_on_a_phone(
    open_page: Callable[..., Any], server: Server, photo: Path, scheme: str
) -> None:
    page = open_page(viewport=PHONE, color_scheme=scheme, has_touch=True)
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", colour)[0]) < 128) == (scheme == "dark"), colour
    if page.wants_shots or scheme == "light":
        page.upload(photo)
        page.fill("#object-1 textarea, #object-1 input", "cup")
        page.click("#edit")
        page.said("Done in")
    page.shot(f"phone-{scheme}", "#message" if scheme == "dark" else "body")
    for name, part in PARTS.items():
        page.get_by_role("tab", name=name, exact=True).click()
        if page.wants_shots or scheme == "light":  # else there is no edit to be shown
            page.expect(page.locator(part).first).to_be_visible()
        assert page.overflow() <= 0, name


def test_everything_is_reached_by_keyboard_and_has_a_name(
    open_page: Callable[..., Any], server: Server
) -> None:
    page = open_page()
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
