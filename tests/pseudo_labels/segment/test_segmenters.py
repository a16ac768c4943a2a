"""Box segmenters: the real classes with random weights, and the offline one on real photos."""

import json

import numpy as np
import pytest
import torch

from pseudo_labels.segment.loading import FinderSettings
from pseudo_labels.segment.offline import OfflineSegmenter
from pseudo_labels.segment.salient import SalientGrounder, largest_parts
from pseudo_labels.segment.sam import SamSegmenter
from regionroute.data.images import read_image, read_mask
from regionroute.data.manifest import mask_box
from regionroute.errors import UserError

IMAGE = torch.rand(3, 90, 120, generator=torch.Generator().manual_seed(0))
BOXES = [(10, 10, 50, 60), (0, 0, 90, 120), (5, 50, 80, 110)]


def load(name):
    return FinderSettings(segmenter=str(name)).load_segmenter()


def iou(a, b):
    return float((a * b).sum() / torch.maximum(a, b).sum())


@pytest.fixture(scope="module", params=["sam", "sam2"])
def hub_folder(request, networks, tmp_path_factory):
    save = getattr(networks, f"save_{request.param}")
    return save(tmp_path_factory.mktemp("segmenter") / request.param)


@pytest.fixture(scope="module")
def small_sam(tmp_path_factory):
    """A checkpoint file of segment-anything's own classes, small enough to run in a moment."""
    from functools import partial

    import segment_anything
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    def build(checkpoint=None):
        return Sam(
            ImageEncoderViT(
                img_size=64, patch_size=16, embed_dim=768, depth=2, num_heads=2, out_chans=16,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=2,
                global_attn_indexes=(1,), mlp_ratio=0.1,
            ),
            PromptEncoder(16, (4, 4), (64, 64), 4),
            MaskDecoder(
                num_multimask_outputs=3, transformer=TwoWayTransformer(1, 16, 2, 32),
                transformer_dim=16, iou_head_depth=2, iou_head_hidden_dim=16,
            ),
        )  # fmt: skip

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "sam_small.pth"
    torch.save(build().state_dict(), path)
    patch = pytest.MonkeyPatch()
    patch.setitem(segment_anything.sam_model_registry, "vit_b", build)
    yield path
    patch.undo()


def check_protocol(segmenter, embed):
    """Masks, scores, and the image embedded once for all boxes; `embed`: module that embeds."""
    calls = []
    hook = embed.register_forward_hook(lambda *args: calls.append(1))
    results = segmenter.segment(IMAGE, BOXES)
    hook.remove()
    assert len(calls) == 1
    assert len(results) == 3
    for mask, score in results:
        assert mask.shape == (1, 90, 120)
        assert mask.dtype == torch.float32
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert 0 <= score <= 1
    for index, box in enumerate(BOXES):
        (alone,) = segmenter.segment(IMAGE, [box])
        assert torch.equal(alone[0], results[index][0])
    assert segmenter.segment(IMAGE, []) == []


def test_hub_sam_embeds_a_picture_once(hub_folder):
    segmenter = load(hub_folder)
    check_protocol(segmenter, segmenter.model.vision_encoder)


def test_segment_anything_embeds_a_picture_once(small_sam):
    segmenter = load(f"sam:{small_sam}")
    assert segmenter.name == "sam vit_b"
    check_protocol(segmenter, segmenter.predictor.model.image_encoder)


