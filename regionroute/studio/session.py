"""What one open page remembers: its edits and the regions that were corrected; files, no pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from regionroute.data.images import write_image
from regionroute.errors import UserError
from regionroute.studio.engine import Engine
from regionroute.studio.jobs import EditRecord, region_name
from regionroute.studio.regions import read_region


@dataclass
class Session:
    """The state of one open page.

    Attributes:
        photo: the photo that the page shows.
        size: its (height, width).
        record: the edit that the page shows.
        history: edits, the newest first.
        corrected: file of the region of each (number, word of an object) that a person corrected.
        editing: the object whose region is in the editor, by number and word.
    """

    photo: Path | None = None
    size: tuple[int, int] = (0, 0)
    record: EditRecord | None = None
    history: list[EditRecord] = field(default_factory=list)
    corrected: dict[tuple[int, str], Path] = field(default_factory=dict)
    editing: tuple[int, str] | None = None

    def open_photo(self, photo: Path, size: tuple[int, int]) -> None:
        """Show another photo; what belongs to the old one is forgotten, its edits are not."""
        self.photo, self.size, self.record = photo, size, None
        self.corrected, self.editing = {}, None

    def add(self, record: EditRecord, most: int) -> None:
        """Show an edit and remember the last `most` ones whose files are not deleted yet."""
        self.record = record
        self.history = [record, *(old for old in self.history if old.image.is_file())][:most]

    def region(self, number: int, word: str) -> Tensor | None:
        """The region of an object: as corrected, else as the shown edit found it, else None."""
        path = self.corrected.get((number, word))
        if path is None and self.record is not None and self.record.photo == self.photo:
            words = self.record.metadata["object"]
            known = [words] if isinstance(words, str) else words
            if known[number : number + 1] == [word] and number < len(self.record.regions):
                path = self.record.regions[number]
        return read_region(path, self.size) if path is not None and path.is_file() else None

    def correct(self, engine: Engine, number: int, word: str, mask: Tensor | None) -> None:
        """Keep the corrected region of an object; None: nothing is left of it."""
        if mask is None:
            self.corrected.pop((number, word), None)
            return
        path = engine.new_folder() / region_name(number)
        write_image(path, mask[None])
        self.corrected[number, word] = path

    def regions(self, words: list[str]) -> tuple[Tensor, ...]:
        """The regions of all objects.

        Raises:
            UserError: an object has none.
        """
        found = [self.region(number, word) for number, word in enumerate(words)]
        for word, region in zip(words, found, strict=True):
            if region is None:
                raise UserError(
                    f"{word!r} has no region yet: paint it or click it under “Region”, "
                    "or let the words find it"
                )
        return tuple(region for region in found if region is not None)
