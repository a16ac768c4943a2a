"""What an open page remembers: regions as corrected or as found, and the edits that still exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from regionroute.data.images import write_image
from regionroute.errors import UserError
from regionroute.studio.engine import Engine
from regionroute.studio.jobs import EditRecord
from regionroute.studio.session import Session
from regionroute.studio.settings import StudioSettings


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(StudioSettings(), tmp_path)


def record(folder: Path, photo: Path, **metadata: Any) -> EditRecord:
    """Two objects, found in the left and in the right half."""
    folder.mkdir()
    image = folder / "edit.png"
    Image.new("RGB", (8, 4)).save(image)
    half = torch.zeros(1, 4, 8)
    half[..., :4] = 1
    files = (folder / "region-1.png", folder / "region-2.png")
    write_image(files[0], half)
    write_image(files[1], 1 - half)
    facts = {"object": ["cat", "dog"], "style": ["a", "b"]} | metadata
    return EditRecord(image, image, image, None, files, photo, facts, 1.0, "")


def test_regions_are_as_corrected_else_as_found(engine: Engine, tmp_path: Path) -> None:
    session = Session()
    photo = tmp_path / "photo.png"
    session.open_photo(photo, (4, 8))
    assert session.region(0, "cat") is None
    session.add(record(tmp_path / "one", photo), 3)
    cat, dog = session.regions(["cat", "dog"])
    assert cat[:, :4].all()
    assert dog[:, 4:].all()
    session.correct(engine, 1, "dog", torch.ones(4, 8))
    assert session.regions(["cat", "dog"])[1].all()
    session.correct(engine, 1, "dog", None)  # erased: as found again
    assert not session.regions(["cat", "dog"])[1].all()
    with pytest.raises(UserError, match="'cup' has no region yet"):
        session.regions(["cat", "cup"])
    with pytest.raises(UserError, match="'dog' has no region yet"):
        session.regions(["dog", "cat"])  # the words changed places


def test_an_object_that_was_not_found_has_no_region(engine: Engine, tmp_path: Path) -> None:
    session = Session()
    session.open_photo(tmp_path / "photo.png", (4, 8))
    edit = record(tmp_path / "one", tmp_path / "photo.png")
    write_image(edit.regions[1], torch.zeros(1, 4, 8))
    session.add(edit, 3)
    assert session.region(0, "cat") is not None
    assert session.region(1, "dog") is None
    with pytest.raises(UserError, match="'dog' has no region yet"):
        session.regions(["cat", "dog"])


def test_another_photo_forgets_the_regions_and_keeps_the_edits(
    engine: Engine, tmp_path: Path
) -> None:
    session = Session()
    session.open_photo(tmp_path / "photo.png", (4, 8))
    session.add(record(tmp_path / "one", tmp_path / "photo.png"), 3)
    session.correct(engine, 0, "cat", torch.ones(4, 8))
    session.open_photo(tmp_path / "other.png", (4, 8))
    assert session.region(0, "cat") is None
    assert session.record is None
    assert len(session.history) == 1


def test_the_history_is_bounded_and_drops_deleted_edits(tmp_path: Path) -> None:
    session = Session()
    records = [record(tmp_path / str(number), tmp_path / "p") for number in range(5)]
    for one in records[:4]:
        session.add(one, 3)
    assert session.history == records[3:0:-1]
    records[2].image.unlink()
    session.add(records[4], 3)
    assert session.history == [records[4], records[3], records[1]]
