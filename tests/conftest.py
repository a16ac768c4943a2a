"""Fixtures for every test: one thread, the shared assets, a tiny base and a tiny manifest."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regionroute.manifest import EditSample, Region, write_manifest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def assets():
    """Folder of the shared assets: real photos, masks and small networks."""
    given = os.environ.get("REGIONROUTE_ASSETS")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "assets"
    if not (folder / "photos" / "labels.jsonl").is_file():
        pytest.skip(f"no shared assets at {folder}: set REGIONROUTE_ASSETS to their folder")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a random Kontext pipeline of the real classes; do not write into it."""
    from regionroute.backbones.tiny import build_tiny

    return build_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def tiny_manifest(tmp_path):
    """Folder of a manifest of four 64 px pairs: two objects, two styles, exact masks."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    write_manifest(folder, [_write_pair(folder, index) for index in range(4)])
    return folder


def _write_pair(folder, index):
    word, style = ("square", "circle")[index % 2], ("pixel-art", "line-art")[index // 2]
    rng = np.random.default_rng(index)
    context = rng.integers(60, 120, (64, 64, 3), dtype=np.uint8)
    y, x = np.mgrid[:64, :64]
    middle = 20 + 6 * index
    away = (np.abs(y - 32), np.abs(x - middle))
    inside = np.maximum(*away) < 12 if word == "square" else np.hypot(*away) < 12
    context[inside] = (200, 80 + 30 * index, 40)
    target = context.copy()
    target[inside] = (40, 220, 90) if style == "pixel-art" else 250
    names = {kind: f"{index}.{kind}.png" for kind in ("context", "target", "mask")}
    Image.fromarray(context).save(folder / names["context"])
    Image.fromarray(target).save(folder / names["target"])
    Image.fromarray((inside * 255).astype(np.uint8)).save(folder / names["mask"])
    rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
    box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    return EditSample(
        id=f"pair-{index}",
        context=names["context"],
        target=names["target"],
        regions=(Region(word, style, names["mask"], box),),
        prompt=f"make the {word} in {style} style, keep other area unchanged",
        split="val" if index == 3 else "train",
        provenance={"seed": index},
    )
