"""Training pairs on disk: one JSON line per sample, next to its images.

A manifest is a folder with ``manifest.jsonl`` and the images it names by relative paths. Every
row carries ``"schema": 1`` and the fields of `EditSample`. A large one may be cut into files
``manifest-*.jsonl`` of that folder (`regionroute.data.shards`).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, overload

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from regionroute.data.images import image_size, read_image, read_mask
from regionroute.data.names import id_problem, leaves_folder, path_problem
from regionroute.data.shards import FILE_NAME, ShardedRows, manifest_file, manifest_files
from regionroute.data.startup.columns import Columns, read_columns
from regionroute.errors import UserError, nearest
from regionroute.files import AnyPath, numbered_lines, parse_json_line, write_jsonl

SCHEMA_VERSION = 1
WHOLE = "whole"  # flag of samples that restyle everything


@dataclass(frozen=True)
class StyleSpec:
    """A style by name, with the words that stand for it in prompts (None: the name itself)."""

    name: str
    phrase: str | None = None

    @property
    def words(self) -> str:
        """The words used in prompts."""
        return self.phrase or self.name


@dataclass(frozen=True)
class Region:
    """One restyled object of a sample.

    Attributes:
        object: the word that names the object.
        style: the style's name.
        mask: relative path of an image of the sample's size, white inside the object.
        box: (y0, x0, y1, x1) in pixels, half-open.
        score: the segmenter's confidence in [0,1]; 1 for exact masks.
        object_span: characters [start, end) of the object phrase in the prompt, None: find it.
        style_span: the same for the style phrase.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    object: str
    style: str
    mask: str
    box: tuple[int, int, int, int]
    score: float = 1.0
    object_span: tuple[int, int] | None = None
    style_span: tuple[int, int] | None = None


@dataclass(frozen=True)
class EditSample:
    """One training pair. Paths are relative to the manifest's folder, with forward slashes.

    Attributes:
        id: unique in the manifest and usable as a file name; caches and results are keyed by it.
        context: the image before the edit.
        target: the image after it, of the same size.
        regions: the restyled objects; empty when the whole image is restyled.
        prompt: the instruction.
        split: "train", "val", ...
        flags: remarks such as "touching" or "occluded".
        provenance: how the sample came about: source, tool, settings, seed.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: str
    context: str
    target: str
    regions: tuple[Region, ...]
    prompt: str
    split: str = "train"
    flags: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of all its images."""
        return (self.context, self.target, *(region.mask for region in self.regions))

    @property
    def whole(self) -> bool:
        """Whether everything is restyled: to train on, with no region to be found or scored."""
        return WHOLE in self.flags


@dataclass(frozen=True)
class Manifest(Sequence[EditSample]):
    """The samples of a folder, as a sequence, and the images they name.

    Attributes:
        root: the folder, which the paths of samples are relative to.
        samples: parsed when they are asked for if the manifest is packed or of several files.
        columns: of a packed manifest, see `regionroute.data.startup.columns`.
    """

    root: Path
    samples: Sequence[EditSample]
    columns: Columns | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[EditSample]:
        return iter(self.samples)

    @overload
    def __getitem__(self, index: int) -> EditSample: ...
    @overload
    def __getitem__(self, index: slice) -> "Manifest": ...
    def __getitem__(self, index: int | slice) -> "EditSample | Manifest":
        if isinstance(index, slice):
            return Manifest(self.root, self.samples[index])
        return self.samples[index]

    def split(self, name: str) -> "Manifest":
        """The samples of one split, such as "train" or "val".

        Raises:
            UserError: the manifest has no such split.
        """
        chosen = [sample for sample in self if sample.split == name]
        if not chosen:
            known = ", ".join(sorted({sample.split for sample in self})) or "none"
            raise UserError(f"{self.root}: no sample of split {name!r} (splits: {known})")
        return Manifest(self.root, chosen)

    def path(self, relative: str) -> Path:
        """The file behind a relative path.

        Raises:
            UserError: the path leaves the manifest's folder, directly or through a link.
        """
        refusal = path_problem(relative)
        if refusal is None and leaves_folder(self.root, relative):
            refusal = "it leaves the manifest's folder through a link"
        if refusal:
            raise UserError(f"{self.root / FILE_NAME}: path {relative!r} is refused: {refusal}")
        return self.root / relative

    def context(self, sample: EditSample) -> Tensor:
        """The image before the edit: [3,H,W] in [0,1]."""
        return read_image(self.path(sample.context))

    def target(self, sample: EditSample) -> Tensor:
        """The image after the edit: [3,H,W] in [0,1].

        Raises:
            UserError: it is missing, damaged or not of the context's size.
        """
        path = self.path(sample.target)
        target = read_image(path)
        height, width = image_size(self.path(sample.context))
        if target.shape[1:] != (height, width):
            raise UserError(
                f"{path}: the target is {target.shape[2]}x{target.shape[1]} pixels but its context "
                f"is {width}x{height}, make them the same size"
            )
        return target

    def masks(self, sample: EditSample) -> Tensor:
        """The regions' masks: [S,1,H,W] in {0,1} at the context's size, [0,1,H,W] without any.

        Raises:
            UserError: one is missing, damaged or of another size.
        """
        size = image_size(self.path(sample.context))
        if not sample.regions:
            return torch.zeros(0, 1, *size)
        return torch.stack([read_mask(self.path(region.mask), size) for region in sample.regions])


