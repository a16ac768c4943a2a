import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from pseudo_labels import job as job_module
from pseudo_labels import photo as photo_module
from pseudo_labels.build import MANY, PhotoSource, build, hold_out, split_by_photo
from pseudo_labels.curate.filters import Limits
from pseudo_labels.job import BuildSettings, slug
from pseudo_labels.scenes.draw import render_scene
from pseudo_labels.segment.given import read_labels
from pseudo_labels.stylize.filters import FILTERS
from pseudo_labels.stylize.functional import FunctionalStylizer
from pseudo_labels.stylize.registry import load_styles
from regionroute.cli.label import main
from regionroute.data.images import read_image, write_image
from regionroute.data.manifest import EditSample, Region, load_manifest
from regionroute.engines.base import EngineSettings
from regionroute.errors import UserError, command
from regionroute.files import read_jsonl

ANY = Limits(0.001, 0.9, min_strength=0.0, min_structure=-1.0)  # scenes are no photos
SETTINGS = BuildSettings(size=96, limits=ANY)
KEEP = ["--min-structure", "-1", "--min-strength", "0"]


def run(photos, out, styles=("pixel-art", "cyberpunk"), settings=SETTINGS, **options):
    options = {"engine": EngineSettings(workers=1), **options}
    entries = load_styles("scenes", styles)
    labels = photos / "labels.jsonl"
    return build(PhotoSource(str(labels), *read_labels(labels)), entries, out, settings, **options)


def append(photos, *rows):
    with open(photos / "labels.jsonl", "a", encoding="utf-8") as file:
        for row in rows:
            file.write((row if isinstance(row, str) else json.dumps(row)) + "\n")


class TestSamples:
    @pytest.fixture(scope="class")
    def made(self, tmp_path_factory):
        """A finished build of one photo with two objects."""
        folder = tmp_path_factory.mktemp("made")
        scene = render_scene(100, 96, count=2)
        write_image(folder / "in" / "p 0.png", scene.image)
        objects = []
        for word in scene.words():
            write_image(folder / "in" / f"{word}.png", scene.mask(word))
            objects.append({"word": word, "mask": f"{word}.png"})
        row = {"image": "p 0.png", "objects": objects, "licence": "CC0"}
        (folder / "in" / "labels.jsonl").write_text(json.dumps(row))
        run(folder / "in", folder / "out")
        return load_manifest(folder / "out")

    def test_every_object_comes_in_every_style(self, made):
        pairs = {(s.regions[0].object, s.regions[0].style) for s in made.samples}
        assert len(pairs) == len(made.samples) == 4
        assert {style for _, style in pairs} == {"pixel-art", "cyberpunk"}

    def test_nothing_changes_outside_the_mask_in_the_stored_files(self, made):
        for sample in made.samples:
            outside = (made.masks(sample)[0] == 0).expand(3, -1, -1)
            context, target = made.context(sample), made.target(sample)
            assert torch.equal(context[outside], target[outside])

    def test_inside_the_mask_is_the_style_of_the_whole_photo(self, made):
        for sample in made.samples:
            inside = (made.masks(sample)[0] == 1).expand(3, -1, -1)
            styled = FILTERS[sample.regions[0].style](made.context(sample))
            difference = (made.target(sample) - styled)[inside].abs().max()
            assert difference <= 0.5 / 255 + 1e-6

    def test_prompt_spans_box_and_provenance(self, made):
        for sample in made.samples:
            (region,) = sample.regions
            assert sample.prompt[slice(*region.object_span)] == region.object
            assert sample.prompt[slice(*region.style_span)] == region.style
            y0, x0, y1, x1 = region.box
            mask = made.masks(sample)[0, 0]
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            assert mask[y0].any()
            assert mask[:, x1 - 1].any()
            assert sample.provenance["licence"] == "CC0"
            assert sample.provenance["photo"] == "p 0.png"
            assert "multi" in sample.flags

    def test_manifest_paths_are_relative_and_hold_no_folder_of_this_machine(self, made):
        text = (made.root / "manifest.jsonl").read_text()
        assert str(made.root.parent) not in text

    def test_objects_of_one_photo_share_its_context(self, made):
        assert len({sample.context for sample in made.samples}) == 1
        assert len(list((made.root / "images").iterdir())) == 1
        assert len(list((made.root / "masks").iterdir())) == 2


