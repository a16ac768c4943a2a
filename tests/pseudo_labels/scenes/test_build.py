import pytest
import torch

from pseudo_labels.bank import corpus
from pseudo_labels.job import BuiltStyle
from pseudo_labels.scenes import samples as scene_samples
from pseudo_labels.scenes.build import (
    BLOCK,
    PRETRAIN_SEEDS,
    TRAIN_SEEDS,
    SceneSettings,
    build_scenes,
    scene_jobs,
)
from pseudo_labels.scenes.draw import HELD_OUT_SEEDS, render_scene
from pseudo_labels.stylize.filters import FILTERS
from pseudo_labels.stylize.registry import load_styles
from regionroute.cli.scenes import main
from regionroute.data.images import write_image
from regionroute.data.manifest import load_manifest
from regionroute.errors import UserError, command
from regionroute.files import write_jsonl

LOOKS = tuple(BuiltStyle(entry, entry.build()) for entry in load_styles("scenes"))


class TestSeeds:
    def test_the_three_ranges_do_not_meet_and_leave_no_gap(self):
        assert PRETRAIN_SEEDS.stop == TRAIN_SEEDS.start
        assert TRAIN_SEEDS.stop == HELD_OUT_SEEDS.start

    @pytest.mark.parametrize("seed", [0, 7, 499])
    def test_training_never_draws_a_held_out_scene(self, seed):
        jobs = scene_jobs(300, 50, seed)
        train = {job.seed for job in jobs if job.split == "train"}
        test = {job.seed for job in jobs if job.split == "test"}
        assert len(train) == 300
        assert len(test) == 50
        assert min(train) >= TRAIN_SEEDS.start
        assert min(train) + BLOCK <= TRAIN_SEEDS.stop
        assert all(seed in HELD_OUT_SEEDS for seed in test)

    def test_another_seed_changes_every_training_scene_and_no_held_out_one(self):
        first, second = scene_jobs(20, 10, 0), scene_jobs(20, 10, 1)
        assert first[20:] == second[20:]
        assert not {job.seed for job in first[:20]} & {job.seed for job in second[:20]}

    @pytest.mark.parametrize(
        "arguments", [(4, 4, -1), (4, 4, 500), (BLOCK + 1, 4, 0), (4, len(HELD_OUT_SEEDS) + 1, 0)]
    )
    def test_more_than_there_are_seeds_is_refused(self, arguments):
        with pytest.raises(UserError):
            scene_jobs(*arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    build_scenes(folder, scene_jobs(8, 12), SceneSettings(64, LOOKS))
    return load_manifest(folder)


class TestManifest:
    def test_every_scene_comes_in_every_style_with_one_word(self, made):
        assert len(made.samples) == 20 * 4
        by_scene = {}
        for sample in made.samples:
            by_scene.setdefault(sample.provenance["scene_seed"], []).append(sample)
        for samples in by_scene.values():
            assert [s.regions[0].style for s in samples] == list(FILTERS)
            assert len({(s.context, s.regions[0].mask, s.regions[0].object) for s in samples}) == 1

    def test_stored_pictures_are_exactly_the_scene_its_mask_and_its_styles(self, made):
        for sample in made.samples:
            scene = render_scene(sample.provenance["scene_seed"])
            (region,) = sample.regions
            mask = scene.mask(region.object)
            assert torch.equal(made.context(sample), scene.image)
            assert torch.equal(made.masks(sample)[0], mask)
            target = torch.where(mask > 0, FILTERS[region.style](scene.image), scene.image)
            assert (made.target(sample) - target).abs().max() <= 0.5 / 255 + 1e-6
            outside = (mask == 0).expand(3, -1, -1)
            assert torch.equal(made.target(sample)[outside], scene.image[outside])
            assert sample.flags == scene.flags(region.object)

    def test_spans_and_boxes(self, made):
        for sample in made.samples:
            (region,) = sample.regions
            assert sample.prompt[slice(*region.object_span)] == region.object
            assert sample.prompt[slice(*region.style_span)] == region.style
            y0, x0, y1, x1 = region.box
            mask = made.masks(sample)[0, 0]
            assert mask[y0:y1, x0:x1].sum() == mask.sum()

    def test_the_split_is_the_seeds_range(self, made):
        for sample in made.samples:
            held_out = sample.provenance["scene_seed"] in HELD_OUT_SEEDS
            assert sample.split == ("test" if held_out else "train")

    def test_the_word_is_drawn_among_the_scenes_words(self, made):
        choices = {
            render_scene(s.provenance["scene_seed"]).words().index(s.regions[0].object)
            for s in made.samples
        }
        assert len(choices) > 1  # not always the first


def test_one_style_a_scene_takes_turns(tmp_path):
    samples = build_scenes(tmp_path / "out", scene_jobs(6, 0), SceneSettings(32, LOOKS, True))
    assert [s.regions[0].style for s in samples] == [*FILTERS, *list(FILTERS)[:2]]


class TestAgain:
    def test_a_second_run_renders_nothing(self, tmp_path, snapshot, monkeypatch):
        build_scenes(tmp_path, scene_jobs(3, 2), SceneSettings(32, LOOKS))
        before = snapshot(tmp_path)
        monkeypatch.setattr(scene_samples, "write_image", lambda *args: pytest.fail("written"))
        build_scenes(tmp_path, scene_jobs(3, 2), SceneSettings(32, LOOKS))
        after = snapshot(tmp_path)
        before.pop("manifest.jsonl"), after.pop("manifest.jsonl")
        assert after == before

    def test_stopped_in_the_middle_and_run_again_gives_the_same_bytes(
        self, tmp_path, contents, monkeypatch
    ):
        job, settings = scene_jobs(3, 2), SceneSettings(32, LOOKS)
        build_scenes(tmp_path / "whole", job, settings)
        written = []

        def dies(path, image):
            if len(written) == 9:
                raise KeyboardInterrupt
            written.append(path)
            write_image(path, image)

        with monkeypatch.context() as patch:
            patch.setattr(scene_samples, "write_image", dies)
            with pytest.raises(KeyboardInterrupt):
                build_scenes(tmp_path / "out", job, settings)
        build_scenes(tmp_path / "out", job, settings)
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    def test_other_settings_leave_nothing_of_the_old_ones(self, tmp_path, contents):
        build_scenes(tmp_path / "out", scene_jobs(4, 2), SceneSettings(32, LOOKS))
        build_scenes(tmp_path / "out", scene_jobs(2, 1), SceneSettings(40, LOOKS[:2]))
        build_scenes(tmp_path / "new", scene_jobs(2, 1), SceneSettings(40, LOOKS[:2]))
        assert contents(tmp_path / "out") == contents(tmp_path / "new")

    def test_a_folder_with_another_data_set_is_left_alone(self, tmp_path):
        write_jsonl(tmp_path / "manifest.jsonl", [{"precious": True}])
        with pytest.raises(UserError, match="another data set"):
            build_scenes(tmp_path, scene_jobs(1, 0), SceneSettings(32, LOOKS))
        assert "precious" in (tmp_path / "manifest.jsonl").read_text()


class TestCommand:
    def test_it_builds_and_says_where(self, tmp_path, capsys):
        arguments = ["--train", "2", "--test", "1", "--size", "32", "--only", "line-art, cyberpunk"]
        assert main(["--out", str(tmp_path / "s"), *arguments]) == 0
        assert str(tmp_path / "s" / "manifest.jsonl") in capsys.readouterr().out
        samples = load_manifest(tmp_path / "s").samples
        assert [s.regions[0].style for s in samples] == ["line-art", "cyberpunk"] * 3

    def test_pretraining_scenes_have_no_regions_and_seeds_of_their_own(self, tmp_path):
        arguments = ["--pretrain", "2", "--size", "32", "--seed", "3", "--workers", "1"]
        assert main(["--out", str(tmp_path), *arguments]) == 0
        manifest = load_manifest(tmp_path)
        tasks = {sample.provenance["task"] for sample in manifest.samples}
        assert {"copy", "style", "recolour", "tint"} <= tasks
        for sample in manifest.samples:
            assert not sample.regions
            assert sample.provenance["scene_seed"] - 3 * BLOCK in (0, 1)
            assert sample.provenance["scene_seed"] in PRETRAIN_SEEDS
            same = torch.equal(manifest.context(sample), manifest.target(sample))
            assert same == (sample.provenance["task"] == "copy")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (["--size", "16"], "--size 16"),
            (["--train", "-1"], "--train -1"),
            (["--train", "0", "--test", "0"], "at least one scene"),
            (["--pretrain", "0"], "--pretrain 0"),
            (["--seed", "500"], "--seed 500"),
            (["--pretrain", "5", "--seed", "-1"], "--seed -1"),
            (["--workers", "0"], "--workers 0"),
            (["--styles", "pixel-art"], "--only"),
            (["--only", "pixelart"], "'pixel-art'"),
            (["--out", "taken"], "this is a file"),
        ],
    )
    def test_mistakes_end_with_one_sentence(self, tmp_path, capsys, monkeypatch, change, message):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "taken").write_text("")
        assert command(main)(["--out", "out", *change]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 0


def test_the_corpus_refuses_held_out_seeds(tmp_path):
    with pytest.raises(UserError, match="held-out"):
        corpus.build_corpus(tmp_path, 10, 32, HELD_OUT_SEEDS.start - 5)


class TestSeveralPairs:
    def test_each_word_gets_its_own_style_exactly(self, tmp_path):
        build_scenes(tmp_path, scene_jobs(12, 0), SceneSettings(64, LOOKS, pairs=3))
        manifest = load_manifest(tmp_path)
        counts = {len(sample.regions) for sample in manifest.samples}
        assert counts == {1, 2, 3}
        for sample in manifest.samples[::5]:
            context, target = manifest.context(sample), manifest.target(sample)
            masks = manifest.masks(sample)
            assert len({region.style for region in sample.regions}) == len(sample.regions)
            for region, mask in zip(sample.regions, masks, strict=True):
                styled = FILTERS[region.style](render_scene(sample.provenance["scene_seed"]).image)
                assert ((target - styled).abs() * mask).max() < 1 / 255
                assert sample.prompt[slice(*region.style_span)] == region.style
            assert torch.equal(target * (1 - masks.amax(0)), context * (1 - masks.amax(0)))

    def test_one_pair_is_named_as_before(self, tmp_path):
        for pairs in (1, 2):
            settings = SceneSettings(64, LOOKS, pairs=pairs)
            build_scenes(tmp_path / str(pairs), scene_jobs(6, 0), settings)
        one, two = (load_manifest(tmp_path / str(pairs)).samples for pairs in (1, 2))
        assert [s.regions[0].object for s in one] == [s.regions[0].object for s in two]

    def test_more_than_there_are_styles_is_refused(self, tmp_path, capsys):
        assert command(main)(["--out", str(tmp_path / "x"), "--pairs", "5"]) == 2
        assert "--pairs 5: the styles file has 4 styles" in capsys.readouterr().err


def test_whole_pictures_are_for_training_alone(tmp_path):
    build_scenes(tmp_path, scene_jobs(2, 2), SceneSettings(64, LOOKS, whole=True))
    manifest = load_manifest(tmp_path)
    whole = [sample for sample in manifest.samples if "whole" in sample.flags]
    assert {sample.split for sample in whole} == {"train"}
    assert len(whole) == 2 * len(LOOKS)
    for sample in whole:
        [region] = sample.regions
        assert sample.prompt == f"make the image in {region.style} style"
        assert manifest.masks(sample).min() == 1
        styled = FILTERS[region.style](manifest.context(sample))
        assert (manifest.target(sample) - styled).abs().max() < 2 / 255
