"""The object bank: photos as squares, with the masks and words of their objects, in every style.

An embedded base is pre-trained on pairs composed from a bank: an object is cut from one photo and
pasted on another, and the same cut and paste on the restyled photos gives the target, because a
style that was painted beforehand commutes with cutting and pasting. `regionroute bank`
(`pseudo_labels.bank`) writes banks, `train.pretrain` reads them.

    bank.json             side, photos (file, split, words, licence …), renderings, skipped photos
    photos.safetensors    "pictures" [P,3,S,S] and "masks" [M,S,S] in {0,1}, uint8
    NAME.safetensors      "pictures" [P,3,S,S] uint8, one file per rendering (style or colour)

Masks follow the order of the photos and, within a photo, of its words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from regionroute.errors import UserError
from regionroute.files import atomic_write, read_json, write_json

INDEX = "bank.json"
PHOTO = "photos"  # the rendering that holds the photos themselves
IMAGES, MASKS = "pictures", "masks"  # keys in the safetensors files
COMMON = 16  # photos with a word beside their first object: one in a hundred of the packaged base


class BankPhoto(BaseModel):
    """One photo of a bank; other facts of it (licence, source) are kept as they are.

    Attributes:
        file: its name in the labels file.
        split: "train" or "test".
        words: object words, one per mask.
    """

    model_config = ConfigDict(extra="allow")

    file: str
    split: str
    words: list[str] = Field(min_length=1)


class Rendering(BaseModel):
    """One way in which all photos of a bank are painted.

    Attributes:
        kind: "style" or "colour".
        words: what it is called in prompts.
        key: changes when the same photo would be painted differently.
    """

    kind: str
    words: str
    key: str = ""


class BankIndex(BaseModel):
    """What `bank.json` holds.

    Attributes:
        side: S, side of the squares in pixels.
        photos: in the order of the tensors.
        renderings: name -> rendering; each has a file.
        skipped: one sentence per photo that could not be used.
        key: changes with the photos, their size and their split.
    """

    side: int = Field(ge=1)
    photos: list[BankPhoto] = Field(min_length=1)
    renderings: dict[str, Rendering]
    skipped: list[str] = Field([], validation_alias=AliasChoices("skipped", "left_out"))
    key: str = ""


class ObjectBank:
    """Reads a bank. Files are opened on first use, so worker processes share their pages.

    Args:
        folder: folder of the bank.

    Raises:
        UserError: there is no bank in the folder, or a file of it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = read_index(self.folder)
        for name in (PHOTO, *index.renderings):
            path = rendering_file(self.folder, name)
            if not path.exists():
                raise UserError(f"{self.folder}: {path.name} is missing, run `regionroute bank`")
        self.side, self.photos, self.renderings = index.side, index.photos, index.renderings
        self.key = index.key
        counts = [len(photo.words) for photo in self.photos]
        self._first_mask = [sum(counts[:i]) for i in range(len(counts))]
        self._open: dict[str, Any] = {}

    def names(self, kind: str) -> list[str]:
        """Names of the renderings of a kind, "style" or "colour"."""
        return [name for name, row in self.renderings.items() if row.kind == kind]

    def split(self, name: str) -> list[int]:
        """Indices of the photos of a split."""
        return [i for i, photo in enumerate(self.photos) if photo.split == name]

    def surroundings(self) -> set[str]:
        """Words that are often in a photo without being labelled: grass, a wall, a hand.

        In training photos they are next to the first object of at least `COMMON`, and more often
        next to it than first.
        """
        shown = [self.photos[i].words for i in self.split("train")]
        first = Counter(words[0] for words in shown)
        beside = Counter(word for words in shown for word in {*words[1:]} - {words[0]})
        return {word for word, count in beside.items() if count >= COMMON and count > first[word]}

    def subjects(self) -> set[str]:
        """Words that come first in a photo, without surroundings.

        Photos without such a label are assumed not to show it; of further objects and parts (a paw,
        foliage) the labels do not tell.
        """
        return {photo.words[0] for photo in self.photos} - self.surroundings()

    def image(self, rendering: str, photo: int) -> Tensor:
        """One photo in one rendering (`PHOTO`: as it is), [3,S,S] in [0,1].

        Raises:
            UserError: the file of the rendering cannot be read.
        """
        pixels: Tensor = self._file(rendering).get_slice(IMAGES)[photo]
        return pixels.float() / 255

    def masks(self, photo: int) -> Tensor:
        """Masks of one photo's objects, [N,S,S] in {0,1}, in the order of its words.

        Raises:
            UserError: the file of the photos cannot be read.
        """
        first = self._first_mask[photo]
        last = first + len(self.photos[photo].words)
        pixels: Tensor = self._file(PHOTO).get_slice(MASKS)[first:last]
        return pixels.float()

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = open_rendering(self.folder, name)
        return self._open[name]


def rendering_file(folder: Path, name: str) -> Path:
    """File of a rendering, or of the photos (`PHOTO`)."""
    return folder / f"{name}.safetensors"


def open_rendering(folder: Path, name: str) -> Any:
    """The open safetensors file of a rendering, or of the photos (`PHOTO`).

    Raises:
        UserError: the file cannot be read.
    """
    path = rendering_file(folder, name)
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: this file is damaged ({error}); remove it and run `regionroute bank` again"
        ) from error


def read_index(folder: Path) -> BankIndex:
    """Read the index of a bank.

    Raises:
        UserError: there is no index, or it is not one.
    """
    path = folder / INDEX
    if not path.exists():
        raise UserError(f"{folder}: no {INDEX} in this folder, make a bank with `regionroute bank`")
    try:
        return BankIndex.model_validate(read_json(path))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
        raise UserError(
            f"{path}: this is not the index of an object bank ({where}: "
            f"{error.errors()[0]['msg']}); make the bank again in a new folder"
        ) from error


def write_index(folder: Path, index: BankIndex) -> None:
    """Write the index; call it after the files that it names."""
    write_json(folder / INDEX, index)


def write_photos(folder: Path, images: Tensor, masks: Tensor) -> None:
    """Write the photos of a bank.

    Args:
        folder: folder of the bank, made if missing.
        images: uint8 [P,3,S,S].
        masks: uint8 [M,S,S] in {0,1}.
    """
    _save(rendering_file(folder, PHOTO), {IMAGES: images, MASKS: masks})


def write_rendering(folder: Path, name: str, images: Tensor) -> None:
    """Write all photos of a bank in one rendering, uint8 [P,3,S,S]."""
    _save(rendering_file(folder, name), {IMAGES: images})


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with atomic_write(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