def test_segment_anything_gives_what_its_own_predictor_gives(small_sam):
    segmenter = SamSegmenter(str(small_sam))
    predictor = segmenter.predictor
    predictor.set_image((IMAGE.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    for (y0, x0, y1, x1), (mask, score) in zip(BOXES, segmenter.segment(IMAGE, BOXES), strict=True):
        predictor.set_image((IMAGE.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        box = np.array([x0, y0, x1, y1])
        own, scores, _ = predictor.predict(box=box, multimask_output=False)
        assert np.array_equal(own[0], mask[0].numpy() > 0)
        assert score == pytest.approx(float(np.clip(scores[0], 0, 1)), abs=1e-6)


class TestChecks:
    def test_checkpoints_that_are_none(self, tmp_path, small_sam):
        (tmp_path / "text.pth").write_text("no network")
        torch.save({"a": torch.ones(1)}, tmp_path / "other.pth")
        short = torch.load(small_sam)
        short.pop("mask_decoder.iou_token.weight")
        torch.save(short, tmp_path / "short.pth")
        for name, told in (
            ("text", "no checkpoint of SAM"),
            ("other", "no checkpoint of SAM"),
            ("short", "do not fit SAM vit_b"),
            ("none", "no such SAM checkpoint"),
        ):
            with pytest.raises(UserError, match=told):
                load(f"sam:{tmp_path / name}.pth")

    def test_other_networks_and_names(self, networks, tmp_path):
        folder = networks.save_owlv2(tmp_path / "owl")
        for name, told in (
            (folder, "does not hold a segmenter"),
            ("sam", "no such folder"),
            (tmp_path / "a.pth", "sam:"),
            (f"offline:{tmp_path}/none.onnx", "no such file of weights"),
        ):
            with pytest.raises(UserError, match=told):
                load(name)

    @pytest.mark.parametrize("value", ["most", "0", "-1", "1.5", ""])
    def test_instances(self, value):
        with pytest.raises(UserError, match="instances is"):
            FinderSettings(instances=value)


def test_weights_that_cannot_be_fetched_say_where_to_put_them(tmp_path, monkeypatch):
    from pseudo_labels.segment import salient, weights

    monkeypatch.setenv("U2NET_HOME", str(tmp_path))
    monkeypatch.setattr(weights.torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(url, path):
        raise OSError("no route")

    monkeypatch.setattr(weights.torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError, match=r"could not be fetched .no route.; get https"):
        salient.SalientNetwork()

    def damaged(url, path):
        with open(path, "wb") as file:
            file.write(b"half")

    monkeypatch.setattr(weights.torch.hub, "download_url_to_file", damaged)
    with pytest.raises(UserError, match="the download is damaged"):
        salient.SalientNetwork()
    assert not list(tmp_path.rglob("*.onnx"))


def disc_on_noise():
    """A disc of one colour on coloured noise, and its mask."""
    y, x = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
    mask = (((y - 50) ** 2 + (x - 60) ** 2) < 30**2)[None].float()
    noise = 0.3 + 0.2 * torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1))
    red = torch.tensor([0.9, 0.2, 0.1])[:, None, None]
    return torch.where(mask > 0, red, noise), mask


class TestGrabCut:
    def test_a_disc_is_cut_out_of_its_box(self):
        image, mask = disc_on_noise()
        segmenter = OfflineSegmenter(saliency=False)
        ((found, score),) = segmenter.segment(image, [mask_box(mask)])
        assert iou(found, mask) > 0.95
        assert score > 0.6

    def test_the_same_every_time_and_never_outside_the_box(self):
        image, _ = disc_on_noise()
        segmenter = OfflineSegmenter(saliency=False)
        box = (30, 30, 80, 70)
        first, second = (segmenter.segment(image, [box])[0][0] for _ in range(2))
        assert torch.equal(first, second)
        first[:, 30:80, 30:70] = 0
        assert not first.any()

    @pytest.mark.parametrize(
        "box", [(0, 0, 96, 128), (5, 5, 6, 6), (0, 0, 1, 128), (90, 120, 96, 128)]
    )
    def test_boxes_of_any_size_work(self, box):
        image, _ = disc_on_noise()
        ((mask, score),) = OfflineSegmenter(saliency=False).segment(image, [box])
        assert mask.shape == (1, 96, 128)
        assert 0 <= score <= 1


def test_parts_and_holes():
    mask = torch.zeros(1, 40, 60)
    mask[:, 5:25, 5:25] = 1
    mask[:, 15, 15] = 0  # a speck
    mask[:, 5:25, 40:50] = 1  # a part of half the size
    mask[:, 35:37, 55:58] = 1  # dirt
    cleaned = largest_parts(mask)
    assert cleaned[0, 15, 15] == 1
    assert cleaned[:, 5:25, 40:50].all()
    assert not cleaned[:, 30:].any()
    assert not largest_parts(torch.zeros(1, 8, 8)).any()


class TestOnPhotos:
    @pytest.fixture(scope="class")
    def weights(self, assets):
        return str(assets / "weights" / "segment" / "u2netp.onnx")

    def test_the_salient_object_is_the_dog(self, assets, weights):
        image = read_image(assets / "photos" / "dog_00.jpg")
        ((found,),) = SalientGrounder(weights).ground(image, ["dog"])
        assert iou(found.mask, read_mask(assets / "photos" / "dog_00.mask0.png")) > 0.9
        assert found.box == mask_box(found.mask)

    def test_several_words_are_refused(self, weights):
        with pytest.raises(UserError, match="one word"):
            SalientGrounder(weights).ground(IMAGE, ["dog", "cat"])

    def test_objects_are_cut_out_of_boxes_around_hand_made_masks(self, assets, weights):
        rows = (assets / "photos_256" / "labels.jsonl").read_text().splitlines()
        rows = [json.loads(row) for row in rows]
        pets = [row for row in rows if "oxford-pets" in row["file"]][::85]
        segmenter = load(f"offline:{weights}")
        found = []
        for row in pets:
            mask = read_mask(assets / "photos_256" / row["mask"])
            image = read_image(assets / "photos_256" / row["file"])
            found.append(iou(segmenter.segment(image, [mask_box(mask)])[0][0], mask))
        assert len(found) == 8
        assert sum(found) / len(found) > 0.75
