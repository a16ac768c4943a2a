"""The ways photos, words and masks come in, and the ways samples are chosen."""

import dataclasses
import json
from typing import ClassVar

import pytest
import torch
from PIL import Image

from eval.sources import select_split
from pseudo_labels.build import PhotoSource, build
from pseudo_labels.curate import judge as judge_module
from pseudo_labels.curate.filters import Limits
from pseudo_labels.curate.judge import JudgeSettings
from pseudo_labels.job import BuildSettings
from pseudo_labels.scenes.draw import render_scene
from pseudo_labels.segment.given import read_labels
from pseudo_labels.segment.loading import FinderSettings
from pseudo_labels.stylize.base import Stylizer
from pseudo_labels.stylize.filters import FILTERS
from pseudo_labels.stylize.functional import FunctionalStylizer
from pseudo_labels.stylize.registry import StyleEntry, load_styles
from regionroute.cli.label import main
from regionroute.data.images import write_image
from regionroute.data.manifest import load_manifest
from regionroute.editing.batch import manifest_rows
from regionroute.engines.base import EngineSettings
from regionroute.errors import UserError
from regionroute.files import read_jsonl

ANY = Limits(0.001, 0.9, min_strength=0.0, min_structure=-1.0)  # scenes are no photos
SETTINGS = BuildSettings(size=96, limits=ANY)


def run(photos, out, styles=("pixel-art", "cyberpunk"), settings=SETTINGS):
    labels = photos / "labels.jsonl"
    source = PhotoSource(str(labels), *read_labels(labels))
    return build(
        source, load_styles("scenes", styles), out, settings, engine=EngineSettings(workers=1)
    )


def append(photos, *rows):
    with open(photos / "labels.jsonl", "a", encoding="utf-8") as file:
        for row in rows:
            file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")


class TestFolderOfPhotos:
    """--images and --objects, with the salient object for the word."""

    @pytest.fixture
    def folder(self, assets, tmp_path):
        folder = tmp_path / "in"
        (folder / "sub").mkdir(parents=True)
        for name, place in (("dog_00", "a.jpg"), ("cat_01", "sub/b.jpg")):
            photo = Image.open(assets / "photos" / f"{name}.jpg").resize((320, 320))
            photo.save(folder / place)
        (folder / "notes.txt").write_text("not a photo")
        (folder / ".hidden.jpg").write_bytes(b"x")
        return folder

    @pytest.fixture
    def arguments(self, folder, u2netp, tmp_path):
        out = str(tmp_path / "in" / "out")
        shared = ["--images", str(folder), "--objects", " pet ", "--styles", "photos"]
        shared += ["--only", "neon,ink-drawing", "--grounder", f"salient:{u2netp}"]
        shared += ["--min-structure", "-1"]  # 96 pixels are few for neon tubes
        return [*shared, "--size", "96", "--out", out]

    def test_photos_of_all_sub_folders_are_searched(self, folder, arguments):
        assert main(arguments) == 0
        manifest = load_manifest(folder / "out")
        assert {s.provenance["photo"] for s in manifest.samples} == {"a.jpg", "sub/b.jpg"}
        assert {s.regions[0].object for s in manifest.samples} == {"pet"}
        assert {s.provenance["mask_source"] for s in manifest.samples} == {"u2netp"}
        assert all(s.regions[0].score > 0.5 for s in manifest.samples)
        rejected = {
            row["photo"]: row["reason"] for row in read_jsonl(folder / "out/rejected.jsonl")
        }
        assert rejected.keys() == {"notes.txt", ".hidden.jpg"}
        assert "notes.txt: this is not a photo" in rejected["notes.txt"]
        assert ".hidden.jpg: this file is hidden" in rejected[".hidden.jpg"]

    def test_what_was_found_is_kept_for_other_styles(self, folder, arguments, monkeypatch):
        main([*arguments, "--only", "neon"])
        from pseudo_labels.segment.salient import SalientGrounder

        monkeypatch.setattr(SalientGrounder, "ground", lambda *_: pytest.fail("looked again"))
        assert main(arguments) == 0
        assert len(load_manifest(folder / "out").samples) == 4

    def test_the_second_run_changes_nothing(self, folder, arguments, snapshot):
        main(arguments)
        before = snapshot(folder)
        main(arguments)
        assert snapshot(folder) == before

    def test_several_words_need_a_grounder_that_knows_them(self, arguments):
        with pytest.raises(UserError, match="has one word"):
            main([*arguments, "--objects", "dog,cat"])

    def test_a_grounder_that_knows_words_rejects_what_is_not_there(
        self, assets, folder, arguments, u2netp
    ):
        yolox = assets / "weights" / "detect" / "yolox_nano_coco.onnx"
        named = ["--grounder", f"yolox:{yolox}", "--segmenter", f"offline:{u2netp}"]
        main([*arguments, "--objects", "dog,cat", *named])
        manifest = load_manifest(folder / "out")
        found = {(s.provenance["photo"], s.regions[0].object) for s in manifest.samples}
        assert found == {("a.jpg", "dog"), ("sub/b.jpg", "cat")}
        assert "grabcut" in manifest.samples[0].provenance["mask_source"]
        reasons = [row["reason"] for row in read_jsonl(folder / "out" / "rejected.jsonl")]
        assert sum("there is no" in reason for reason in reasons) == 2


