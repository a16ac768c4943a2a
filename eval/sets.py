"""Measures of a whole set of edits: FID against the styles' images, and ArtFID.

Features are made once per image and kept in a file; the distance itself is torchmetrics', whose
memory does not depend on their number.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eval.edits import FLOOR
from eval.encoders.extras import FrechetDistance
from eval.encoders.vision import ImageEncoder
from eval.metrics.views import SCOPES, Scope, crop_box
from eval.scoring import Row
from eval.style_images import StyleImages
from regionroute.data.images import read_image, read_mask
from regionroute.files import file_hash, settings_hash
from regionroute.remote import grown

CHUNK = 256  # feature vectors at a time
DEFINITIONS = {
    "fid": "Frechet inception distance (torchmetrics, features of torch-fidelity's Inception) "
    "between the edits and the images of the styles that occur, each once; biased upwards by few "
    "images: compare at equal n only",
    "artfid": "(1 + mean LPIPS) (1 + FID)",
}


def artfid(lpips: float, fid: float) -> float:
    """(1 + LPIPS)(1 + FID) (Wright and Ommer, 2022)."""
    return (1 + lpips) * (1 + fid)


class FeatureStore:
    """Feature vectors by key in two files that are only ever appended to.

    Args:
        folder: where.
        name: of the network and its weights.
        width: numbers in a vector.
    """

    def __init__(self, folder: Path, name: str, width: int) -> None:
        self._numbers, self._keys = folder / f"{name}.f32", folder / f"{name}.keys"
        self.width = width
        self._place: dict[str, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if not self._keys.exists() or not self._numbers.exists():
            self._numbers.write_bytes(b"")
            self._keys.write_text("")
        keys = self._keys.read_text().split("\n")[:-1]
        whole = min(len(keys), self._numbers.stat().st_size // (4 * width))
        # A killed run may have left an incomplete entry.
        with self._numbers.open("r+b") as file:
            file.truncate(whole * 4 * width)
        self._keys.write_text("".join(key + "\n" for key in keys[:whole]))
        self._place = {key: number for number, key in enumerate(keys[:whole])}

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def add(self, key: str, vector: Tensor) -> None:
        """Keeps a vector [width]."""
        with self._numbers.open("ab") as file:
            file.write(vector.float().cpu().numpy().astype("<f4").tobytes())
        with self._keys.open("a") as file:
            file.write(key + "\n")
        grown(self._numbers)
        grown(self._keys)
        self._place[key] = len(self._place)

    def read(self, keys: Sequence[str]) -> Iterator[Tensor]:
        """The vectors of keys in chunks [N,width]; a repeated key gives its vector again."""
        places = sorted(self._place[key] for key in keys)
        if not places:
            return
        table = np.memmap(self._numbers, "<f4", "r").reshape(-1, self.width)
        for start in range(0, len(places), CHUNK):
            yield torch.from_numpy(np.array(table[places[start : start + CHUNK]]))


def score_sets(
    rows: Sequence[Row],
    scores: Path,
    encoder: ImageEncoder,
    styles: StyleImages,
    scope: Scope,
    width: int = 2048,
) -> dict[str, dict[str, Any]]:
    """FID and, where the rows have LPIPS, ArtFID of every method.

    Args:
        rows: of :class:`eval.scoring.Scorer`.
        scores: the folder that their file names are relative to; features are kept in it.
        encoder: the Inception.
        styles: the reference.
        scope: what is measured.
        width: numbers in a feature vector.

    Returns:
        {method: {"fid": {"value", "n", "n_reference"}, "artfid": {...}}}; a value is None with
        fewer than two images on a side.
    """
    identity = encoder.identity()
    store = FeatureStore(scores / "features", settings_hash([identity, scope]), width)
    good = [row for row in rows if not row["error"]]
    edits: dict[str, list[str]] = {}
    for row in tqdm(good, desc="FID features", unit="image"):
        edits.setdefault(row["method"], []).extend(_row_keys(row, scores, encoder, scope, store))
    reference = _reference_keys(good, encoder, styles, store)
    found: dict[str, dict[str, Any]] = {}
    for method, keys in edits.items():
        distance = _distance(store, keys, reference)
        counts = {"n": len(keys), "n_reference": len(reference)}
        found[method] = {"fid": {"value": distance, **counts}}
        values = [row["metrics"].get("lpips") for row in good if row["method"] == method]
        known = [value for value in values if value is not None]
        if known:
            value = None if distance is None else artfid(float(np.mean(known)), distance)
            found[method]["artfid"] = {"value": value, **counts}
    return found


def describe_sets(encoder: ImageEncoder, scope: Scope) -> dict[str, Any]:
    """Definitions and the network, for the summary."""
    texts = {name: f"{text}; {SCOPES[scope]}" for name, text in DEFINITIONS.items()}
    return {"definitions": texts, "encoder": encoder.identity()}


def _distance(store: FeatureStore, edits: Sequence[str], reference: Sequence[str]) -> float | None:
    distance = FrechetDistance(store.width)
    for keys, is_reference in ((reference, True), (edits, False)):
        for vectors in store.read(keys):
            distance.update(vectors, reference=is_reference)
    return distance.compute()


def _row_keys(
    row: Row, scores: Path, encoder: ImageEncoder, scope: Scope, store: FeatureStore
) -> list[str]:
    """The keys of a row's views (one of the whole image); what is not stored yet is made."""
    files = row["files"]
    name = files.get("edit") or files["source" if row["method"] == FLOOR else "target"]
    masks = [scores / mask for mask in files["masks"]] if scope == "object" else [None]
    hashes = ["" if mask is None else file_hash(mask) for mask in masks]
    keys = [settings_hash([file_hash(scores / name), mask_hash]) for mask_hash in hashes]
    if all(key in store for key in keys):
        return keys
    picture = read_image(scores / name)
    for key, mask in zip(keys, masks, strict=True):
        if key not in store:
            view = picture if mask is None else _view(picture, mask, row["size"])
            store.add(key, encoder.encode_image([view])[0])
    return keys


def _view(picture: Tensor, mask: Path, size: Sequence[int]) -> Tensor:
    """The mask's padded box in an image that may be of another size than its context."""
    y0, x0, y1, x1 = crop_box(read_mask(mask))
    down, across = picture.shape[1] / size[0], picture.shape[2] / size[1]
    rows = slice(round(y0 * down), round(y1 * down))
    return picture[:, rows, round(x0 * across) : round(x1 * across)]


def _reference_keys(
    rows: Iterable[Row], encoder: ImageEncoder, styles: StyleImages, store: FeatureStore
) -> list[str]:
    keys = []
    for style in sorted({style for row in rows for style in row["styles"]}):
        for file in styles.of(style):
            key = settings_hash(["reference", file_hash(file)])
            if key not in store:
                store.add(key, encoder.encode_image([read_image(file)])[0])
            keys.append(key)
    return list(dict.fromkeys(keys))
