"""Finds and reads what a method made: the picture, its sidecar and its attention map.

An edits folder holds for each sample ``<id>.png`` and, as `regionroute edit` writes them,
``<id>.json`` (sidecar) and ``<id>.map.png`` (8-bit grey, 128 is the decision boundary).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.metrics.attention import MAP_LEVELS
from regionroute.errors import UserError
from regionroute.io import read_image, read_json

FLOOR, CEILING = "floor", "ceiling"


@dataclass(frozen=True)
class Edit:
    """One edited picture.

    Attributes:
        image: [3,H,W] in [0,1].
        region_map: [h,w] in [0,1], None without a readable map.
        map_problem: why there is a map file but no map, one sentence.
    """

    image: Tensor
    region_map: Tensor | None = None
    map_problem: str | None = None


def parse_edits(items: list[str]) -> dict[str, Path]:
    """``name=folder`` or ``folder`` (named by its last part) to an ordered {name: folder}.

    Raises:
        UserError: no such folder, a name used twice, or one of the two reserved names.
    """
    methods: dict[str, Path] = {}
    for item in items:
        name, _, folder = item.rpartition("=")
        path = Path(folder).expanduser()
        name = name or path.resolve().name
        if not folder or not path.is_dir():
            raise UserError(f"--edits {item}: no folder {folder}, make the edits first")
        if name in (FLOOR, CEILING):
            raise UserError(f"--edits {item}: the name {name!r} is reserved, choose another")
        if name in methods:
            raise UserError(f"--edits {item}: the name {name!r} is used twice, write NAME={folder}")
        methods[name] = path
    return methods


def edit_path(folder: Path, sample_id: str) -> Path:
    """Where a sample's edit is."""
    return folder / f"{sample_id}.png"


def map_path(folder: Path, sample_id: str) -> Path:
    """Where a sample's attention map is, if there is one."""
    return folder / f"{sample_id}.map.png"


def load_edit(folder: Path, sample_id: str, size: tuple[int, int]) -> Edit:
    """Reads a sample's edit; a bad map costs only the map.

    Args:
        folder: of the method.
        sample_id: the sample.
        size: (height, width) of its context.

    Raises:
        UserError: the edit is missing, damaged, not finite or of another size.
    """
    path = edit_path(folder, sample_id)
    image = read_image(path)
    if image.shape[1:] != size:
        raise UserError(
            f"{path}: {image.shape[2]}x{image.shape[1]} pixels but its context is "
            f"{size[1]}x{size[0]}, edits must keep the size"
        )
    if not torch.isfinite(image).all():
        raise UserError(f"{path}: holds values that are not finite, make the edit again")
    if not map_path(folder, sample_id).exists():
        return Edit(image)
    try:
        return Edit(image, load_map(folder, sample_id))
    except UserError as error:
        return Edit(image, None, str(error))


def load_map(folder: Path, sample_id: str) -> Tensor:
    """The attention map at its own resolution: the PNG averaged to the sidecar's ``map.grid``.

    Without a grid in the sidecar every pixel of the PNG is a cell.

    Returns:
        [h,w] in [0,1), boundary at .5.

    Raises:
        UserError: the map or the sidecar is damaged.
    """
    path = map_path(folder, sample_id)
    grey = (read_image(path)[0] * 255).round() / MAP_LEVELS
    sidecar = folder / f"{sample_id}.json"
    settings = read_json(sidecar) if sidecar.exists() else {}
    entry = settings.get("map") if isinstance(settings, dict) else None
    grid = entry.get("grid") if isinstance(entry, dict) else None
    if grid is None:
        return grey
    whole = isinstance(grid, list) and len(grid) == 2 and all(type(side) is int for side in grid)
    if not whole or not (0 < grid[0] <= grey.shape[0] and 0 < grid[1] <= grey.shape[1]):
        raise UserError(f"{sidecar}: map.grid {grid!r} does not fit {path.name}, make it again")
    return F.adaptive_avg_pool2d(grey[None, None], (grid[0], grid[1]))[0, 0]
