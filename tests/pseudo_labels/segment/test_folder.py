"""A folder of photos: linked folders are searched once, and everything skipped is named."""

import os

import pytest
from PIL import Image

from pseudo_labels.segment.folder import list_photos
from regionroute.errors import UserError


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path, format="PNG")


def listed(folder, **options):
    photos, rejected = list_photos(folder, ["dog"], **options)
    return [p.name for p in photos], {r.photo: r.reason for r in rejected}


def test_linked_folders_are_searched(tmp_path):
    photo(tmp_path / "in" / "a.jpg")
    photo(tmp_path / "elsewhere" / "deep" / "b.jpg")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "c.jpg").symlink_to(tmp_path / "elsewhere" / "deep" / "b.jpg")
    assert listed(tmp_path / "in") == (["a.jpg", "c.jpg", "link/deep/b.jpg"], {})


def test_links_that_lead_in_circles_end_and_are_named(tmp_path):
    photo(tmp_path / "in" / "sub" / "a.jpg")
    photo(tmp_path / "b.jpg")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in" / "sub")
    (tmp_path / "in" / "sub" / "self").symlink_to(tmp_path / "in" / "sub")
    (tmp_path / "in" / "up").symlink_to(tmp_path)
    (tmp_path / "in" / "nowhere").symlink_to(tmp_path / "missing")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in" / "loop")
    names, rejected = listed(tmp_path / "in")
    assert names == ["sub/a.jpg"]
    assert rejected.keys() == {"again", "sub/self", "up", "nowhere", "loop"}
    assert "searched already" in rejected["again"]
    assert "searched already" in rejected["sub/self"]
    assert "a folder around this one" in rejected["up"]


def test_everything_skipped_is_named(tmp_path):
    photo(tmp_path / "a.jpg")
    photo(tmp_path / ".b.jpg")
    photo(tmp_path / ".hidden" / "c.jpg")
    photo(tmp_path / "out" / "d.jpg")
    photo(tmp_path / "e.eps")
    (tmp_path / "notes.txt").write_text("text")
    names, rejected = listed(tmp_path, skip=tmp_path / "out")
    assert names == ["a.jpg"]
    assert rejected.keys() == {".b.jpg", ".hidden", "e.eps", "notes.txt"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search every folder")
def test_a_folder_without_permission_is_named(tmp_path):
    photo(tmp_path / "a.jpg")
    (tmp_path / "closed").mkdir(mode=0)
    assert "cannot be searched" in listed(tmp_path)[1]["closed"]


def test_no_photo_is_an_error(tmp_path):
    with pytest.raises(UserError, match="there is no photo"):
        list_photos(tmp_path, ["dog"])


def test_results_do_not_go_among_the_photos(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="this is the folder of the photos, give another"):
        list_photos(tmp_path, ["dog"], skip=tmp_path / "." / "")
    assert len(list_photos(tmp_path, ["dog"], skip=tmp_path / "out")[0]) == 1