def test_a_photo_is_restyled_once_in_each_style(photos, tmp_path, monkeypatch):
    calls = []
    original = FunctionalStylizer.stylize

    def counted(self, content, style, **kwargs):
        calls.append(style.name)
        return original(self, content, style, **kwargs)

    monkeypatch.setattr(FunctionalStylizer, "stylize", counted)
    report = run(photos, tmp_path / "out")
    assert len(report.samples) > 8  # more objects than photos
    assert len(calls) == 4 * 2


def test_a_larger_photo_is_scaled_down_and_a_smaller_one_left(photos, tmp_path):
    out = tmp_path / "out"
    run(photos, out, settings=BuildSettings(size=48, limits=ANY))
    sizes = {read_image(path).shape for path in out.glob("*/*.png") if path.parent.name != "masks"}
    assert sizes == {(3, 48, 48)}
    run(photos, out, settings=BuildSettings(size=400, limits=ANY))
    manifest = load_manifest(out)
    assert manifest.context(manifest.samples[0]).shape == (3, 96, 96)


def test_feather_stays_inside_the_mask(photos, tmp_path):
    hard, soft = (
        run(photos, tmp_path / f"out{feather}", settings=BuildSettings(96, feather, ANY))
        for feather in (0, 2)
    )
    first, second = (load_manifest(report.manifest) for report in (hard, soft))
    for a, b in zip(first.samples, second.samples, strict=True):
        mask = first.masks(a)[0]
        changed = (first.target(a) != second.target(b)).any(0, keepdim=True)
        assert changed.any()
        assert not (changed & (mask == 0)).any()


def test_areas_out_of_range_are_rejected_with_a_reason(photos, tmp_path):
    write_image(photos / "all.png", torch.ones(1, 96, 96))
    speck = torch.zeros(1, 96, 96)
    speck[:, :3, :3] = 1
    write_image(photos / "speck.png", speck)
    rows = [{"file": "p3.png", "word": w, "mask": f"{w}.png"} for w in ("all", "speck")]
    append(photos, *rows)
    report = run(photos, tmp_path / "out", settings=BuildSettings(size=96))
    reasons = {item.word: item.reason for item in report.rejected}
    assert "covers 100.0%" in reasons["all"]
    assert "covers 0.1%" in reasons["speck"]
    assert not {s.regions[0].object for s in report.samples} & {"all", "speck"}


class TestSplit:
    def test_photos_are_never_divided(self, photos, tmp_path):
        report = run(photos, tmp_path / "out", test_share=0.5)
        sides = {}
        for sample in report.samples:
            sides.setdefault(sample.context, set()).add(sample.split)
        assert all(len(side) == 1 for side in sides.values())
        assert {s.split for s in report.samples} == {"train", "test"}

    def test_styles_are_held_out_with_all_their_samples(self, photos, tmp_path):
        report = run(photos, tmp_path / "out", test_share=0.0, hold_out_styles=["cyberpunk"])
        sides = {(s.regions[0].style, s.split) for s in report.samples}
        assert sides == {("pixel-art", "train"), ("cyberpunk", "test")}

    def test_a_sample_with_one_held_out_style_is_held_out(self):
        regions = [Region("dog", style, "m.png", (0, 0, 1, 1)) for style in ("a", "b", "c")]
        pairs = [regions[:2], regions[1:]]
        samples = [EditSample("s", "a.png", "b.png", tuple(pair), "p") for pair in pairs]
        assert [s.split for s in hold_out(samples, ["a"])] == ["test", "train"]

    @staticmethod
    def samples(count):
        return [
            EditSample(f"s{i}", "a.png", "b.png", (), "p", provenance={"photo_hash": f"hash{i}"})
            for i in range(count)
        ]

    def test_the_share_is_about_what_was_asked_for(self):
        split = split_by_photo(self.samples(2000), 0.2)
        assert 340 < sum(sample.split == "test" for sample in split) < 460

    def test_a_photo_keeps_its_side_when_others_come(self):
        few, many = (split_by_photo(self.samples(count), 0.3) for count in (MANY, 3 * MANY))
        assert [s.split for s in few] == [s.split for s in many[:MANY]]

    @pytest.mark.parametrize(
        ("count", "share", "test"), [(20, 0.25, 5), (33, 0.25, 8), (6, 0.2, 1)]
    )
    def test_of_few_photos_the_share_is_exact(self, count, share, test):
        split = split_by_photo(self.samples(count), share)
        assert sum(sample.split == "test" for sample in split) == test

    @pytest.mark.parametrize("count", [2, 3, 4])
    @pytest.mark.parametrize("share", [0.01, 0.99])
    def test_neither_side_is_left_empty(self, count, share):
        assert {s.split for s in split_by_photo(self.samples(count), share)} == {"train", "test"}

    def test_zero_and_one_mean_none_and_all(self):
        assert {s.split for s in split_by_photo(self.samples(5), 0.0)} == {"train"}
        assert {s.split for s in split_by_photo(self.samples(5), 1.0)} == {"test"}


