"""The data tab: skim the data set of `regionroute label`, filter it, exclude samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from regionroute.data.images import read_image, to_pil
from regionroute.data.manifest import EditSample, Manifest, load_manifest
from regionroute.data.shards import has_manifest
from regionroute.errors import UserError
from regionroute.studio.views import thumbnail

PAGE = 24  # samples
MAX_SETS = 100  # names offered
ANY = "all"
STATES = (ANY, "kept", "excluded")


@dataclass(frozen=True)
class Filter:
    """Which samples to show.

    Attributes:
        object: word of an object, or `ANY`.
        style: name of a style, or `ANY`.
        split: name of a split, or `ANY`.
        shown: one of `STATES`.
    """

    object: str = ANY
    style: str = ANY
    split: str = ANY
    shown: str = ANY

    def keeps(self, sample: EditSample, excluded: frozenset[str]) -> bool:
        """Whether a sample is shown."""
        found = (
            (self.object, {region.object for region in sample.regions}),
            (self.style, {region.style for region in sample.regions}),
            (self.split, {sample.split}),
            (self.shown, {"excluded" if sample.id in excluded else "kept"}),
        )
        return all(wanted in (ANY, "") or wanted in values for wanted, values in found)


@dataclass(frozen=True)
class DataSet:
    """An opened data set.

    Attributes:
        name: as the user typed it.
        manifest: its samples.
    """

    name: str
    manifest: Manifest

    @property
    def excluded(self) -> frozenset[str]:
        """Ids on the list that the next `regionroute label` honours."""
        from pseudo_labels.review.exclusions import read_excluded

        return read_excluded(self.manifest.root)

    def choices(self) -> tuple[list[str], list[str], list[str]]:
        """Objects, styles and splits to filter by."""
        regions = [region for sample in self.manifest for region in sample.regions]
        found = (
            {region.object for region in regions},
            {region.style for region in regions},
            {sample.split for sample in self.manifest},
        )
        objects, styles, splits = ([ANY, *sorted(values)] for values in found)
        return objects, styles, splits

    def select(self, which: Filter) -> list[EditSample]:
        """The samples that a filter keeps, in the manifest's order."""
        excluded = self.excluded
        return [sample for sample in self.manifest if which.keeps(sample, excluded)]

    def page(self, samples: Sequence[EditSample], number: int) -> list[tuple[Image.Image, str]]:
        """Thumbnails and captions of one page, from 1."""
        excluded = self.excluded
        chosen = samples[(number - 1) * PAGE : number * PAGE]
        return [
            (thumbnail(self.manifest.path(sample.target)), caption(sample, excluded))
            for sample in chosen
        ]

    def images(self, sample: EditSample) -> list[tuple[Image.Image, str]]:
        """Photo, masks and target of a sample."""
        path = self.manifest.path
        found = [(to_pil(read_image(path(sample.context))), "photo")]
        found += [
            (to_pil(read_image(path(region.mask))), f"mask: {region.object}")
            for region in sample.regions
        ]
        return [*found, (to_pil(read_image(path(sample.target))), "target")]

    def exclude(self, ids: Sequence[str], excluded: bool = True) -> None:
        """Put samples on the list, or take them off it.

        Raises:
            UserError: an id that is not in the data set.
        """
        from pseudo_labels.review.exclusions import write_excluded

        known = {sample.id for sample in self.manifest}
        for name in ids:
            if name not in known:
                raise UserError(f"there is no sample {name!r} in {self.name}")
        now = self.excluded
        write_excluded(self.manifest.root, now | set(ids) if excluded else now - set(ids))


def open_data_set(name: str, roots: Sequence[str]) -> DataSet:
    """A data set in one of the folders that the server allows.

    Args:
        name: its folder, relative to one of `roots`, or the name of one.
        roots: allowed folders.

    Raises:
        UserError: no such data set there; or none is allowed.
    """
    if not roots:
        raise UserError(
            "this server opens no data sets: start it with `regionroute serve --data DIR`"
        )
    for root in (Path(root).resolve() for root in roots):
        candidates = [root / name, *([root] if name.strip("/") in ("", ".", root.name) else [])]
        for folder in (path.resolve() for path in candidates):
            if folder.is_relative_to(root) and folder.is_dir() and has_manifest(folder):
                return DataSet(name or root.name, load_manifest(folder))
    raise UserError(
        f"{name!r}: no data set of this name in the folders of this server, which has "
        f"{', '.join(data_sets(roots)) or 'none'}"
    )


def data_sets(roots: Sequence[str]) -> list[str]:
    """Names of the data sets in the allowed folders: each folder itself and those in it."""
    found = []
    for root in (Path(root) for root in roots):
        if root.is_dir() and has_manifest(root):
            found.append(root.resolve().name)
        below = sorted(path for path in root.glob("*") if path.is_dir() and has_manifest(path))
        found += [path.name for path in below]
    return found[:MAX_SETS]


def caption(sample: EditSample, excluded: frozenset[str]) -> str:
    """A sample in a few words."""
    pairs = ", ".join(f"{region.object} · {region.style}" for region in sample.regions)
    sign = "✕ excluded · " if sample.id in excluded else ""
    return f"{sign}{pairs or 'whole image'} · {sample.split}"
