"""Finds and reads a method's edits: the image, its sidecar and its attention map.

An edits folder holds for each sample ``<id>.png`` (or another image of that name), else one of
the context's file name, and, as `regionroute edit` writes them, ``<id>.json`` (sidecar) and
``<id>.map.png`` (8-bit grey, 128 is the decision boundary).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from eval.metrics.attention import MAP_LEVELS
from regionroute.data.image_files import SUFFIXES
from regionroute.data.images import read_image
from regionroute.data.manifest import EditSample
from regionroute.errors import UserError
from regionroute.files import AnyPath, read_json

FLOOR, CEILING = "floor", "ceiling"
_USUAL = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")  # the first that is there
ENDINGS = (*_USUAL, *sorted(SUFFIXES.difference(_USUAL)))
ASPECT_TOLERANCE = 0.02
SIZE_RULE = (
    "an edit of another size than its context is resampled to the context's (bicubic, antialiased) "
    f"and counted if its aspect ratio is within {ASPECT_TOLERANCE:.0%} of the context's; any other "
    "is not scored"
)
RESIZED, GREY, FULL_MASK, NO_MAP = "other size", "greyscale", "full mask", "map skipped"
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")


@dataclass(frozen=True)
class Remark:
    """Something unusual about an edit that was scored nevertheless.

    Attributes:
        kind: one of the four constants above; remarks are counted by it.
        text: one sentence.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Edit:
    """One edited image.

    Attributes:
        image: [3,H,W] in [0,1] at the context's size.
        region_map: [h,w] in [0,1], None without a readable map.
        remarks: what was unusual.
    """

    image: Tensor
    region_map: Tensor | None = None
    remarks: list[Remark] = field(default_factory=list)


def parse_edits(items: Mapping[str, AnyPath] | Sequence[str]) -> dict[str, Path]:
    """The folders of edits by name, in order.

    Args:
        items: {name: folder}, or ``name=folder`` or ``folder`` (named by its last part) each.

    Raises:
        UserError: no such folder, a name used twice, or one of the two reserved names.
    """
    methods: dict[str, Path] = {}
    for name, folder in items.items() if isinstance(items, Mapping) else map(_named, items):
        given = f"{name}={folder}" if name else folder
        path = Path(folder).expanduser()
        name = name or path.resolve().name
        if not str(folder) or not path.is_dir():
            raise UserError(f"--edits {given}: no such folder, make the edits first")
        if name in (FLOOR, CEILING):
            raise UserError(f"--edits {given}: the name {name!r} is reserved, choose another")
        if name in methods:
            raise UserError(f"--edits {given}: the name {name!r} is used twice, write NAME=DIR")
        methods[name] = path
    return methods


def _named(item: str) -> tuple[str, str]:
    """Name, empty if none is given, and folder of ``name=folder`` or ``folder``."""
    # A folder that exists as written may have "=" in its path.
    if "=" not in item or Path(item).expanduser().is_dir():
        return "", item
    name, _, folder = item.partition("=")
    return name, folder


class EditFinder:
    """Finds the file of a sample's edit in a method's folder.

    Args:
        folders: {method: folder}.
        samples: all that are scored; a context name shared by two of them identifies neither.
    """

    def __init__(self, folders: dict[str, Path], samples: Sequence[EditSample]) -> None:
        self.folders = folders
        self._names = {name: _names_by_ending(path) for name, path in folders.items()}
        self._uses = Counter(PurePosixPath(sample.context).stem for sample in samples)

    def path(self, method: str, sample: EditSample) -> Path:
        """The file of a sample's edit; ``<id>.png`` where there is none.

        Raises:
            UserError: only the context's name is there and other samples have the same.
        """
        folder, names = self.folders[method], self._names[method]
        stem = PurePosixPath(sample.context).stem
        for base in (sample.id, stem):
            for ending in ENDINGS:
                name = names.get(base + ending)
                if name is None:
                    continue
                if base == stem != sample.id and self._uses[stem] > 1:
                    raise UserError(
                        f"{folder / name}: {self._uses[stem]} samples have a context of "
                        f"this name, name their edits by id ({sample.id}.png and so on)"
                    )
                return folder / name
        return folder / f"{sample.id}.png"


def _names_by_ending(folder: Path) -> dict[str, str]:
    """File names by their name with the ending in lower case; a lower-case file wins."""
    found: dict[str, str] = {}
    for name in sorted(file.name for file in folder.iterdir()):  # upper case sorts first
        found[PurePosixPath(name).stem + PurePosixPath(name).suffix.lower()] = name
    return found


def map_path(folder: Path, sample_id: str) -> Path:
    """Path of a sample's attention map; the file need not exist."""
    upper = folder / f"{sample_id}.map.PNG"
    return upper if upper.exists() else folder / f"{sample_id}.map.png"


def load_edit(path: Path, sample_id: str, size: tuple[int, int]) -> Edit:
    """Reads a sample's edit and the map next to it; a bad map costs only the map.

    Args:
        path: of the edit.
        sample_id: the sample.
        size: (height, width) of its context.

    Raises:
        UserError: the edit is missing, damaged, not finite or of another aspect ratio.
    """
    remarks = []
    image = read_image(path)
    if image.shape[1:] != size:
        image, remark = _resampled(path, image, size)
        remarks.append(remark)
    with Image.open(path) as opened:
        if opened.mode in _GREY_MODES:
            remarks.append(Remark(GREY, f"{path}: greyscale, read as three equal channels"))
    if not map_path(path.parent, sample_id).exists():
        return Edit(image, None, remarks)
    try:
        return Edit(image, load_map(path.parent, sample_id), remarks)
    except UserError as error:
        return Edit(image, None, [*remarks, Remark(NO_MAP, str(error))])


def _resampled(path: Path, image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Remark]:
    height, width = image.shape[1:]
    sentence = f"{path}: {width}x{height} pixels but its context is {size[1]}x{size[0]}"
    if abs((width / height) / (size[1] / size[0]) - 1) > ASPECT_TOLERANCE:
        raise UserError(f"{sentence}, another shape cannot be compared, make the edit again")
    new = F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)
    return new[0].clamp(0, 1), Remark(RESIZED, f"{sentence}, resampled to that")


def load_map(folder: Path, sample_id: str) -> Tensor:
    """The attention map at its own resolution: the PNG averaged to the sidecar's ``map.grid``.

    Without a grid in the sidecar every pixel of the PNG is a cell.

    Returns:
        [h,w] in [0,1), boundary at .5.

    Raises:
        UserError: the map or the sidecar is damaged, or the map is no greyscale image of finite
            values.
    """
    path = map_path(folder, sample_id)
    pixels = read_image(path)
    if not (pixels == pixels[:1]).all():
        raise UserError(f"{path}: a map is an 8-bit greyscale image, this one has colours")
    grey = (pixels[0] * 255).round() / MAP_LEVELS
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