def mask_box(mask: Tensor) -> tuple[int, int, int, int]:
    """Smallest (y0, x0, y1, x1), half-open, around the ones of a mask [1,H,W].

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = mask[0].any(1).nonzero(), mask[0].any(0).nonzero()
    if not len(rows):
        raise ValueError("an empty mask has no box")
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def load_manifest(path: AnyPath) -> Manifest:
    """Reads and validates every row; images are opened later, on access.

    Args:
        path: ``manifest.jsonl`` or its folder; or a pattern of several files. The rows of one file
            are held in memory, those of several are parsed when they are asked for. The rows of a
            packed manifest are not read here.

    Raises:
        UserError: naming file and line, for a row that is not right: another schema version, an
            unknown or missing key, a wrong type, an id used twice, a path outside the folder.
    """
    file, files = manifest_file(path), manifest_files(path)
    columns = read_columns(files)
    if columns is not None:
        known = columns.counts, columns.numbers["offset"], columns.numbers["name"]
        return Manifest(file.parent, ShardedRows(files, parse_row, known), columns)
    if files != [file]:
        return Manifest(file.parent, ShardedRows(files, parse_row))
    samples = []
    for row in parse_rows(file):
        if isinstance(row, UserError):
            raise row
        samples.append(row)
    return Manifest(file.parent, samples)


def write_manifest(path: AnyPath, samples: Iterable[EditSample]) -> None:
    """Writes the manifest in one go; `path` is the file or its folder.

    Raises:
        UserError: two samples share an id, or an id or a path could not be read back.
    """
    file = Path(path) if Path(path).suffix == ".jsonl" else Path(path) / FILE_NAME
    rows, seen = [], set()
    for number, sample in enumerate(samples, start=1):
        problem = _sample_problem(sample)
        if sample.id in seen:
            problem = f"id {sample.id!r} is used twice, ids must be unique"
        if problem:
            raise UserError(f"{file}:{number}: {problem}")
        seen.add(sample.id)
        rows.append({"schema": SCHEMA_VERSION, **dataclasses.asdict(sample)})
    write_jsonl(file, rows)


def parse_rows(path: Path) -> Iterator[EditSample | UserError]:
    """Each row as a sample or, where it is not right, as the error that says why.

    Args:
        path: as `load_manifest` takes it.

    Raises:
        UserError: the file itself is missing or not text.
    """
    first: dict[str, str] = {}
    files = manifest_files(path)
    for file in files:
        if not file.exists():
            raise UserError(
                f"{file}: no such manifest, give a manifest.jsonl or the folder it is in"
            )
        for number, line in numbered_lines(file):
            try:
                sample = parse_row(file, number, line)
                if sample.id in first:
                    raise UserError(
                        f"{file}:{number}: id {sample.id!r} was used on {first[sample.id]} "
                        "already, ids must be unique"
                    )
            except UserError as error:
                yield error
                continue
            first[sample.id] = f"line {number}" + (f" of {file.name}" if len(files) > 1 else "")
            yield sample


def parse_row(file: Path, number: int, line: str) -> EditSample:
    """One line as a sample; `file` and `number` are for the error's sentence.

    Raises:
        UserError: the row is not right.
    """
    row = parse_json_line(file, number, line)
    schema = row.pop("schema", None)
    if schema != SCHEMA_VERSION:
        found = "no schema version" if schema is None else f"schema version {schema!r}"
        newer = isinstance(schema, int) and schema > SCHEMA_VERSION
        remedy = "update regionroute" if newer else "rebuild the manifest"
        raise UserError(
            f"{file}:{number}: {found} where this program reads {SCHEMA_VERSION}, {remedy}"
        )
    try:
        sample = _adapter().validate_python(row)
    except ValidationError as error:
        raise UserError(f"{file}:{number}: {_row_problem(error)}") from error
    problem = _sample_problem(sample)
    if problem:
        raise UserError(f"{file}:{number}: {problem}")
    return sample


@cache
def _adapter() -> TypeAdapter[EditSample]:
    return TypeAdapter(EditSample)


def _row_problem(error: ValidationError) -> str:
    """The first thing wrong with a row's keys or types, in words."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        cls = EditSample if len(first["loc"]) == 1 else Region
        known = [item.name for item in dataclasses.fields(cls)]
        return f"unknown key {where!r}, the nearest known one is {nearest(where, known)!r}"
    if first["type"] in ("missing", "missing_argument"):
        return f"key {where!r} is missing"
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}"


def _sample_problem(sample: EditSample) -> str | None:
    problem = id_problem(sample.id)
    if problem:
        return problem
    for relative in sample.files:
        problem = path_problem(relative)
        if problem:
            return f"path {relative!r} is refused: {problem}"
    for number, region in enumerate(sample.regions):
        if not region.object.strip() or not region.style.strip():
            return f"regions.{number}: object and style must be words, not empty"
    return None
