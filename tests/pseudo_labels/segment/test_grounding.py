"""Detectors of the real classes with random weights, and what is done with their boxes."""

import pytest
import torch

from pseudo_labels.segment.grounding import YoloxGrounder, distinct
from pseudo_labels.segment.loading import FinderSettings
from regionroute.data.images import read_image
from regionroute.errors import UserError

IMAGE = torch.rand(3, 90, 120, generator=torch.Generator().manual_seed(0))


def load(folder, **settings):
    return FinderSettings(grounder=str(folder), **settings).load_grounder()


@pytest.fixture(scope="module", params=["grounding_dino", "owlv2", "sam3"])
def folder(request, networks, tmp_path_factory):
    save = getattr(networks, f"save_{request.param}")
    return save(tmp_path_factory.mktemp("grounder") / request.param)


def test_every_word_gets_its_own_boxes_within_the_picture(folder):
    grounder = load(folder, threshold=0.0)
    both = grounder.ground(IMAGE, ["dog", "apple"])
    assert len(both) == 2
    for found in both:
        assert found
        scores = [item.score for item in found]
        assert scores == sorted(scores, reverse=True)
        for item in found:
            y0, x0, y1, x1 = item.box
            assert 0 <= y0 < y1 <= 90
            assert 0 <= x0 < x1 <= 120
            assert item.mask is None or item.mask.shape == (1, 90, 120)
    alone = grounder.ground(IMAGE, ["apple"])
    assert [item.box for item in alone[0]] == [item.box for item in both[1]]


def test_nothing_scores_above_the_highest_threshold(folder):
    assert load(folder, threshold=1.0).ground(IMAGE, ["dog"]) == [[]]


def test_a_segmenter_is_no_grounder(networks, tmp_path):
    folder = networks.save_sam(tmp_path / "sam")
    with pytest.raises(UserError, match="this is a sam; a grounder is one of"):
        load(folder)


def test_a_damaged_folder_is_one_sentence(networks, tmp_path):
    folder = networks.save_owlv2(tmp_path / "owl")
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="does not hold a detector") as told:
        load(folder)
    assert "\n" not in str(told.value)


def test_weights_that_lack_a_part_are_refused(networks, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = networks.save_owlv2(tmp_path / "owl")
    weights = load_file(folder / "model.safetensors")
    weights.pop("class_head.dense0.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack class_head\.dense0\.weight"):
        load(folder)


@pytest.mark.parametrize("name", ["/no/such/folder", "word", "a/b/c", "./x"])
def test_what_is_neither_folder_nor_hub_id_is_refused(name):
    with pytest.raises(UserError, match="no such folder"):
        load(name)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        load(tmp_path)


class TestDistinct:
    def test_one_detection_an_object_the_best_first(self):
        boxes = torch.tensor([[0.0, 0, 50, 50], [1, 1, 50, 50], [60, 0, 100, 50]])
        found = distinct(boxes, torch.tensor([0.5, 0.9, 0.7]), (90, 120))
        assert [item.box for item in found] == [(1, 1, 50, 50), (0, 60, 50, 100)]

    def test_boxes_are_cut_to_the_picture_and_empty_ones_dropped(self):
        boxes = torch.tensor([[-5.0, -3.2, 10.1, 7.9], [130, 95, 140, 99]])
        (found,) = distinct(boxes, torch.tensor([0.5, 0.9]), (90, 120))
        assert found.box == (0, 0, 8, 11)

    def test_empty_masks_are_dropped(self):
        boxes = torch.tensor([[0.0, 0, 50, 50], [60, 0, 100, 50]])
        masks = [torch.zeros(1, 90, 120), torch.ones(1, 90, 120)]
        (found,) = distinct(boxes, torch.tensor([0.9, 0.5]), (90, 120), masks)
        assert found.box == (0, 60, 50, 100)


class TestYolox:
    @pytest.fixture(scope="class")
    def grounder(self, assets):
        return load(f"yolox:{assets / 'weights' / 'detect' / 'yolox_nano_coco.onnx'}")

    @pytest.mark.parametrize(("name", "word"), [("dog_01", "dog"), ("cat_01", "cat")])
    def test_it_finds_what_is_there_and_nothing_else(self, assets, grounder, name, word):
        image = read_image(assets / "photos" / f"{name}.jpg")
        found, missing = grounder.ground(image, [word, "airplane"])
        assert found[0].score > 0.5
        assert missing == []

    def test_its_box_is_that_of_the_mask(self, assets, grounder):
        from regionroute.data.images import read_mask
        from regionroute.data.manifest import mask_box

        image = read_image(assets / "photos" / "dog_01.jpg")
        y0, x0, y1, x1 = grounder.ground(image, ["dog"])[0][0].box
        t0, l0, t1, l1 = mask_box(read_mask(assets / "photos" / "dog_01.mask0.png"))
        common = max(0, min(y1, t1) - max(y0, t0)) * max(0, min(x1, l1) - max(x0, l0))
        both = (y1 - y0) * (x1 - x0) + (t1 - t0) * (l1 - l0) - common
        assert common / both > 0.75

    def test_a_word_it_does_not_know_names_the_nearest(self, grounder):
        with pytest.raises(UserError, match=r"none of the 80 words.*'teddy bear'"):
            grounder.ground(IMAGE, ["teddy bears"])

    def test_other_files_are_refused(self, assets, tmp_path):
        (tmp_path / "text.onnx").write_text("no network")
        with pytest.raises(UserError, match="no ONNX network"):
            YoloxGrounder(str(tmp_path / "text.onnx"))
        with pytest.raises(UserError, match="no such file"):
            YoloxGrounder(str(tmp_path / "none.onnx"))
        with pytest.raises(UserError, match="no YOLOX network"):
            YoloxGrounder(str(assets / "weights" / "segment" / "u2netp.onnx"))
