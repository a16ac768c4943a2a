"""The data tab: only allowed folders, filters, and the list of exclusions that labelling reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from pseudo_labels.review.exclusions import EXCLUDED_FILE, OLD_FILE, read_excluded
from regionroute.errors import UserError
from regionroute.studio.samples import ANY, Filter, caption, data_sets, open_data_set


@pytest.fixture
def folder(tiny_manifest: Path) -> Path:
    return tiny_manifest


def test_only_data_sets_in_the_given_folders_are_opened(folder: Path, tmp_path: Path) -> None:
    root = folder.parent
    assert folder.name in data_sets([str(root)])
    assert len(open_data_set(folder.name, [str(root)]).manifest) > 0
    assert len(open_data_set(folder.name, [str(folder)]).manifest) > 0
    outside = tmp_path / "allowed"
    outside.mkdir()
    (outside / "link").symlink_to(folder)
    for name in (str(folder), f"../{folder.name}", "link", "/etc", "", "../.."):
        with pytest.raises(UserError, match="no data set of this name"):
            open_data_set(name, [str(outside)])
    with pytest.raises(UserError, match="opens no data sets"):
        open_data_set(folder.name, [])


def test_filters(folder: Path) -> None:
    data = open_data_set(folder.name, [str(folder.parent)])
    objects, styles, splits = data.choices()
    assert objects[0] == styles[0] == splits[0] == ANY
    assert len(data.select(Filter())) == len(data.manifest)
    for style in styles[1:]:
        chosen = data.select(Filter(style=style))
        assert chosen
        assert all(style in {region.style for region in sample.regions} for sample in chosen)
    assert data.select(Filter(object="nothing")) == []


def test_exclusions_go_to_the_list_that_labelling_reads(folder: Path) -> None:
    data = open_data_set(folder.name, [str(folder.parent)])
    first, second = data.manifest[0].id, data.manifest[1].id
    (folder / OLD_FILE).write_text(f"{second}\n")  # the list's former name
    data.exclude([first])
    assert read_excluded(folder) == {first, second}
    assert "excluded" in caption(data.manifest[0], data.excluded)
    assert [sample.id for sample in data.select(Filter(shown="excluded"))] == [first, second]
    data.exclude([first, second], excluded=False)
    assert read_excluded(folder) == frozenset()
    assert (folder / EXCLUDED_FILE).read_text() == ""
    with pytest.raises(UserError, match="no sample 'x'"):
        data.exclude(["x"])


def test_pages_show_thumbnails_and_all_images_of_a_sample(folder: Path) -> None:
    data = open_data_set(folder.name, [str(folder.parent)])
    page = data.page(data.select(Filter()), 1)
    assert len(page) == min(24, len(data.manifest))
    assert max(page[0][0].size) <= 256
    names = [name for _, name in data.images(data.manifest[0])]
    assert names[0] == "photo"
    assert names[-1] == "target"
    assert len(names) == 2 + len(data.manifest[0].regions)