class TestResuming:
    def test_a_second_run_changes_no_byte_and_opens_no_photo(
        self, photos, tmp_path, snapshot, monkeypatch
    ):
        out = tmp_path / "out"
        run(photos, out)
        before = snapshot(out)
        monkeypatch.setattr(photo_module, "open_photo", lambda photo: pytest.fail("opened"))
        run(photos, out)
        after = snapshot(out)
        assert after == before  # times of change included

    @pytest.mark.parametrize("after", [1, 5, 9, 14])
    def test_stopped_in_the_middle_and_run_again_gives_the_same_bytes(
        self, photos, tmp_path, contents, monkeypatch, after
    ):
        run(photos, tmp_path / "whole")
        out, written = tmp_path / "out", []

        def dies(path, *args):
            if len(written) == after:
                path.parent.mkdir(exist_ok=True)
                (path.parent / ".0123456789ab.tmp.png").write_bytes(b"half")
                raise KeyboardInterrupt
            written.append(path)
            write_image(path, *args)

        with monkeypatch.context() as patch:
            patch.setattr(job_module, "write_image", dies)
            with pytest.raises(KeyboardInterrupt):
                run(photos, out)
        assert not (out / "manifest.jsonl").exists()
        run(photos, out)
        assert contents(out) == contents(tmp_path / "whole")

    def test_killed_for_real_and_run_again_gives_the_same_bytes(self, photos, tmp_path, contents):
        arguments = ["--labels", str(photos / "labels.jsonl"), *KEEP, "--size", "96", "--out"]
        main([*arguments, str(tmp_path / "whole")])
        out = tmp_path / "out"
        command_line = [sys.executable, "-m", "regionroute.cli", "label", *arguments, str(out)]
        process = subprocess.Popen(command_line, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(list(out.glob("targets/*.png"))) < 5 and time.monotonic() < deadline:
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "manifest.jsonl").exists()
        main([*arguments, str(out)])
        assert contents(out) == contents(tmp_path / "whole")

    def test_a_new_style_makes_only_its_own_targets(self, photos, tmp_path, snapshot):
        out = tmp_path / "out"
        run(photos, out, ["pixel-art"])
        before = snapshot(out)
        run(photos, out, ["pixel-art", "line-art"])
        new = snapshot(out).keys() - before.keys()
        assert {name.split("/")[0] for name in new} == {"targets", ".cache"}
        assert all("line-art" in name for name in new if name.startswith("targets"))
        unchanged = [
            name for name in before if name.split("/")[0] in ("images", "masks", "targets")
        ]
        assert all(snapshot(out)[name] == before[name] for name in unchanged)

    def test_a_lost_or_changed_input_is_noticed(self, photos, tmp_path):
        out = tmp_path / "out"
        first = run(photos, out)
        next((out / "targets").glob("*.png")).unlink()
        mask = next(photos.glob("p2.*.png"))
        Image.open(mask).point(lambda value: 255 - value).save(mask)
        second = run(photos, out)
        assert all((out / sample.target).exists() for sample in second.samples)
        changed = {a.target for a in first.samples} - {b.target for b in second.samples}
        assert {name.split("/")[1][:2] for name in changed} == {"p2"}

    def test_two_processes_give_the_bytes_of_one(self, photos, tmp_path, contents):
        run(photos, tmp_path / "one")
        run(photos, tmp_path / "two", engine=EngineSettings(workers=2))
        assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_bad_photos_are_one_line_each_and_the_rest_goes_on(photos, tmp_path):
    good = run(photos, tmp_path / "good")
    mask = next(photos.glob("p3.*.png")).name
    whole = photos / "whole.jpg"
    Image.open(photos / "p3.png").save(whole)
    (photos / "cut.jpg").write_bytes(whole.read_bytes()[:600])
    (photos / "text.png").write_text("no picture")
    (photos / "copy.png").write_bytes((photos / "p3.png").read_bytes())
    write_image(photos / "tiny.png", torch.rand(3, 8, 8))
    write_image(photos / "tinymask.png", torch.ones(1, 8, 8))
    names = ["cut.jpg", "text.png", "copy.png", "none.png", "tiny.png", "."]
    rows = [{"file": n, "word": "dog", "mask": mask} for n in names]
    rows[4]["mask"] = "tinymask.png"
    append(photos, *rows, "{broken")
    report = run(photos, tmp_path / "out")
    assert report.samples == good.samples
    lines = read_jsonl(tmp_path / "out" / "rejected.jsonl")
    by_photo = {line.get("photo"): line["reason"] for line in lines}
    assert len(lines) == 7
    expected = {
        "cut.jpg": "cannot be read",
        "text.png": "cannot be read",
        "copy.png": "the same image as p3.png",
        "none.png": "no such photo",
        "tiny.png": "8x8 pixels",
        ".": "no such photo",
        None: "not JSON",
    }
    for name, words in expected.items():
        assert words in by_photo[name]
        assert "\n" not in by_photo[name]


