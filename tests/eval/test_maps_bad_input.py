"""Everything a user can get wrong with the page of maps ends in one sentence and loses nothing."""

import errno

import pytest

from eval import maps

EARLIER = '<meta name="generator" content="regionroute">of an earlier run'
GOOD = ["--manifest", "pairs", "--split", "all", "--edits", "good", "--out", "maps.html"]


@pytest.fixture
def folder(tmp_path, tiny_manifest, edits, monkeypatch):
    """A folder with data, two methods' edits, an earlier page, and odd files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "maps.html").write_text(EARLIER)
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.html").mkdir()
    (tmp_path / "mine.html").write_text("<title>of another origin</title>")
    return tmp_path


ARGUMENTS = [
    ([], "required: --manifest"),
    (["--manifest", "pairs", "--out", "maps.html"], "required: --edits"),
    ([*GOOD, "--manifest", "nowhere"], "nowhere/manifest.jsonl: no such manifest"),
    ([*GOOD, "--manifest", "file"], "file/manifest.jsonl: no such manifest"),
    ([*GOOD, "--split", "tset"], "--split tset: no such samples in pairs, splits there: train"),
    ([*GOOD, "--edits", "nowhere"], "--edits nowhere: no such folder"),
    ([*GOOD, "--edits", "file"], "--edits file: no such folder"),
    ([*GOOD, "--edits", "x="], "--edits x=: no such folder"),
    ([*GOOD, "--edits", "good"], "'good' is used twice"),
    ([*GOOD, "--edits", "floor=half"], "'floor' is reserved"),
    ([*GOOD, "--edits", "empty"], "--edits empty: no attention map of the 4 samples there"),
    ([*GOOD, "--edits", "half"], "(pair-0.map.png and so on), make them with `regionroute edit"),
    ([*GOOD, "--out", "page.html"], "--out page.html: this is a folder"),
    ([*GOOD, "--out", "mine.html"], "--out mine.html: this file is not a page of regionroute"),
    ([*GOOD, "--out", "file/maps.html"], "--out file/maps.html: "),
    ([*GOOD, "--out", "pairs/manifest.jsonl"], "ends in .html"),
    ([*GOOD, "--out", "good/pair-0.png"], "ends in .html"),
    ([*GOOD, "--out", ""], "--out: the file name is empty"),
    ([*GOOD, "--out", "x" * 300 + ".html"], "the name is too long"),
    ([*GOOD, "--count", "0"], "--count 0: must be at least 1"),
    ([*GOOD, "--count", "1e3"], "invalid int value: '1e3'"),
    ([*GOOD, "--seed", "-3"], "--seed -3: must be at least 0"),
    ([*GOOD, "--seed", "inf"], "invalid int value: 'inf'"),
    ([*GOOD, "--editz", "good"], "unrecognized arguments: --editz"),
]


@pytest.mark.parametrize(("arguments", "told"), ARGUMENTS)
def test_wrong_arguments(folder, refused, arguments, told):
    assert told in refused(maps.main, arguments)


def each(damage):
    """The same damage to the files of every sample, so that no map can be read."""

    def every(spoil):
        for number in range(4):
            damage(spoil, f"../good/pair-{number}")

    return every


FILES = [
    (lambda s: s.line(b"{broken"), "manifest.jsonl:5: this line is not JSON"),
    (lambda s: s.line(b"\xff"), "manifest.jsonl: this is not UTF-8 text"),
    (lambda s: s.row(id="pair-0"), "manifest.jsonl:2: id 'pair-0' was used on line 1"),
    (lambda s: s.row(region_mask="../secret.png"), "it must stay inside the manifest's folder"),
    (lambda s: s.row(promt="x"), "unknown key 'promt', the nearest known one is 'prompt'"),
    (lambda s: s.nothing(), "--split all: no such samples"),
    (each(lambda s, e: s.text(f"{e}.map.png")), "good: no map could be read, the first problem"),
    (each(lambda s, e: s.cut(f"{e}.map.png")), "pair-0.map.png: this image cannot be read"),
    (each(lambda s, e: s.directory(f"{e}.map.png")), "pair-0.map.png: this is a folder"),
    (each(lambda s, e: s.text(f"{e}.json", "{")), "pair-0.json:1: this is not JSON"),
    (each(lambda s, e: s.text(f"{e}.json", '{"map": {"grid": [0, 8]}}')), "map.grid [0, 8]"),
    (each(lambda s, e: s.text(f"{e}.json", '{"map": {"grid": "8x8"}}')), "map.grid '8x8'"),
    (each(lambda s, e: s.png(f"{e}.png", (8, 4))), "pair-0.png: 8x4 pixels but its context"),
]


@pytest.mark.parametrize(("damage", "told"), FILES)
def test_wrong_files(folder, spoil, capsys, damage, told):
    damage(spoil)
    assert maps.main(GOOD) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    assert told in said.splitlines()[-1]
    assert "Traceback" not in said
    assert (folder / "maps.html").read_text() == EARLIER


def test_a_full_disk_leaves_the_earlier_page(folder, refused, monkeypatch):
    def full(path, *rest, **more):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(type(folder), "write_text", full)
    assert "the disk is full" in refused(maps.main, GOOD)


def test_no_permission_is_told_before_the_work(folder, refused, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "--out maps.html: no permission to write in" in refused(maps.main, GOOD)
