"""A manifest in several files is the same manifest, at a few bytes a row."""

import dataclasses
import tracemalloc

import pytest

from regionroute.cli.check import main
from regionroute.data.check import check_manifest
from regionroute.data.manifest import load_manifest, parse_row, write_manifest
from regionroute.data.shards import (
    FILE_NAME,
    ShardedRows,
    has_manifest,
    manifest_file,
    manifest_files,
)
from regionroute.errors import UserError


@pytest.fixture
def whole(tiny_manifest):
    """The tiny manifest, read before it is cut up."""
    return load_manifest(tiny_manifest)


@pytest.fixture
def sharded(whole):
    """Its folder, with three files in place of one; blank lines and a mark at the beginning."""
    lines = (whole.root / FILE_NAME).read_text().splitlines(keepends=True)
    (whole.root / "manifest-000.jsonl").write_bytes(b"\xef\xbb\xbf" + lines[0].encode())
    (whole.root / "manifest-001.jsonl").write_text(f"\n{lines[1]}\n \n{lines[2].rstrip()}")
    (whole.root / "manifest-002.jsonl").write_text(lines[3])
    (whole.root / FILE_NAME).unlink()
    return whole.root


def test_the_rows_are_those_of_the_single_file(whole, sharded):
    for path in (sharded, str(sharded), sharded / "manifest-*.jsonl"):
        assert has_manifest(path)
        manifest = load_manifest(path)
        assert manifest.root == sharded
        assert list(manifest.samples) == whole.samples
        assert [manifest.samples[i] for i in (3, 0, 2, 1, -1)] == [
            whole.samples[i] for i in (3, 0, 2, 1, 3)
        ]
        assert manifest.samples[1:3] == whole.samples[1:3]
        with pytest.raises(IndexError):
            manifest.samples[4]
    some = load_manifest(sharded / "manifest-00[12].jsonl")
    assert list(some.samples) == whole.samples[1:]
    assert manifest.target(manifest.samples[2]).shape == (3, 64, 64)


def test_check_looks_into_every_file(sharded, spoil, capsys):
    assert main([str(sharded)]) == 0
    assert "samples:   4" in capsys.readouterr().out
    spoil.cut("3.target.png")
    with (sharded / "manifest-001.jsonl").open("a") as file:
        file.write("\nnot json\n")
    problems = check_manifest(sharded).problems
    assert len(problems) == 2
    assert "manifest-001.jsonl:6: this line is not JSON" in problems[0]
    assert "3.target.png: this image cannot be read" in problems[1]


def test_mistakes_name_file_and_line(sharded, tmp_path):
    path = sharded / "manifest-002.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"prompt"', '"promt"'))
    with pytest.raises(UserError, match=r"manifest-002\.jsonl:1: key 'prompt' is missing"):
        load_manifest(sharded)
    path.write_text(text.replace("pair-3", "pair-1"))
    with pytest.raises(UserError, match=r"manifest-002.*'pair-1' was used in .*manifest-001"):
        load_manifest(sharded)
    assert (
        "'pair-1' was used on line 2 of manifest-001.jsonl" in check_manifest(sharded).problems[0]
    )
    path.write_bytes(b'{"id": "\xff"}')
    with pytest.raises(UserError, match=r"manifest-002\.jsonl: this is not UTF-8"):
        load_manifest(sharded)
    with pytest.raises(UserError, match="no manifest matches this pattern"):
        load_manifest(sharded / "rows-*.jsonl")
    (sharded / FILE_NAME).write_text(text)
    with pytest.raises(UserError, match=r"holds manifest\.jsonl and manifest-\*"):
        load_manifest(sharded)
    assert len(load_manifest(sharded / FILE_NAME).samples) == 1
    assert not has_manifest(tmp_path / "nowhere")
    assert manifest_files(sharded / FILE_NAME) == [manifest_file(sharded / FILE_NAME)]


def test_a_row_costs_some_bytes_and_not_an_object(whole, tmp_path):
    count, files = 4000, []
    for shard in range(4):
        rows = [
            dataclasses.replace(whole.samples[0], id=f"sample-{i:07d}")
            for i in range(shard * 1000, shard * 1000 + 1000)
        ]
        files.append(tmp_path / f"manifest-{shard}.jsonl")
        write_manifest(files[-1], rows)
    load_manifest(files[0])  # so that what is made once is not counted
    kept = {}
    for name, read in (
        ("shards", lambda: ShardedRows(files, parse_row)),
        ("objects", lambda: [s for file in files for s in load_manifest(file).samples]),
    ):
        tracemalloc.start()
        rows = read()
        kept[name] = tracemalloc.get_traced_memory()[0] / count
        tracemalloc.stop()
        assert len(rows) == count
    assert kept["shards"] < 20
    assert kept["objects"] > 1000
