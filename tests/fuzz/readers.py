"""Everything that reads a user's file: good files of each format, and the reader with its promise.

A reader takes a path, raises `UserError` or returns; what it returns is checked against the
promises of its docstring.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from pseudo_labels.segment.folder import list_photos
from pseudo_labels.segment.given import open_photo, read_labels
from pseudo_labels.stylize.registry import load_styles
from regionroute.adapters.files.lora_import import read_lora
from regionroute.adapters.files.registry import REGISTRY_FILE, read_registry
from regionroute.config.io import load_config
from regionroute.config.run import RunConfig
from regionroute.data.images import image_size, open_image, read_image
from regionroute.data.manifest import load_manifest
from regionroute.data.masks import read_mask, read_soft_mask
from regionroute.diffusion.flux_kontext import FAMILY as KONTEXT
from regionroute.editing.batch import read_rows
from regionroute.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent.parent
SIZE = (48, 64)
PHOTO = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
PHOTO[8:40, 10:50] = (200, 40, 30)


@dataclass(frozen=True)
class Reader:
    """A kind of file.

    Attributes:
        name: of the file.
        seeds: contents of good files.
        read: reads a path and checks what it gets.
        beside: other files that the reader needs, by name.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[Path], None]
    beside: dict[str, bytes]


def encoded(form: str, **options: object) -> bytes:
    """The photo as an image file."""
    buffer = io.BytesIO()
    image = Image.fromarray(PHOTO)
    image = image.convert(str(options.pop("mode"))) if "mode" in options else image
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def images() -> tuple[bytes, ...]:
    """The photo in every format that is read."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    alpha = Image.fromarray(np.dstack([PHOTO, PHOTO[..., :1]]))
    rgba = io.BytesIO()
    alpha.save(rgba, format="PNG")
    floats, deep = io.BytesIO(), io.BytesIO()
    Image.fromarray(PHOTO[..., 0].astype(np.float32)).save(floats, format="TIFF")
    Image.fromarray(PHOTO[..., 0].astype(np.uint16) * 257).save(deep, format="PNG")
    found = [
        encoded("PNG"), encoded("PNG", mode="P"), encoded("PNG", mode="LA"), rgba.getvalue(),
        encoded("JPEG", exif=exif, quality=90), encoded("JPEG", mode="CMYK"),
        encoded("JPEG", progressive=True), encoded("WEBP"), encoded("WEBP", lossless=True),
        encoded("TIFF"), encoded("TIFF", compression="tiff_lzw"), encoded("BMP"), encoded("GIF"),
        encoded("AVIF"), encoded("JPEG2000"), floats.getvalue(), deep.getvalue(),
        encoded("MPO", save_all=True, append_images=[Image.fromarray(PHOTO)]),
    ]  # fmt: skip
    try:
        import pillow_heif
    except ImportError:
        return tuple(found)
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(PHOTO)).save(buffer)
    return (*found, buffer.getvalue())


def masks() -> tuple[bytes, ...]:
    """A mask in several encodings."""
    inside = np.zeros(SIZE, np.uint8)
    inside[8:40, 10:50] = 1
    made = []
    for array in (
        inside,
        inside * 255,
        np.dstack([PHOTO, inside * 255]),
        inside.astype("u2") * 255,
    ):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format="PNG")
        made.append(buffer.getvalue())
    return tuple(made)


def check_image(path: Path) -> None:
    size = image_size(path)
    image = read_image(path)
    assert image.shape == (3, *size)
    assert image.dtype == torch.float32
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    loaded = open_image(path)
    restored = loaded.restored(loaded.rgb)
    assert restored.shape == (3 if loaded.alpha is None else 4, *size)
    assert 0 <= float(restored.min()) <= float(restored.max()) <= 1


def check_mask(path: Path) -> None:
    mask = read_mask(path)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.any()
    soft = read_soft_mask(path)
    assert soft.shape == mask.shape
    assert 0 <= float(soft.min()) <= float(soft.max()) <= 1


def check_manifest(path: Path) -> None:
    manifest = load_manifest(path)
    for sample in manifest.samples:
        assert sample.id
        assert not sample.id.startswith(".")
        for name in (sample.context, *(region.mask for region in sample.regions)):
            try:
                assert manifest.path(name).resolve().is_relative_to(path.parent.resolve())
            except UserError:
                continue


def check_labels(path: Path) -> None:
    photos, rejected = read_labels(path)
    assert all(item.reason for item in rejected)
    for photo in photos:
        assert photo.objects
        try:
            image, segments, bad = open_photo(photo)
        except UserError:
            continue
        assert all("\n" not in item.reason for item in bad)
        for segment in segments:
            assert segment.mask.shape == (1, *image.shape[1:])
            assert set(segment.mask.unique().tolist()) <= {0.0, 1.0}
            assert 0 < segment.area <= 1


def check_lora(path: Path) -> None:
    _, adapters = read_lora(path, KONTEXT)
    for adapter in adapters.values():
        assert adapter.a.shape[0] == adapter.b.shape[1] > 0
        assert np.isfinite(adapter.scale)


def check_batch(path: Path) -> None:
    jobs = read_rows(path)
    assert all(job.destination.image.suffix.lower() == ".png" for job in jobs.jobs)
    assert all(isinstance(problem, str) for problem in jobs.problems)


def rows(*values: object) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def lora() -> tuple[bytes, ...]:
    """LoRA files of several programs."""
    a, b = torch.randn(2, 32), torch.randn(32, 2)
    name = "transformer.transformer_blocks.0.attn.to_q"
    state = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    settings = {
        "transformer.r": 2,
        "transformer.lora_alpha": 4,
        "transformer.alpha_pattern": {"to_q": 8, r".*\.attn\.to_(k|v)": 2},
    }
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
    kohya = "lora_unet_double_blocks_0_img_attn_proj"
    other = {
        f"{kohya}.lora_down.weight": a,
        f"{kohya}.lora_up.weight": b,
        f"{kohya}.alpha": torch.tensor(2.0),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 4),
    }
    return safetensors_bytes(state, header), safetensors_bytes(other), safetensors_bytes(state)


SAMPLE = {
    "schema": 1, "id": "pair-0", "context": "a.jpg", "target": "a.jpg", "prompt": "a red dog",
    "regions": [
        {"object": "dog", "style": "neon", "mask": "m.png", "box": [8, 10, 40, 50],
         "score": 0.9, "object_span": [6, 9], "style_span": [2, 5]},
    ],
    "split": "train", "flags": ["single"], "provenance": {"tool": "x", "n": 1},
}  # fmt: skip
POLYGON = [10, 8, 50, 8, 50, 40, 10, 40]
COUNTS = [489] + [32, 16] * 39 + [32, 680]
COUNTS[-1] += 48 * 64 - sum(COUNTS)
LABELS = rows(
    {"image": "a.jpg", "objects": [{"word": "dog", "mask": "m.png", "instances": 2}]},
    {"file": "a.jpg", "word": "cat", "segmentation": [POLYGON, [1, 2]], "width": 64, "height": 48},
    {"file": "a.jpg", "word": "cow", "segmentation": {"size": [48, 64], "counts": COUNTS}},
    {"file": "a.jpg", "word": "owl", "segmentation": {"size": [48, 64], "counts": "oP1PP_2"}},
    {"file": "a.jpg", "word": "ant", "bbox": [10, 8, 40, 32], "width": 128, "height": 96},
    {"file_name": "a.jpg", "text": "x", "attn_list": [["bee", "m.png"]]},
)
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 128, "height": 96, "license": 1}],
    "licenses": [{"id": 1, "name": "CC0"}],
    "categories": [{"id": 1, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[2 * v for v in POLYGON]]},
        {"id": 2, "image_id": 1, "category_id": 1, "segmentation": [], "bbox": [20, 16, 80, 64]},
        {"id": 3, "image_id": 1, "category_id": 1, "iscrowd": 1,
         "segmentation": {"size": [48, 64], "counts": COUNTS}},
    ],
}  # fmt: skip
REGISTRY = {
    "schema": 2, "base": "tiny", "fingerprint": "x", "rank": 2, "alpha": 4.0,
    "targets": "regionroute", "experts": [{"style": "neon", "phrase": None, "file": "neon/x"}],
    "router": {"kind": "similarity", "style_dim": 8, "top_k": 1}, "extra": {"steps": 5},
}  # fmt: skip
BATCH = rows(
    {"image": "a.jpg", "object": "dog", "style": "neon", "out": "o.png", "seed": 3},
    {"image": "a.jpg", "prompt": "a [dog] as {neon}", "out": "p.png", "also": [["cat", "ink"]]},
    {"image": "a.jpg", "object": "dog", "style_image": "m.png", "out": "q.png", "id": "x"},
)


def check_settings(path: Path) -> None:
    shutil.copyfile(path, path.with_name(REGISTRY_FILE))
    registry = read_registry(path.parent)
    assert registry.rank >= 1
    assert registry.experts


def check_folder(path: Path) -> None:
    photos, rejected = list_photos(path.parent, ["dog"])
    assert len(photos) + len(rejected) >= 1


def readers() -> list[Reader]:
    """All of them."""
    photo = {"a.jpg": encoded("JPEG", quality=100), "m.png": masks()[1]}
    configs = sorted((REPOSITORY / "configs").glob("*.yaml"))
    styles = sorted((REPOSITORY / "pseudo_labels" / "styles").glob("*.yaml"))
    peft = json.dumps({"r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": 8}}).encode()

    def check_config(path: Path) -> None:
        shutil.copyfile(path, path.with_name("adapter_config.json"))
        check_lora(path.parent)

    return [
        Reader("image.png", images(), check_image, {}),
        Reader("mask.png", masks(), check_mask, {}),
        Reader("manifest.jsonl", (rows(SAMPLE, SAMPLE | {"id": "pair-1"}),), check_manifest, photo),
        Reader("labels.jsonl", (LABELS,), check_labels, photo),
        Reader("labels.json", (json.dumps(COCO).encode(),), check_labels, photo),
        Reader("lora.safetensors", lora(), check_lora, {}),
        Reader("config.txt", (peft,), check_config, {"adapter_model.safetensors": lora()[2]}),
        Reader("registry.txt", (json.dumps(REGISTRY).encode(),), check_settings, {}),
        Reader("rows.jsonl", (BATCH,), check_batch, photo),
        Reader(
            "run.yaml",
            tuple(file.read_bytes() for file in configs if file.name.startswith("kontext")),
            lambda path: load_config(path, [], RunConfig) and None,
            {},
        ),
        Reader(
            "styles.yaml",
            tuple(file.read_bytes() for file in styles),
            lambda path: load_styles(path) and None,
            {},
        ),
    ]
