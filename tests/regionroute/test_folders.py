from pathlib import Path

import pytest

from regionroute.errors import UserError
from regionroute.folders import atomic_folder, check_new_folder


def write(folder, text):
    folder.mkdir()
    (folder / "file").write_text(text)


def test_a_folder_appears_when_it_is_complete(tmp_path):
    for text in ("first", "second"):
        with atomic_folder(tmp_path / "new") as partial:
            write(partial, text)
            assert not (tmp_path / "new").exists() or text == "second"
        assert (tmp_path / "new" / "file").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_an_error_leaves_the_older_one(tmp_path):
    write(tmp_path / "new", "older")

    def interrupted():
        with atomic_folder(tmp_path / "new") as partial:
            write(partial, "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "new" / "file").read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_link_stays_and_its_folder_is_written(tmp_path):
    for target in ("there", "not there yet"):
        link = tmp_path / f"link to {target}"
        link.symlink_to(tmp_path / target)
    (tmp_path / "there").mkdir()
    for link in list(tmp_path.glob("link*")):
        with atomic_folder(link, replace=False) as partial:
            write(partial, "new")
        assert link.is_symlink()
        assert (link / "file").read_text() == "new"
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_holds_something_can_be_refused(tmp_path):
    write(tmp_path / "new", "older")
    with (
        pytest.raises(OSError, match="not empty"),
        atomic_folder(tmp_path / "new", replace=False) as one,
    ):
        write(one, "newer")
    assert (tmp_path / "new" / "file").read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("out", "told"), [(".", "current folder"), ("..", "current folder"), ("../full", "not empty")]
)
def test_a_new_folder_is_judged_by_where_it_leads(tmp_path, monkeypatch, out, told):
    write(tmp_path / "full", "mine")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match=told):
        check_new_folder(out)


@pytest.mark.parametrize("out", [".", ".."])
def test_the_current_folder_is_never_replaced(tmp_path, monkeypatch, out):
    write(tmp_path / "here", "mine")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="current folder"), atomic_folder(Path(out)) as partial:
        write(partial, "new")
    assert (tmp_path / "here" / "file").read_text() == "mine"


def test_a_mount_point_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda _: True)
    with pytest.raises(UserError, match="mounted there"):
        check_new_folder(tmp_path / "out")