def test_names_from_anywhere_make_safe_and_different_file_names():
    names = ["a/b", "a b", "a-b", "..", "café", "狗", "狐", "x" * 90, "x" * 91, "dog"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert slugs[-1] == "dog"
    for text in slugs:
        assert text
        assert len(text) < 60
        assert text.replace("-", "").replace("_", "").isascii()
        assert text.replace("-", "").replace("_", "").isalnum()


class TestCommand:
    def test_it_says_what_it_made(self, photos, tmp_path, capsys):
        append(photos, "{broken")
        out = tmp_path / "out"
        labels = str(photos / "labels.jsonl")
        arguments = ["--labels", labels, "--styles", "scenes", "--only", "line-art"]
        code = main([*arguments, "--out", str(out), "--size", "64", "--limit", "3", *KEEP])
        said = capsys.readouterr().out
        assert code == 0
        assert str(out / "manifest.jsonl") in said
        assert "1 rejected" in said
        manifest = load_manifest(out)
        assert {s.regions[0].style for s in manifest.samples} == {"line-art"}
        assert len({s.context for s in manifest.samples}) == 3

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (["--labels", "none.jsonl"], "none.jsonl: no such file"),
            (["--labels", "."], "folder"),
            (["--styles", "none.yaml"], "no such styles file"),
            (["--only", "noir"], "nearest known one"),
            (["--size", "8"], "size is 8"),
            (["--feather", "-1"], "feather is -1"),
            (["--test-share", "2"], "--test-share"),
            (["--limit", "0"], "--limit 0"),
            (["--workers", "0"], "--workers 0"),
            (["--out", "taken"], "this is a file"),
        ],
    )
    def test_mistakes_end_with_one_sentence(self, photos, capsys, monkeypatch, change, message):
        monkeypatch.chdir(photos)
        (photos / "taken").write_text("")
        arguments = ["--labels", "labels.jsonl", "--styles", "scenes", "--out", "out", *change]
        assert command(main)(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 0

    def test_no_sample_at_all_names_the_first_reason(self, tmp_path):
        (tmp_path / "labels.jsonl").write_text('{"file": "a.png", "word": "dog", "mask": "m.png"}')
        with pytest.raises(UserError, match=r"no sample could be made.*a\.png"):
            run(tmp_path, tmp_path / "out")
        assert len(read_jsonl(tmp_path / "out" / "rejected.jsonl")) == 1


@pytest.mark.parametrize(("folder", "photos_made"), [("photos", 4), ("photos_256", 4)])
def test_real_photos_with_either_form_of_labels(assets, tmp_path, folder, photos_made):
    labels = assets / folder / "labels.jsonl"
    report = build(
        PhotoSource(str(labels), *read_labels(labels)),
        load_styles("painting", ["starry-night", "watercolour"]),
        tmp_path / "out",
        BuildSettings(size=96),
        limit=4,
        engine=EngineSettings(workers=1),
    )
    manifest = load_manifest(report.manifest)
    assert len({sample.context for sample in manifest.samples}) == photos_made
    for sample in manifest.samples:
        mask = manifest.masks(sample)[0]
        difference = (manifest.target(sample) - manifest.context(sample)).abs()
        assert (difference * (1 - mask)).max() == 0
        assert (difference * mask).sum() / (3 * mask.sum()) > 0.05


def test_styles_take_turns_over_the_photos(photos, tmp_path):
    names = ("pixel-art", "cyberpunk", "line-art")
    report = run(photos, tmp_path / "out", names, styles_per_photo=2)

    looks = {}
    for sample in report.samples:
        looks.setdefault(sample.provenance["photo"], []).append(sample.regions[0].style)
    turns = [set(styles) for styles in looks.values()]
    assert turns == [
        {"pixel-art", "cyberpunk"}, {"line-art", "pixel-art"}, {"cyberpunk", "line-art"},
        {"pixel-art", "cyberpunk"},
    ]  # fmt: skip
