"""Labelling: masks from boxes, one embedding for all objects of a photo, photos per minute.

    python bench/label.py                                 # needs the shared photos and masks
    python bench/label.py --assets FOLDER --parts masks

Three parts. *masks*: mean IoU of the offline segmenter from the tight boxes of hand-made masks, by
source. *embedding*: time for four objects of a photo relative to one, with SAM ViT-B (random
weights: the time does not depend on them, and the masks are not used). *pipeline*: from photo to
written targets, against a plain loop over photo, object and style that reads, restyles, composites
and writes each separately; one process each, same run. The result goes to bench/results/label.json.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _shared import add_result_argument, median_ratio, paired_seconds, provenance, quartiles
from tqdm import tqdm

from pseudo_labels.build import PhotoSource, build
from pseudo_labels.compose import composite
from pseudo_labels.curate.filters import Limits
from pseudo_labels.job import BuildSettings
from pseudo_labels.segment import resize_mask
from pseudo_labels.segment.given import read_labels
from pseudo_labels.segment.loading import FinderSettings
from pseudo_labels.segment.sam import SamSegmenter
from pseudo_labels.stylize.registry import load_styles
from regionroute.data.images import from_pil, read_image, read_mask, to_pil, write_image
from regionroute.data.manifest import mask_box
from regionroute.data.stats import describe
from regionroute.engines.base import EngineSettings
from regionroute.errors import UserError
from regionroute.files import write_json

STYLES = ("starry-night", "neon", "line-art", "stained-glass")
EVERY = Limits(0.0, 1.0, 1.0, 0.0, 0.0, -1.0, -1)  # no limits, as in the loop
PARTS = ("masks", "embedding", "pipeline")


def hand_masks(assets: Path) -> list[tuple[str, Path, Path]]:
    """(source, photo, mask) of single objects of at least 1 % and at most 70 % of the image."""
    found = []
    for line in (assets / "photos" / "labels.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["image"].startswith("scene_"):
            folder = assets / "photos"
            found += [("scenes", folder / row["image"], folder / o["mask"]) for o in row["objects"]]
    folder = assets / "photos_256"
    for line in (folder / "labels.jsonl").read_text().splitlines():
        row = json.loads(line)
        single = row.get("instances", 1) == 1 and row.get("kind", "thing") == "thing"
        by_hand = row["mask_source"] == "human" and not row.get("crowd")
        if single and by_hand and 0.01 <= row["area"] <= 0.70:
            found.append((row["file"].split("/")[0], folder / row["file"], folder / row["mask"]))
    return found


def masks_part(assets: Path, count: int | None) -> dict[str, Any]:
    """IoU of masks made from the tight boxes of hand-made ones."""
    chosen = hand_masks(assets)
    if count is not None and count < len(chosen):
        chosen = random.Random(0).sample(chosen, count)
    results: dict[str, Any] = {}
    methods = {
        "offline": f"offline:{assets / 'weights' / 'segment' / 'u2netp.onnx'}",
        "grabcut": "grabcut",
        "box": None,
    }
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in methods}
    for source, photo, mask_file in tqdm(chosen, desc="masks", unit="mask"):
        image, mask = read_image(photo), read_mask(mask_file)
        box = mask_box(mask)
        for name, segmenter in methods.items():
            if segmenter is None:
                found = torch.zeros_like(mask)
                found[:, box[0] : box[2], box[1] : box[3]] = 1
            else:
                loaded = FinderSettings(segmenter=segmenter).load_segmenter()
                found = loaded.segment(image, [box])[0][0]
            value = float((found * mask).sum() / torch.maximum(found, mask).sum())
            scores[name].setdefault(source, []).append(value)
    for name, by_source in scores.items():
        every = [value for values in by_source.values() for value in values]
        results[name] = {"all": describe(every)} | {
            source: describe(values) for source, values in sorted(by_source.items())
        }
    return {"masks": len(chosen), "iou": results}


def embedding_part(assets: Path, rounds: int) -> dict[str, Any]:
    """Time four boxes against one, and against four embeddings."""
    from segment_anything import sam_model_registry

    folder = Path(tempfile.mkdtemp())
    try:
        torch.manual_seed(0)
        torch.save(sam_model_registry["vit_b"]().state_dict(), folder / "sam.pth")
        segmenter = SamSegmenter(str(folder / "sam.pth"))
    finally:
        shutil.rmtree(folder)
    image = read_image(assets / "photos" / "scene_creature.jpg")
    height, width = image.shape[-2:]
    boxes = [
        (y, x, y + height // 3, x + width // 3) for y in (0, height // 2) for x in (0, width // 2)
    ]
    methods = {"four objects": boxes, "one object": boxes[:1]}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    segmenter.segment(image, boxes[:1])
    for turn in tqdm(range(rounds), desc="embedding", unit="round"):
        for name in sorted(methods, reverse=bool(turn % 2)):
            start = time.process_time()  # CPU time, so that other load does not count
            segmenter.segment(image, methods[name])
            seconds[name].append(time.process_time() - start)
    return {
        "network": "segment-anything ViT-B, random weights (timing only)",
        "rounds": rounds,
        "processor seconds": seconds,
        "four objects over one": median_ratio(seconds, "four objects", "one object"),
    }


def plain_loop(source: PhotoSource, size: int, out: Path) -> int:
    """The obvious loop: everything anew for each photo, object and style."""
    made = 0
    for photo in source.photos:
        for item in photo.objects:
            for entry in load_styles("photos", STYLES):
                picture = to_pil(read_image(photo.path))
                picture.thumbnail((size, size))
                content = from_pil(picture)
                mask = resize_mask(read_mask(item.mask), tuple(content.shape[-2:]))
                styled = entry.build().stylize(content, entry.spec)
                write_image(out / f"{made}.png", composite(content, styled, mask))
                made += 1
    return made


def pipeline_part(assets: Path, photos: int, rounds: int, size: int) -> dict[str, Any]:
    """Samples per minute of the build and of the plain loop, on photos with several objects."""
    labels = assets / "photos" / "labels.jsonl"
    everything = read_labels(labels)[0]
    several = sorted(everything, key=lambda photo: -len(photo.objects))[:photos]
    source = PhotoSource(str(labels), several, [])
    settings = BuildSettings(size=size, limits=EVERY)
    styles = load_styles("photos", STYLES)
    one = EngineSettings(workers=1)

    def ours() -> int:
        with tempfile.TemporaryDirectory() as folder:
            return len(build(source, styles, Path(folder), settings, engine=one).samples)

    def loop() -> int:
        with tempfile.TemporaryDirectory() as folder:
            return plain_loop(source, size, Path(folder))

    samples = ours()
    seconds = paired_seconds({"build": ours, "plain loop": loop}, rounds)
    with tempfile.TemporaryDirectory() as folder:
        build(source, styles, Path(folder), settings, engine=one)
        start = time.perf_counter()
        build(source, styles, Path(folder), settings, engine=one)
        again = time.perf_counter() - start
    return {
        "photos": len(several),
        "objects": sum(len(photo.objects) for photo in several),
        "styles": len(styles),
        "samples": samples,
        "size": size,
        "seconds": {name: quartiles(values) for name, values in seconds.items()},
        "samples a minute": {
            name: 60 * samples / quartiles(values)[1] for name, values in seconds.items()
        },
        "build over plain loop": median_ratio(seconds, "build", "plain loop"),
        "seconds of a second run": again,
        "note": "in addition, the build scores every sample and writes contexts, masks, manifest "
        "and review page, which the loop does not",
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the selected parts and merge them into the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = Path(__file__).resolve().parent.parent.parent / "shared" / "assets"
    parser.add_argument("--assets", type=Path, default=usual, help="folder of photos and masks")
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="parts to run (default: %(default)s)"
    )
    parser.add_argument("--masks", type=int, help="limit the masks, drawn at random")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per timing")
    parser.add_argument("--photos", type=int, default=8, help="photos of the pipeline part")
    parser.add_argument("--size", type=int, default=384, help="image size of the pipeline part")
    add_result_argument(parser, "label")
    args = parser.parse_args(argv)
    if not (args.assets / "photos" / "labels.jsonl").is_file():
        raise UserError(f"{args.assets}: no photos/labels.jsonl there, give --assets FOLDER")
    torch.set_num_threads(1)
    parts = {
        "masks": lambda: masks_part(args.assets, args.masks),
        "embedding": lambda: embedding_part(args.assets, args.rounds),
        "pipeline": lambda: pipeline_part(args.assets, args.photos, args.rounds, args.size),
    }
    before = json.loads(args.result.read_text()) if args.result.exists() else {}
    for name in args.parts.split(","):
        before |= provenance(("torch", "onnxruntime")) | {name: parts[name]()}
        write_json(args.result, before)
        before = json.loads(args.result.read_text())
        print(json.dumps(before[name], indent=2))


if __name__ == "__main__":
    main()
