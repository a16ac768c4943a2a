"""The plot of `mamba_fit.py`: losses and SSIM against steps."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from regionroute.data.images import from_pil, write_image


def plot_curves(path: Path, result: dict[str, Any], colours: dict[str, str]) -> None:
    """Held-out loss and SSIM against steps: a thin line per run, a thick one per arm's mean."""
    side = 460
    sheet = Image.new("RGB", (2 * side, side), "white")
    for number, name in enumerate(("loss", "ssim")):
        panel = _panel(name, result["curves"], side, colours)
        sheet.paste(panel, (number * side, 0))
    write_image(path, from_pil(sheet))


def _panel(name: str, curves: dict[str, Any], side: int, colours: dict[str, str]) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    left, top, right, bottom = 50, 34, side - 20, side - 44
    last = max(int(n) for run in curves.values() for n in run[name])
    values = [v for run in curves.values() for v in run[name].values()]
    low, high = min(values), max(values)

    def place(step: int, value: float) -> tuple[float, float]:
        up = (value - low) / max(high - low, 1e-9)
        return left + np.log(step) / np.log(last) * (right - left), bottom - up * (bottom - top)

    title = {"loss": "directional losses on held-out masks", "ssim": "SSIM to the photo"}[name]
    draw.text((left, 8), title, "black", font)
    for value in np.linspace(low, high, 5):
        _, y = place(1, value)
        draw.line((left, y, right, y), "#dddddd")
        draw.text((left - 4, y), f"{value:.2f}", "black", font, anchor="rm")
    for step in (1, 2, 5, 10, 20, 40, 100, 200):
        if step <= last:
            x, _ = place(step, low)
            draw.line((x, top, x, bottom), "#dddddd")
            draw.text((x, bottom + 4), str(step), "black", font, anchor="ma")
    draw.text(((left + right) / 2, bottom + 22), "steps", "black", font, anchor="ma")
    for number, arm in enumerate(colours):
        lines = [run[name] for key, run in curves.items() if f", {arm}, " in key]
        for line in lines:
            draw.line([place(int(n), v) for n, v in line.items()], _pale(colours[arm]), 1)
        steps = lines[0]
        mean = [place(int(n), float(np.mean([line[n] for line in lines]))) for n in steps]
        draw.line(mean, colours[arm], 3)
        draw.text((right - 6, top + 4 + 16 * number), arm, colours[arm], font, anchor="ra")
    return image


def _pale(colour: str) -> str:
    parts = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{(part + 2 * 255) // 3:02x}" for part in parts)
