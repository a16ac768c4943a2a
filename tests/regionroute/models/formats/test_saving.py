import pytest

from regionroute.models.formats.saving import save_base
from regionroute.models.loading import load_base


def test_a_folder_that_holds_something_is_not_replaced(tiny_base, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OSError, match="not empty"):
        save_base(load_base(str(tiny_base)), out)
    assert (out / "mine.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
