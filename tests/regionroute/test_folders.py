import pytest

from regionroute.folders import atomic_folder


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
