"""A bank of photos, read for pre-training.

The bank (`regionroute bank`) holds photos, masks, words and every photo in every style and colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from regionroute.errors import UserError
from regionroute.files import read_json

PHOTO = "photos"  # the rendering that is none


@dataclass(frozen=True)
class Placement:
    """Crop (rows, columns) of a square, mirrored or not, scaled to a window of the picture."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    mirrored: bool
    window: tuple[int, int, int, int]  # top, left, height, width in the picture


class PhotoBank:
    """Pictures of a bank, opened when first asked for, so that worker processes share the file.

    Args:
        folder: of `regionroute bank`.

    Raises:
        UserError: no bank lies there, or it is not complete.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = self._index()
        self.side: int = index["side"]
        self.photos: list[dict[str, Any]] = index["photos"]
        self.renderings: dict[str, dict[str, str]] = index["renderings"]
        counts = [len(row["words"]) for row in self.photos]
        self.first_mask = [sum(counts[:i]) for i in range(len(counts))]
        self._open: dict[str, Any] = {}

    def _index(self) -> dict[str, Any]:
        path = self.folder / "bank.json"
        if not path.exists():
            raise UserError(f"{self.folder}: no bank lies here, make one with `regionroute bank`")
        index = read_json(path)
        if not isinstance(index, dict) or not {"side", "photos", "renderings"} <= set(index):
            raise UserError(f"{path}: this is not the index of a bank, make it again")
        for name in (PHOTO, *index["renderings"]):
            if not (self.folder / f"{name}.safetensors").exists():
                raise UserError(
                    f"{self.folder}: {name}.safetensors is missing, run `regionroute bank` again"
                )
        return index

    def names(self, kind: str) -> list[str]:
        """Renderings of a kind: "style" or "colour"."""
        return [name for name, row in self.renderings.items() if row["kind"] == kind]

    def split(self, name: str) -> list[int]:
        """Numbers of the photos of a split."""
        return [i for i, row in enumerate(self.photos) if row["split"] == name]

    def picture(self, rendering: str, photo: int) -> Tensor:
        """[3,S,S] in [0,1]."""
        pixels: Tensor = self._file(rendering).get_slice("pictures")[photo]
        return pixels.float() / 255

    def masks(self, photo: int) -> Tensor:
        """[N,S,S] in {0,1}, in the order of the photo's words."""
        first = self.first_mask[photo]
        last = first + len(self.photos[photo]["words"])
        pixels: Tensor = self._file(PHOTO).get_slice("masks")[first:last]
        return pixels.float()

    def placed(self, rendering: str, photo: int, place: Placement, side: int) -> Tensor:
        """A photo's rendering where `place` puts it, zero elsewhere: [3,side,side]."""
        return put(self.picture(rendering, photo), place, side)

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / f"{name}.safetensors"
            try:
                self._open[name] = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{path} cannot be read ({error}): remove it and run `regionroute bank` again"
                ) from error
        return self._open[name]


def put(picture: Tensor, place: Placement, side: int) -> Tensor:
    """[C,S,S] cropped, mirrored, scaled and set into zeros [C,side,side]."""
    part = picture[:, slice(*place.rows), slice(*place.columns)]
    if place.mirrored:
        part = part.flip(-1)
    top, left, height, width = place.window
    if part.shape[-2:] != (height, width):
        part = F.interpolate(part[None], (height, width), mode="bilinear", antialias=True)[0]
    out = picture.new_zeros(len(picture), side, side)
    out[:, top : top + height, left : left + width] = part
    return out
