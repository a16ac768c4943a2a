import os

import numpy as np
import pytest
from PIL import Image

import train.data.files
from regionroute.data.startup import contents
from regionroute.errors import UserError
from regionroute.files import file_hash
from train.data.files import FILE, Files


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (6, 4), (1, 2, 3)).save(path)
    return path


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once; a test's are never two seconds old."""
    monkeypatch.setattr(train.data.files, "FRESH", -(10**12))


@pytest.fixture
def hashed(monkeypatch):
    """Paths that were read to be hashed."""
    paths = []
    monkeypatch.setattr(contents, "file_hash", lambda path: paths.append(path) or file_hash(path))
    return paths


def test_a_picture_is_hashed_once_also_by_the_next_run(tmp_path, picture, settled, hashed):
    files = Files(tmp_path)
    facts = files.of(picture)
    assert (facts.content, facts.size) == (file_hash(picture), (4, 6))
    assert files.of(picture) == facts
    files.save()
    assert Files(tmp_path).of(picture) == facts
    assert hashed == [picture]


def test_a_changed_picture_is_hashed_again(tmp_path, picture, settled, hashed):
    files = Files(tmp_path)
    before = files.of(picture)
    files.save()
    stat = os.stat(picture)
    data = bytearray(picture.read_bytes())
    data[-1] ^= 1
    picture.write_bytes(bytes(data))
    os.utime(picture, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # length and date as they were
    after = Files(tmp_path).of(picture)
    assert after.content != before.content
    assert len(hashed) == 2


def test_a_picture_of_a_moment_ago_is_not_remembered(tmp_path, picture, hashed):
    files = Files(tmp_path)
    files.of(picture)
    files.save()
    Files(tmp_path).of(picture)
    assert len(hashed) == 2


def test_processes_learn_from_each_other_and_earlier_runs_are_kept(
    tmp_path, picture, settled, hashed
):
    other = tmp_path / "b.png"
    Image.new("L", (3, 3)).save(other)
    first, second = Files(tmp_path), Files(tmp_path)
    first.look_at([picture, tmp_path / "missing.png"])
    second.look_at([other])
    second.learn(first.news())
    second.of(picture)
    second.save()
    Image.new("L", (3, 5)).save(other)
    again = Files(tmp_path)
    assert again.of(other).size == (5, 3)
    again.save()
    assert len(np.load(tmp_path / FILE)) == 2
    Files(tmp_path).look_at([picture, other])
    assert hashed == [picture, other, other]
    with pytest.raises(UserError, match="no such image"):
        first.of(tmp_path / "missing.png")


@pytest.mark.parametrize("data", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_memory_is_forgotten(tmp_path, picture, settled, hashed, data):
    (tmp_path / FILE).write_bytes(data)
    files = Files(tmp_path)
    files.of(picture)
    files.save()
    assert Files(tmp_path).of(picture).size == (4, 6)
    assert hashed == [picture]
