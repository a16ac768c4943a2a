"""What `label` wrote of images is used as long as they are the same files."""

import os

import numpy as np
import pytest
from PIL import Image

from regionroute.data.startup.contents import (
    COLUMNS,
    FILE,
    Contents,
    FileFacts,
    read_content,
    write_contents,
)
from regionroute.errors import UserError
from regionroute.files import file_hash

NAMES = ("images/a.png", "images/b.png", "masks/ü.png")


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (4 + number, 3), 10 * number).save(path)
    write_contents(tmp_path / FILE, [read_content(tmp_path, name) for name in NAMES])
    return tmp_path


def test_every_image_is_known_by_its_path(folder):
    contents = Contents(folder)
    for number, name in enumerate(NAMES):
        assert contents.of(folder / name) == FileFacts(file_hash(folder / name), (3, 4 + number))


def test_the_bytes_depend_on_the_images_alone(folder):
    before = (folder / FILE).read_bytes()
    write_contents(folder / FILE, [read_content(folder, name) for name in reversed(NAMES)])
    assert (folder / FILE).read_bytes() == before


def test_what_was_changed_or_never_hashed_is_not_known(folder):
    newer = (folder / FILE).stat().st_mtime_ns + 1
    os.utime(folder / NAMES[0], ns=(newer, newer))
    before = (folder / NAMES[1]).stat().st_mtime_ns
    (folder / NAMES[1]).write_bytes(b"shorter")
    os.utime(folder / NAMES[1], ns=(before, before))
    os.utime(folder / NAMES[2], ns=(10**17, 10**17))  # a version of an object store, no time
    Image.new("L", (1, 1)).save(folder / "other.png")
    contents = Contents(folder)
    for name in (*NAMES, "other.png", "missing.png"):
        assert contents.of(folder / name) is None
    assert contents.of(folder.parent / "elsewhere.png") is None


@pytest.mark.parametrize("data", [None, b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_without_a_whole_file_nothing_is_known(folder, data):
    (folder / FILE).unlink()
    if data is not None:
        (folder / FILE).write_bytes(data)
    assert Contents(folder).of(folder / NAMES[0]) is None
    np.save(folder / FILE, np.zeros(2, np.int64))
    assert Contents(folder).of(folder / NAMES[0]) is None
    np.save(folder / FILE, np.zeros(0, COLUMNS))
    assert Contents(folder).of(folder / NAMES[0]) is None


def test_a_damaged_image_is_named(folder):
    (folder / NAMES[0]).write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.png"):
        read_content(folder, NAMES[0])