class TestOtherFormsOfRows:
    def rows(self, photos, *rows):
        (photos / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def test_a_grounded_row_of_tokencompose(self, photos, tmp_path):
        mask = next(photos.glob("p2.*.png")).name
        self.rows(photos, {"file_name": "p2.png", "text": "...", "attn_list": [["thing", mask]]})
        report = run(photos, tmp_path / "out")
        assert {s.regions[0].object for s in report.samples} == {"thing"}

    def test_polygons_and_run_lengths(self, photos, tmp_path):
        square = {"word": "square", "segmentation": [[20, 10, 60, 10, 60, 50, 20, 50]]}
        runs = {"word": "run", "segmentation": {"size": [96, 96], "counts": [960, 1920, 6336]}}
        self.rows(photos, {"image": "p2.png", "objects": [square, runs]})
        report = run(photos, tmp_path / "out", ["pixel-art"])
        boxes = {s.regions[0].object: s.regions[0].box for s in report.samples}
        assert boxes == {"square": (10, 20, 50, 60), "run": (0, 10, 96, 30)}

    @pytest.mark.parametrize(
        ("outline", "told"),
        [
            ([[1, 2, 3]], "x and y must come in pairs"),
            ("text", "must be polygons"),
            ({"counts": 7}, "must be polygons .* 'counts' is 7"),
            ({"size": [5, 7], "counts": [35]}, "coordinates are of an image of 7x5 pixels"),
            ([[200, 200, 210, 200, 210, 210]], "it reaches from 200, 200 to 210, 210"),
            ([[96, 20, 99, 20, 99, 40]], "the mask is empty"),
        ],
    )
    def test_outlines_that_are_none(self, photos, tmp_path, outline, told):
        self.rows(photos, {"file": "p2.png", "word": "dog", "segmentation": outline})
        with pytest.raises(UserError, match=told):
            run(photos, tmp_path / "out")

    def test_a_box_is_cut_out(self, photos, tmp_path):
        scene = render_scene(102, 96, count=1)
        word = scene.words()[0]
        y, x = scene.mask(word)[0].nonzero(as_tuple=True)
        left, top = int(x.min()), int(y.min())
        bbox = [left, top, int(x.max()) + 1 - left, int(y.max()) + 1 - top]
        self.rows(photos, {"file": "p2.png", "word": word, "bbox": bbox})
        settings = dataclasses.replace(SETTINGS, find=FinderSettings(segmenter="grabcut"))
        report = run(photos, tmp_path / "out", ["pixel-art"], settings)
        (sample,) = report.samples
        assert sample.provenance["mask_source"] == "grabcut"
        found = load_manifest(tmp_path / "out").masks(sample)[0]
        truth = scene.mask(word)
        assert (found * truth).sum() / torch.maximum(found, truth).sum() > 0.7

    @pytest.mark.parametrize("bbox", [[1, 2, 3], "x", [1, 2, 0, 5], [1, 2, None, 4], 7])
    def test_boxes_that_are_none(self, photos, tmp_path, bbox):
        self.rows(photos, {"file": "p2.png", "word": "dog", "bbox": bbox})
        with pytest.raises(UserError, match="'bbox' must be"):
            run(photos, tmp_path / "out")

    def test_a_box_outside_the_picture_is_rejected(self, photos, tmp_path):
        self.rows(photos, {"file": "p2.png", "word": "dog", "bbox": [500, 500, 20, 20]})
        settings = dataclasses.replace(SETTINGS, find=FinderSettings(segmenter="grabcut"))
        with pytest.raises(UserError, match="lies outside the image"):
            run(photos, tmp_path / "out", settings=settings)

    def test_a_word_alone_needs_a_grounder(self, photos, tmp_path):
        self.rows(photos, {"file": "p2.png", "word": "dog"})
        with pytest.raises(UserError, match="the dog has no mask: give one, or --grounder"):
            run(photos, tmp_path / "out")

    def test_an_instances_file_of_coco(self, photos, tmp_path):
        polygon = [[20, 10, 60, 10, 60, 50, 20, 50]]
        content = {
            "images": [{"id": 7, "file_name": "p2.png", "license": 1}],
            "licenses": [{"id": 1, "name": "CC0"}],
            "categories": [{"id": 3, "name": "dog"}],
            "annotations": [
                {"image_id": 7, "category_id": 3, "segmentation": polygon, "iscrowd": 0},
                {"image_id": 7, "category_id": 3, "segmentation": polygon, "iscrowd": 1},
            ],
        }
        (tmp_path / "coco.json").write_text(json.dumps(content))
        arguments = ["--labels", str(tmp_path / "coco.json"), "--images", str(photos)]
        arguments += ["--styles", "scenes", "--only", "line-art", "--out", str(tmp_path / "out")]
        arguments += ["--min-structure", "-1"]
        assert main(arguments) == 0
        (sample,) = load_manifest(tmp_path / "out").samples
        assert sample.regions[0].object == "dog"
        assert sample.provenance["licence"] == "CC0"
        assert "several" in sample.flags  # the crowd as well
        (tmp_path / "coco.json").write_text("{}")
        with pytest.raises(UserError, match="no instances file of COCO"):
            main(arguments)


class TestInstances:
    @pytest.fixture
    def twins(self, photos):
        """p2.png with two masks of one word, the larger one on the right."""
        for name, box in (("l", (10, 5, 40, 25)), ("r", (10, 40, 60, 90))):
            mask = torch.zeros(1, 96, 96)
            mask[:, box[0] : box[2], box[1] : box[3]] = 1
            write_image(photos / f"{name}.png", mask)
        objects = [{"word": "dog", "mask": f"{name}.png"} for name in "rl"]
        row = {"image": "p2.png", "objects": objects}
        (photos / "labels.jsonl").write_text(json.dumps(row))
        return photos

    @pytest.mark.parametrize(
        ("policy", "box"),
        [
            ("all", (10, 5, 60, 90)),
            ("largest", (10, 40, 60, 90)),
            ("1", (10, 5, 40, 25)),
            ("2", (10, 40, 60, 90)),
        ],
    )
    def test_which_of_two(self, twins, tmp_path, policy, box):
        settings = dataclasses.replace(SETTINGS, find=FinderSettings(instances=policy))
        report = run(twins, tmp_path / "out", ["pixel-art"], settings)
        assert report.samples[0].regions[0].box == box
        assert ("several" in report.samples[0].flags) == (policy == "all")

    def test_a_number_that_is_not_there(self, twins, tmp_path):
        settings = dataclasses.replace(SETTINGS, find=FinderSettings(instances="3"))
        with pytest.raises(UserError, match="it has no dog number 3"):
            run(twins, tmp_path / "out", settings=settings)


class TestSeveralObjectsAtOnce:
    @pytest.fixture
    def made(self, photos, tmp_path):
        settings = dataclasses.replace(SETTINGS, multi=2)
        run(photos, tmp_path / "out", settings=settings)
        manifest = load_manifest(tmp_path / "out")
        return manifest, [s for s in manifest.samples if len(s.regions) > 1]

    def test_each_object_has_a_style_of_its_own(self, made):
        _, several = made
        assert len(several) == 4  # two photos with two objects, two samples each
        for sample in several:
            styles = [region.style for region in sample.regions]
            assert sorted(styles) == ["cyberpunk", "pixel-art"]
            for region in sample.regions:
                assert sample.prompt[slice(*region.object_span)] == region.object
                assert sample.prompt[slice(*region.style_span)] == region.style

    def test_each_mask_holds_its_style_and_nothing_else_changes(self, made):
        manifest, several = made
        for sample in several:
            context, target = manifest.context(sample), manifest.target(sample)
            masks = manifest.masks(sample)
            outside = (masks.amax(0) == 0).expand(3, -1, -1)
            assert torch.equal(context[outside], target[outside])
            for region, mask, others in zip(sample.regions, masks, masks.flip(0), strict=True):
                own = ((mask == 1) & (others == 0)).expand(3, -1, -1)
                styled = FILTERS[region.style](context)
                assert (target - styled)[own].abs().max() <= 0.5 / 255 + 1e-6


class TestWholePhotos:
    SETTINGS = dataclasses.replace(SETTINGS, whole=True)

    def test_every_photo_to_train_on_is_also_restyled_whole_in_every_style(self, photos, tmp_path):
        run(photos, tmp_path / "out", settings=self.SETTINGS)
        manifest = load_manifest(tmp_path / "out")
        whole = [s for s in manifest.samples if "whole" in s.flags]

        train = {(s.context, s.regions[0].style) for s in manifest.samples if s.split == "train"}
        assert {(s.context, s.regions[0].style) for s in whole} == train
        assert {s.split for s in manifest.samples} == {"train", "test"}
        for sample in whole:
            [region] = sample.regions
            assert sample.prompt == f"make the image in {region.style} style"
            assert sample.prompt[slice(*region.style_span)] == region.style
            assert manifest.masks(sample).min() == 1
            styled = FILTERS[region.style](manifest.context(sample))
            assert (manifest.target(sample) - styled).abs().max() <= 0.5 / 255 + 1e-6
            assert "area" not in sample.provenance

    def test_they_are_neither_edited_nor_scored(self, photos, tmp_path):
        run(photos, tmp_path / "out", settings=self.SETTINGS)
        manifest = load_manifest(tmp_path / "out")
        asked = manifest_rows(tmp_path / "out", "train", tmp_path / "edits", seed=0)

        scored = select_split(manifest, "all")
        assert len(scored) < len(manifest.samples)
        assert not any(sample.whole for sample in scored)
        assert len(asked.jobs) == len(select_split(manifest, "train"))

    def test_each_photo_is_painted_once(self, photos, tmp_path, monkeypatch):
        painted = []
        real = FILTERS["pixel-art"]
        monkeypatch.setitem(FILTERS, "pixel-art", lambda *a: painted.append(1) or real(*a))
        made = run(photos, tmp_path / "out", ("pixel-art",), self.SETTINGS)

        assert len(painted) == len({s.context for s in made.samples})

    def test_later_it_needs_no_new_singles(self, photos, tmp_path):
        before = run(photos, tmp_path / "out")
        after = run(photos, tmp_path / "out", settings=self.SETTINGS)

        singles = [s.id for s in after.samples if "whole" not in s.flags]
        assert singles == [s.id for s in before.samples]
        assert len(after.samples) > len(singles)


class TestReview:
    @pytest.mark.parametrize("name", ["exclude.txt", "struck.txt"])  # the latter: its old name
    def test_excluded_samples_leave_the_manifest_and_come_back(
        self, photos, tmp_path, capsys, name
    ):
        out = tmp_path / "out"
        first = run(photos, out, settings=dataclasses.replace(SETTINGS, multi=1))
        gone = first.samples[0].id
        (out / name).write_text(f"# ugly\n{gone}  # a remark\n\n")
        second = run(photos, out, settings=dataclasses.replace(SETTINGS, multi=1))
        lost = {s.id for s in first.samples} - {s.id for s in second.samples}
        assert gone in lost
        parts = [s for s in first.samples if gone in s.provenance.get("parts", ())]
        assert lost == {gone} | {s.id for s in parts}
        rows = [r for r in read_jsonl(out / "rejected.jsonl") if r.get("sample")]
        assert {row["sample"] for row in rows} == lost
        assert all(row["reason"] == "excluded on the review page" for row in rows)
        assert ("exclude.txt, its name now" in capsys.readouterr().err) == (name == "struck.txt")
        (out / name).unlink()
        third = run(photos, out, settings=dataclasses.replace(SETTINGS, multi=1))
        assert third.samples == first.samples

    def test_a_saved_list_is_added(self, photos, tmp_path):
        out = tmp_path / "out"
        ids = [sample.id for sample in run(photos, out).samples]
        shared = ["--labels", str(photos / "labels.jsonl"), "--styles", "scenes", "--out", str(out)]
        limits = [
            "--min-area",
            "0.001",
            "--max-area",
            "0.9",
            "--min-strength",
            "0",
            "--min-structure",
            "-1",
        ]
        for index in (0, 1):
            (tmp_path / "list.txt").write_text(ids[index] + "\n")
            main([*shared, *limits, "--strike", str(tmp_path / "list.txt")])
        assert (out / "exclude.txt").read_text().split() == sorted(ids[:2])
        with pytest.raises(UserError, match="no such list of excluded samples"):
            main([*shared, "--strike", str(tmp_path / "none.txt")])

    def test_the_page_shows_every_sample_and_reason(self, photos, tmp_path):
        append(photos, "{broken", {"file": "p3.png", "word": "<b>", "mask": "none.png"})
        report = run(photos, tmp_path / "out")
        page = (tmp_path / "out" / "review.html").read_text()
        for sample in report.samples:
            assert f'data-id="{sample.id}"' in page
            assert f"url('{sample.target}')" in page
        assert "not JSON" in page
        assert "<td>&lt;b&gt;</td>" in page
        assert "http" not in page

    def test_a_preview_is_small_and_apart(self, photos, tmp_path, capsys):
        out = tmp_path / "out"
        arguments = ["--labels", str(photos / "labels.jsonl"), "--styles", "scenes"]
        arguments += [
            "--min-area",
            "0.001",
            "--max-area",
            "0.9",
            "--min-strength",
            "0",
            "--min-structure",
            "-1",
        ]
        assert main([*arguments, "--out", str(out), "--preview", "3"]) == 0
        assert "review.html" in capsys.readouterr().out
        assert [path.name for path in out.iterdir()] == ["preview"]
        manifest = load_manifest(out / "preview")
        assert len({sample.context for sample in manifest.samples}) == 3
        by_photo = {}
        for sample in manifest.samples:
            by_photo.setdefault(sample.context, set()).add(sample.regions[0].style)
        assert all(len(styles) == 1 for styles in by_photo.values())
        assert len(set.union(*by_photo.values())) == 3


class TestCuration:
    def test_a_style_that_hides_the_object_is_rejected_with_what_was_measured(
        self, photos, tmp_path
    ):
        limits = dataclasses.replace(ANY, min_strength=0.99)
        settings = dataclasses.replace(SETTINGS, limits=limits)
        with pytest.raises(UserError, match="changes the"):
            run(photos, tmp_path / "out", settings=settings)
        rows = read_jsonl(tmp_path / "out" / "rejected.jsonl")
        assert all(0 < row["checks"]["strength"] < 0.99 for row in rows)
        assert {row["style"] for row in rows} == {"pixel-art", "cyberpunk"}

    def test_changed_limits_make_no_picture_again(self, photos, tmp_path, snapshot):
        out = tmp_path / "out"
        run(photos, out)
        pictures = {n: v for n, v in snapshot(out).items() if n.endswith(".png")}
        strengths = [s.provenance["checks"]["strength"] for s in load_manifest(out).samples]
        middle = sorted(strengths)[len(strengths) // 2]
        limits = dataclasses.replace(ANY, min_strength=middle)
        run(photos, out, settings=dataclasses.replace(SETTINGS, limits=limits))
        kept = [s.provenance["checks"]["strength"] for s in load_manifest(out).samples]
        assert kept == [value for value in strengths if value >= middle]
        assert {n: v for n, v in snapshot(out).items() if n.endswith(".png")} == pictures

    def test_nearly_the_same_photo_is_used_once(self, photos, tmp_path):
        mask = next(photos.glob("p3.*.png")).name
        Image.open(photos / "p3.png").save(photos / "again.webp", quality=95)
        append(photos, {"file": "again.webp", "word": "dog", "mask": mask})
        report = run(photos, tmp_path / "out")
        (double,) = report.rejected
        assert "near-duplicate of p3.png" in double.reason
        limits = dataclasses.replace(ANY, max_alike=-1)
        both = run(photos, tmp_path / "out", settings=dataclasses.replace(SETTINGS, limits=limits))
        assert len(both.samples) == len(report.samples) + 2

    def test_a_judges_no_is_a_reason(self, photos, tmp_path, monkeypatch):
        class Judge:
            name = "llava model@0123"

            def ask(self, images, question):
                assert len(images) == 2
                return None if "cyberpunk" in question else True

            def say(self, images, text):
                return "a still life"

        monkeypatch.setattr(judge_module, "_judge", lambda *_: Judge())
        settings = dataclasses.replace(SETTINGS, judge=JudgeSettings("some/model", caption=True))
        report = run(photos, tmp_path / "out", settings=settings)
        assert {s.regions[0].style for s in report.samples} == {"pixel-art"}
        assert all(s.provenance["caption"] == "a still life" for s in report.samples)
        assert all(s.provenance["judge"] == "llava model@0123" for s in report.samples)
        assert all(s.provenance["checks"]["judge_style"] for s in report.samples)
        assert all("no clear answer about the style" in r.reason for r in report.rejected)


def test_samples_name_the_commit_of_a_stylizers_network(photos, tmp_path, monkeypatch):
    """A target of one commit is not taken for that of another."""
    commit = "a"

    def load(self):
        self.networks = {"model": f"team/model@{commit}"}

    monkeypatch.setattr(FunctionalStylizer, "load", load)
    first = run(photos, tmp_path / "out", ["pixel-art"])
    assert all(s.provenance["networks"] == {"model": "team/model@a"} for s in first.samples)
    commit = "b"
    other = dataclasses.replace(SETTINGS, limits=dataclasses.replace(ANY, max_area=0.91))
    second = run(photos, tmp_path / "out", ["pixel-art"], other)
    assert all(s.provenance["networks"] == {"model": "team/model@b"} for s in second.samples)
    assert not {s.target for s in first.samples} & {s.target for s in second.samples}


def test_the_folder_is_an_image_folder_of_hugging_face(photos, tmp_path):
    """metadata.jsonl: each row names existing pictures in keys that end in file_name."""
    out = tmp_path / "out"
    report = run(photos, out)
    rows = read_jsonl(out / "metadata.jsonl")
    assert len(rows) == len(report.samples)
    for row, sample in zip(rows, report.samples, strict=True):
        assert row["file_name"] == sample.context
        assert row["target_file_name"] == sample.target
        assert all((out / row[key]).is_file() for key in row if key.endswith("file_name"))


def test_a_stylizer_that_needs_the_mask_is_asked_once_an_object(photos, tmp_path, monkeypatch):
    class Masked(Stylizer):
        kind = "masked"
        needs = frozenset({"mask"})
        seen: ClassVar[list] = []

        def stylize(self, image, style, *, mask, generator):
            self.seen.append((mask, generator.initial_seed()))
            return torch.where(mask > 0, 1 - image, torch.zeros_like(image))

    monkeypatch.setattr(StyleEntry, "build", lambda self: Masked(self.settings, "1"))
    report = run(photos, tmp_path / "out", ["pixel-art"])
    assert len(Masked.seen) == len(report.samples)
    assert len({seed for _, seed in Masked.seen}) == 4  # one a photo


def test_a_stylizers_network_is_loaded_before_the_work(photos, tmp_path, monkeypatch):
    class Broken(FunctionalStylizer):
        def load(self):
            raise UserError("no such pipeline")

    monkeypatch.setattr(StyleEntry, "build", lambda self: Broken.build(filter="neon"))
    with pytest.raises(UserError, match="no such pipeline"):
        run(photos, tmp_path / "out", ["pixel-art"])
    assert not list((tmp_path / "out").rglob("*.json"))
