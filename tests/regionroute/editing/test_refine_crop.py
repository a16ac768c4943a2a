import dataclasses

import pytest
import torch

from regionroute.editing.editor import Editor
from regionroute.editing.refine_crop import MARGIN, crop_around, refine_crop
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.errors import UserError


def region(top, left, height, width, size=(60, 80)):
    found = torch.zeros(1, *size)
    found[:, top : top + height, left : left + width] = 1
    return found


def test_the_window_lies_around_the_region():
    assert MARGIN == 0.15
    assert crop_around(region(20, 30, 20, 10)) == (17, 27, 26, 16)


def test_the_window_ends_at_the_pictures_edges():
    assert crop_around(region(0, 60, 40, 20)) == (0, 54, 46, 26)


def test_the_window_holds_all_objects():
    both = torch.cat([region(10, 10, 10, 10), region(30, 30, 10, 10)])
    assert crop_around(both) == (6, 6, 38, 38)


@pytest.mark.parametrize("regions", [torch.zeros(1, 60, 80), region(2, 2, 55, 70)])
def test_nothing_is_gained_without_a_region_or_by_one_that_fills_the_picture(regions):
    assert crop_around(regions) is None
    assert refine_crop(torch.rand(3, 60, 80), EditRequest("dog", "ink"), regions, None) is None


def test_the_window_is_edited_by_its_part_of_the_regions():
    image, regions = torch.rand(3, 60, 80), region(20, 30, 20, 10) * 0.5
    request = EditRequest("dog", "ink", seed=4)
    asked = []

    def edit(picture, cropped):
        asked.append((picture, cropped))
        return 1 - picture

    out, (top, left, height, width) = refine_crop(image, request, regions, edit)

    [(picture, cropped)] = asked
    window = (slice(None), slice(top, top + height), slice(left, left + width))
    assert torch.equal(picture, image[window])
    assert torch.equal(cropped.regions[0], regions[window][0])
    assert dataclasses.replace(cropped, regions=()) == request
    assert torch.equal(out, 1 - image[window])


class TestEdits:
    """On the random base, whose resolution is 32."""

    @pytest.fixture
    def editor(self, tiny_backbone, tiny_experts):
        return Editor(tiny_backbone, tiny_experts)

    def edit(self, editor, refine, size=(60, 80), **options):
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
        place = region(20, 30, 20, 10, size)[0]
        options = EditOptions(mode="routed", steps=1, refine_crop=refine, **options)
        request = EditRequest("dog", "pixel-art", regions=(place,))
        return image, place, editor.edit_batch([image], [request], options)[0]

    def test_the_region_alone_changes_and_the_window_is_noted(self, editor):
        image, place, far = self.edit(editor, False)
        _, _, near = self.edit(editor, True)

        assert near.settings["crop"] == [17, 27, 26, 16]
        assert "crop" not in far.settings
        outside = (place == 0).expand(3, -1, -1)
        assert torch.equal(near.image[outside], image[outside])
        assert not torch.allclose(near.image, far.image)

    def test_it_is_the_edit_of_the_window(self, editor):
        image, place, near = self.edit(editor, True)
        rows, columns = slice(17, 43), slice(27, 43)
        part = EditRequest("dog", "pixel-art", regions=(place[rows, columns].clone(),))
        options = EditOptions(mode="routed", steps=1)
        [alone] = editor.edit_batch([image[:, rows, columns].clone()], [part], options)

        assert torch.equal(near.image[:, rows, columns], alone.image)

    def test_pictures_that_the_model_sees_whole_are_left_as_they_are(self, editor):
        place = region(10, 10, 8, 8, (24, 40))[0]
        request = EditRequest("dog", "pixel-art", regions=(place,))
        for refine in (False, True):
            options = EditOptions(mode="routed", steps=1, refine_crop=refine)
            [result] = editor.edit_batch([torch.rand(3, 24, 40)], [request], options)
            assert "crop" not in result.settings

    def test_the_base_says_whether_it_is_usual(self, editor):
        assert not editor.resolved(EditOptions(mode="routed")).refine_crop
        editor.backbone.settings = dataclasses.replace(editor.backbone.settings, refine_crop=True)
        assert editor.resolved(EditOptions(mode="routed")).refine_crop
        assert not editor.resolved(EditOptions(mode="routed", refine_crop=False)).refine_crop
        assert not editor.resolved(EditOptions(mode="plain")).refine_crop

    @pytest.mark.parametrize("options", [{"mode": "plain"}, {"lock_background": False}])
    def test_it_needs_gates_and_a_background(self, editor, options):
        with pytest.raises(UserError, match="refine_crop needs"):
            editor.resolved(EditOptions(**{"mode": "routed", "refine_crop": True} | options))
