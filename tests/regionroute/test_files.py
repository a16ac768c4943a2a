"""Atomic files, JSON and JSON Lines, hashes."""

import dataclasses
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import BaseModel

from regionroute import files as io
from regionroute.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail():
        with io.atomic_write(path) as temporary:
            temporary.write_text("half")
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".txt"
            assert path.read_text() == "old"
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with io.atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_that_hides_its_file_does_not_hide_the_result(tmp_path):
    plain, hidden = tmp_path / "plain", tmp_path / "hidden"
    plain.touch()
    with io.atomic_write(hidden) as temporary:
        temporary.touch(0o600)

    assert hidden.stat().st_mode == plain.stat().st_mode


def test_a_write_that_fails_names_the_file_it_was_for(tmp_path):
    def fail():
        with io.atomic_write(tmp_path / "summary.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device: ") as caught:
        fail()
    assert caught.value.filename == str(tmp_path / "summary.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        io.write_json(tmp_path / "folder", {})
    assert caught.value.filename == str(tmp_path / "folder")


@dataclasses.dataclass
class _Row:
    name: str
    place: Path


class _Settings(BaseModel):
    rank: int = 4


def test_json_round_trips(tmp_path):
    io.write_json(tmp_path / "a.json", {"row": _Row("ä", Path("b/c")), "settings": _Settings()})
    assert io.read_json(tmp_path / "a.json") == {
        "row": {"name": "ä", "place": "b/c"},
        "settings": {"rank": 4},
    }
    rows = [{"text": "two\nlines \u2028"}, {"n": 1}]
    io.write_jsonl(tmp_path / "a.jsonl", rows)
    assert io.read_jsonl(tmp_path / "a.jsonl") == rows
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        io.write_json(tmp_path / "b.json", object())
    assert not (tmp_path / "b.json").exists()


def test_jsonl_skips_empty_lines_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert io.read_jsonl(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"a": 1}\n{"a": \n', r"rows\.jsonl:2: this line is not JSON"),
        (b'{"a": 1}\n\n[1]\n', r"rows\.jsonl:3: this line must be a JSON object"),
        (b"\xff\xfe", r"rows\.jsonl: this is not UTF-8"),
        (None, r"rows\.jsonl: no such file"),
    ],
)
def test_bad_rows_are_named(tmp_path, content, told):
    if content is not None:
        (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=told):
        io.read_jsonl(tmp_path / "rows.jsonl")


def test_bad_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{\n1}")
    with pytest.raises(UserError, match=r"a\.json:2: this is not JSON"):
        io.read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="this is a folder"):
        io.read_json(tmp_path)


def test_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"gem")
    assert io.file_hash(tmp_path / "a") == io.text_hash("gem")
    assert len(io.text_hash("gem")) == 16
    # SHA-256 of the empty string, from the standard.
    assert io.text_hash("") == "e3b0c44298fc1c14"
    assert io.settings_hash({"a": 1, "b": [2.5]}) == io.settings_hash({"b": [2.5], "a": 1})
    assert io.settings_hash({"a": 1}) != io.settings_hash({"a": 2})
    assert io.settings_hash(_Settings()) == io.settings_hash({"rank": 4})


def test_names_no_file_can_have_are_refused(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name, reason in (
        ("a\0b", "no file can have this name"),
        ("circle", "links lead in a circle"),
        ("x" * 300, "name is too long"),
    ):
        for check in (io.check_output_file, io.check_output_folder):
            with pytest.raises(UserError, match=reason):
                check(tmp_path / name)
        with pytest.raises(UserError):
            io.file_hash(tmp_path / name)


def test_special_files_are_neither_hashed_nor_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="device, pipe or socket"):
        io.file_hash(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for read in (io.file_hash, io.read_json, io.read_jsonl):
        with pytest.raises(UserError, match="device, pipe or socket"):
            read(tmp_path / "zero")
    with pytest.raises(UserError, match="device, pipe or socket"):
        io.check_output_file(tmp_path / "pipe")


def test_text_may_come_through_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        rows = pool.submit(io.read_jsonl, tmp_path / "pipe")
        (tmp_path / "pipe").write_text('{"a": 1}\n')
        assert rows.result(10) == [{"a": 1}]


def test_outputs_that_are_inputs_are_refused(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    os.link(tmp_path / "a.png", tmp_path / "hard.png")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    inputs = [tmp_path / name for name in ("a.png", "later.png", "circle", "x\0y")]
    io.check_inputs_kept([tmp_path / "b.png", tmp_path / "new" / "a.png"], inputs)
    for name in ("a.png", "link.png", "hard.png", "later.png", "sub/../a.png"):
        with pytest.raises(UserError, match=r"would overwrite the input .*(a|later)\.png"):
            io.check_inputs_kept([tmp_path / "b.png", tmp_path / name], inputs)
