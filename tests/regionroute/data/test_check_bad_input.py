"""Whatever is wrong with a manifest: `regionroute check` says it in a sentence and changes nothing.

Wrong arguments end with exit code 2 and one sentence on stderr. What is wrong with the data is the
command's result: one line each on stdout, exit code 1.
"""

import errno

import pytest
from PIL import Image

from regionroute.cli.check import main


@pytest.fixture
def folder(tmp_path, tiny_manifest, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sheet.png").write_bytes(b"of an earlier run")
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder.jsonl").mkdir()
    return tmp_path


ARGUMENTS = [
    ([], "required: path"),
    (["pairs", "more"], "unrecognized arguments: more"),
    (["pairs", "--shet", "sheet.png"], "unrecognized arguments: --shet"),
    (["nowhere"], "nowhere/manifest.jsonl: no such manifest"),
    (["file"], "file/manifest.jsonl: no such manifest"),
    (["pairs/0.mask.png"], "pairs/0.mask.png/manifest.jsonl: no such manifest"),
    (["empty"], "empty/manifest.jsonl: no such manifest"),
    (["binary.jsonl"], "binary.jsonl: this is not UTF-8 text"),
    (["folder.jsonl"], "folder.jsonl: this is a folder"),
    (["x" * 300], "/manifest.jsonl: the file name is too long"),
    (["pairs", "--limit", "0"], "--limit 0"),
    (["pairs", "--limit", "-5"], "--limit -5"),
    (["pairs", "--limit", "all"], "invalid int value: 'all'"),
    (["pairs", "--sheet", "sheet.jpg"], "--sheet sheet.jpg: the sheet is a PNG"),
    (["pairs", "--sheet", "folder.png"], "--sheet: folder.png: this is a folder"),
    (["pairs", "--sheet", "file/sheet.png"], "file is a file, not a folder"),
    (["pairs", "--sheet", ""], "--sheet: the file name is empty"),
    (["pairs", "--sheet", "pairs/1.mask.png"], "this is an image of sample pair-1"),
    (["pairs", "--sheet", "empty/../pairs/0.context.png"], "this is an image of sample pair-0"),
]


@pytest.mark.parametrize(("arguments", "told"), ARGUMENTS)
def test_wrong_arguments(folder, refused, arguments, told):
    assert told in refused(main, arguments)


PROBLEMS = [
    (lambda s: s.line(b"{broken"), "manifest.jsonl:5: this line is not JSON"),
    (lambda s: s.line(b'"text"'), "manifest.jsonl:5: this line must be a JSON object"),
    (lambda s: s.line(b"[" * 100_000), "manifest.jsonl:5: this line cannot be read"),
    (lambda s: s.line(b"[" + b"9" * 5000 + b"]"), "manifest.jsonl:5: this line cannot be read"),
    (lambda s: s.row(schema=None), "manifest.jsonl:2: no schema version"),
    (lambda s: s.row(schema=7), "manifest.jsonl:2: schema version 7"),
    (lambda s: s.row(id="pair-0"), "manifest.jsonl:2: id 'pair-0' was used on line 1"),
    (lambda s: s.row(id="a/b"), "manifest.jsonl:2: id 'a/b' cannot be a file name"),
    (lambda s: s.row(id=""), "manifest.jsonl:2: id '' cannot be a file name"),
    (lambda s: s.row(id="é" * 150), "is too long for a file name"),
    (lambda s: s.row(id=None), "manifest.jsonl:2: id: "),
    (lambda s: s.row(prompt="\ud800"), "manifest.jsonl:2: this line cannot be read"),
    (lambda s: s.row(flag=[]), "unknown key 'flag', the nearest known one is 'flags'"),
    (lambda s: s.row(region_stile="x"), "unknown key 'regions.0.stile'"),
    (lambda s: s.row(regions=[7]), "manifest.jsonl:2: regions.0"),
    (lambda s: s.row(target=""), "manifest.jsonl:2: path '' is refused: it names no file"),
    (lambda s: s.row(target="a\0b.png"), "it names no file"),
    (lambda s: s.row(target="../out.png"), "it must stay inside the manifest's folder"),
    (lambda s: s.row(target="C:/out.png"), "it must be relative to the manifest's folder"),
    (lambda s: s.row(region_mask="m" * 300), "the file name is too long"),
    (lambda s: s.row(region_box=[0, 0, 10**30, 9]), "is not within the 64x64 image"),
    (lambda s: s.row(region_box=[-9, 0, 9, 9]), "is not within the 64x64 image"),
    (lambda s: s.row(region_box="box"), "manifest.jsonl:2: regions.0.box"),
    (lambda s: s.row(region_score=float("inf")), "Infinity is no JSON"),
    (lambda s: s.row(region_object_span=[60, 50]), "marks nothing in prompt"),
    (lambda s: s.row(region_object=""), "manifest.jsonl:2: regions.0: object and style must be"),
    (lambda s: s.row(region_style=" "), "manifest.jsonl:2: regions.0: object and style must be"),
    (lambda s: s.nothing(), "manifest.jsonl: the manifest holds no samples"),
    (lambda s: s.text("1.context.png"), "1.context.png: this image cannot be read"),
    (lambda s: s.text("1.context.png", ""), "1.context.png: this image cannot be read"),
    (lambda s: s.cut("1.target.png"), "1.target.png: this image cannot be read"),
    (lambda s: s.directory("1.target.png"), "1.target.png: this is a folder"),
    (lambda s: s.circle("1.mask.png"), "1.mask.png: links lead in a circle"),
    (lambda s: s.png("1.mask.png", (64, 64), "L"), "1.mask.png: the mask is empty"),
    (lambda s: s.png("1.mask.png", (1, 1)), "the mask is 1x1 pixels but its image is 64x64"),
    (lambda s: s.png("1.target.png", (64, 65)), "the target is 64x65 pixels"),
]


@pytest.mark.parametrize(("damage", "told"), PROBLEMS)
def test_each_problem_of_the_data_is_one_line(folder, spoil, capsys, damage, told):
    damage(spoil)
    assert main(["pairs", "--all"]) == 1
    out, err = capsys.readouterr()
    assert "problems:  1\n" in out
    assert told in out.splitlines()[-1]
    assert "error: " not in err
    assert "Traceback" not in err


def test_an_unreadable_picture_is_one_problem_among_others(folder, spoil, capsys, monkeypatch):
    opened = Image.open

    def guarded(path, **rest):
        if path.name == "0.mask.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, **rest)

    monkeypatch.setattr(Image, "open", guarded)
    spoil.text("2.target.png")
    assert main(["pairs"]) == 1
    out = capsys.readouterr().out
    assert "problems:  2" in out
    assert "pair-0: pairs/0.mask.png: no permission to read this mask" in out


@pytest.mark.parametrize("side", [0, 100_000])
def test_an_absurd_size_in_the_header_is_not_believed(folder, capsys, side):
    data = bytearray((folder / "pairs" / "1.context.png").read_bytes())
    data[16:24] = side.to_bytes(4, "big") * 2
    (folder / "pairs" / "1.context.png").write_bytes(bytes(data))
    assert main(["pairs"]) == 1
    assert "1.context.png: this image cannot be read" in capsys.readouterr().out


def test_a_full_disk_leaves_the_earlier_sheet(folder, refused, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "sheet.png")

    monkeypatch.setattr(Image.Image, "save", full)
    assert "sheet.png: the disk is full" in refused(main, ["pairs", "--sheet", "sheet.png"])


def test_no_permission_is_told_before_the_work(folder, refused, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    told = refused(main, ["pairs", "--sheet", "sheet.png"])
    assert "--sheet: sheet.png: no permission to write in" in told
