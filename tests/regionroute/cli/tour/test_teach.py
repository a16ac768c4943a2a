"""Teaching a style: what is asked of the stages, words of photos, the verdict."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from regionroute.cli.main import main as regionroute
from regionroute.cli.tour import stages, teach
from regionroute.config.run import load_config
from regionroute.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from regionroute.models import embedded as nano
from train.engine.output_lock import locked_output


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Photos and style images, relative to where the command runs."""
    monkeypatch.chdir(tmp_path)
    for folder, count in (("photos", 8), ("style", 2), ("after", 8)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            image = Image.new("RGB", (40, 40), (number * 20, 90, 30))
            image.save(tmp_path / folder / f"dog_{number:02d}.png")
    return tmp_path


@pytest.fixture
def started(monkeypatch, folders, leave_pairs):
    """The commands of the stages, none of which runs; training leaves what it would."""
    commands = []

    def start(command, **_):
        commands.append(command[3:])
        leave_pairs(command)
        if "train" in command:
            [run] = [part.split("=")[1] for part in command if part.startswith("output=")]
            write_json(folders / run / "run.json", {"best_step": 20})
            experts = folders / run / "checkpoints" / "step-000020" / "experts"
            experts.mkdir(parents=True, exist_ok=True)
            (experts / "experts.json").write_text("the best")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(stages.subprocess, "run", start)
    return commands


def scored(folder, left, success, name="mine"):
    """An earlier `teach` with scores that the last stage will read."""
    write_text(folder / "style.yaml", f"# written by `regionroute teach --name {name}`\n")
    slices = {"all": {"in_mask_ratio": {"mean": left, "n": 3}, "success": {"mean": success}}}
    write_json(folder / "scores" / "summary.json", {"methods": {name: {"slices": slices}}})


TEACH = ["teach", "--name", "mine", "--style-images", "style", "--photos", "photos"]


def test_stages_follow_each_other_and_the_best_experts_are_kept(started, folders, capsys):
    scored(folders / "out" / "teach" / "mine", 0.2, 1.0)
    assert regionroute([*TEACH, "--steps", "40", "--seed", "5"]) == 0

    names = [command[0] for command in started]
    assert names == ["label", "train", "edit", "score", "report", "experts"]
    assert started[0][started[0].index("--crops") + 1] == "30"  # of eight photos
    train = started[1]
    assert {"train.steps=40", "seed=5", "train.validate_every=5"} < {*train}
    assert {"routing.branch=expert", "experts.rank=32", "optim.lr=0.004"} < {*train}
    config = load_config(str(Path(__file__).parents[4] / "configs" / "nano_photos.yaml"))
    assert config.flow.perceptual.share == 0.5
    # the first block's heads find the object
    assert not [name for name in config.experts.targets if name.startswith("transformer_blocks.0")]
    out = folders / "out" / "teach" / "mine"
    assert (out / "experts" / "experts.json").read_text() == "the best"
    rows = read_jsonl(out / "labels.jsonl")
    assert rows[0] == {"image": "dog_00.png", "objects": [{"word": "dog"}]}
    assert len(rows) == 8
    styles = (out / "style.yaml").read_text()
    assert f'reference: "{folders / "style"}"' in styles
    said = capsys.readouterr().out
    assert "learned: on 3 photos set aside 100% of the edits leave less than half of the" in said
    assert "(on average 20% is left)" in said
    assert "regionroute edit PHOTO --object WORD --style mine --experts out/teach/mine/exp" in said


@pytest.mark.slow
@pytest.mark.timeout(900)  # five minutes of training alone
def test_a_style_is_learned_from_one_image_and_some_photos(assets, tmp_path, monkeypatch):
    monkeypatch.setenv("U2NET_HOME", str(assets / "weights" / "segment"))
    photos, style, out = (tmp_path / name for name in ("photos", "style", "out"))
    photos.mkdir()
    style.mkdir()
    shutil.copy(assets / "style_images" / "Print.jpg", style)
    for photo in sorted((assets / "photos").glob("*_0[01].jpg"))[:24]:
        shutil.copy(photo, photos)
    arguments = ["--style-images", style, "--photos", photos, "--name", "print", "--out", out]
    assert regionroute(["teach", *map(str, arguments), "--steps", "120"]) == 0

    assert (out / "report.html").is_file()
    assert "Success" in (out / "experts" / "README.md").read_text()
    assert list((out / "run" / "previews").glob("step-*.png"))
    registry = read_json(out / "experts" / "experts.json")
    assert "transformer_blocks.1.attn.*" in registry["targets"]  # its first finds the object
    assert registry["extra"]["routing"]["branch"] == "expert"


def test_it_says_so_when_nothing_was_learned(started, folders, capsys):
    scored(folders / "out" / "teach" / "mine", 0.4, 0.4)
    assert regionroute(TEACH) == 1
    said = capsys.readouterr().out
    assert "NOT learned: on 3 photos set aside 40% of the edits leave less than half" in said
    assert "\nlearned" not in said


def test_a_photo_that_was_like_its_target_does_not_decide(started, folders, capsys):
    scored(folders / "out" / "teach" / "mine", 1.7, 0.6)  # ten times as much left in one of six
    assert regionroute(TEACH) == 0
    assert "\nlearned: on 3 photos set aside 60%" in capsys.readouterr().out


def test_experts_that_are_a_link_stay_one(started, folders):
    out, disk = folders / "here", folders / "disk"
    scored(out, 0.2, 1.0)
    disk.mkdir()
    (out / "experts").symlink_to(disk)
    assert regionroute([*TEACH, "--out", "here"]) == 0
    assert (out / "experts").is_symlink()
    assert (disk / "experts.json").read_text() == "the best"


def test_photos_that_lead_to_the_results_are_refused(started, folders, refused):
    """On a second run they would be photos."""
    scored(folders / "here", 0.2, 1.0)
    shutil.copytree("photos", "here/pairs/images")
    (folders / "photos" / "more").symlink_to(folders / "here")
    told = refused(regionroute, [*TEACH, "--out", "here"])
    assert "--out here: it is inside the folder of the photos" in told
    assert started == []


def test_pairs_need_one_photo_of_each_name(started, folders, refused):
    pairs = ["teach", "--name", "mine", "--before", "photos", "--after", "after"]
    for number in range(5, 8):
        (folders / "after" / f"dog_{number:02d}.png").unlink()
    told = refused(regionroute, pairs)
    assert "5 different photos are too few, give 6 or more" in told
    assert "not used: after has none named dog_05" in told
    (folders / "photos" / "more").mkdir()
    shutil.copy("photos/dog_00.png", "photos/more")
    told = refused(regionroute, pairs)
    assert "--before: photos/dog_00.png and photos/more/dog_00.png have one name" in told


def test_copies_of_one_photo_are_one(started, folders, refused):
    for file in (folders / "photos").iterdir():
        shutil.copy("style/dog_00.png", file)
    assert "1 different photos are too few" in refused(regionroute, TEACH)


def test_labels_that_are_no_file_are_not_passed_over(started, folders, refused):
    (folders / "photos" / "labels.jsonl").mkdir()
    assert "photos/labels.jsonl: this is a folder" in refused(regionroute, TEACH)


def test_a_run_on_other_pairs_is_not_resumed(started, folders, capsys):
    out = folders / "here"
    scored(out, 0.2, 1.0)
    for manifest, seed, resumed in (
        ("one", "0", False),
        ("one", "0", True),
        ("another", "0", False),
        ("another", "1", False),
        ("another", "1", True),
    ):
        write_text(out / "pairs" / "manifest.jsonl", manifest)
        assert regionroute([*TEACH, "--out", "here", "--seed", seed]) == 0
        assert (out / "run" / "of-the-last-run").exists() == resumed
        (out / "run" / "of-the-last-run").touch()
    assert capsys.readouterr().out.count("training anew") == 2


def test_pairs_and_labels_that_are_there(started, folders):
    scored(folders / "here", 0.2, 1.0)
    rows = [{"file": f"dog_{number:02d}.png", "word": "puppy"} for number in range(7)]
    write_jsonl(folders / "photos" / "labels.jsonl", rows)
    pairs = ["teach", "--name", "mine", "--before", "photos", "--after", "after", "--out", "here"]
    assert regionroute(pairs) == 0
    styles = (folders / "here" / "style.yaml").read_text()
    assert "stylizer: pairs" in styles
    assert f'after: "{folders / "after"}"' in styles
    assert "--crops" not in started[0]
    assert started[0][started[0].index("--labels") + 1] == "photos/labels.jsonl"
    assert not (folders / "here" / "labels.jsonl").exists()


def test_a_word_for_all_photos(started, folders, refused):
    scored(folders / "out" / "teach" / "mine", 0.2, 1.0)
    assert regionroute([*TEACH, "--object", "cat"]) == 0
    rows = read_jsonl(folders / "out" / "teach" / "mine" / "labels.jsonl")
    assert rows[0]["objects"] == [{"word": "cat"}]
    write_jsonl(folders / "photos" / "labels.jsonl", [{"file": "dog_00.png", "word": "puppy"}])
    told = refused(regionroute, [*TEACH, "--object", "cat"])
    assert "--object cat: photos/labels.jsonl names the objects, leave the option out" in told
    told = refused(regionroute, TEACH)  # images without a label, such as masks, do not count
    assert "photos/labels.jsonl: 1 different photos are too few, give 6 or more" in told
    (folders / "photos" / "labels.jsonl").write_text("{")
    told = refused(regionroute, TEACH)
    assert (
        "0 different photos are too few, give 6 or more, better 20; not used: "
        "photos/labels.jsonl:1" in told
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "mine"], "give --style-images and --photos, or --before and --after"),
        ([*TEACH[1:], "--after", "after"], "give --style-images and --photos, or"),
        (["--name", "a b", *TEACH[3:]], "--name a b: use letters"),
        ([*TEACH[1:4], "none", *TEACH[5:]], "none: no such folder of images"),
        ([*TEACH[1:6], "two"], "two: 2 different photos are too few, give 6 or more"),
        ([*TEACH[1:], "--base", "nowhere/at/all"], "nowhere/at/all"),
        ([*TEACH[1:], "--steps", "0"], "--steps 0: must be at least 1"),
        ([*TEACH[1:], "--out", ""], "the folder's name is empty"),
        ([*TEACH[1:], "--out", "photos"], "--out photos: it is inside the folder of the photos"),
        ([*TEACH[1:], "--out", "photos/out/mine"], "would count as photos: name another folder"),
        ([*TEACH[1:4], "photos/style", *TEACH[5:]], "photos/style: it is inside"),
        ([*TEACH[1:], "--object", "!"], "--object '!': give a word"),
        ([*TEACH[1:], "--phrase", ""], "--phrase '': give a word"),
        (["--name", "café", *TEACH[3:]], "--name café: use letters a to z"),
    ],
)
def test_mistakes_end_before_the_first_stage(folders, refused, arguments, message):
    shutil.copytree("style", "photos/style")
    shutil.copytree("style", "two")
    assert message in refused(regionroute, ["teach", *arguments])


def test_names_and_words_are_what_they_are_in_yaml(started, folders):
    (folders / "style").rename(folders / "style 🎨: #1")
    scored(folders / "here", 0.2, 1.0, "null")
    given = ["--style-images", "style 🎨: #1", "--photos", "photos", "--phrase", "yes ✨🎨"]
    assert regionroute(["teach", "--name", "null", *given, "--out", "here"]) == 0
    [(name, style)] = yaml.safe_load((folders / "here" / "style.yaml").read_text())[
        "styles"
    ].items()
    assert name == "null"
    assert style["phrase"] == "yes ✨🎨"
    assert style["settings"] == {"reference": str(folders / "style 🎨: #1")}


@pytest.mark.parametrize(
    "name",
    ["experts/experts.json", "labels.jsonl", "style.yaml", "pairs/manifest.jsonl", "scores/a"],
)
def test_files_of_another_origin_are_not_replaced(started, folders, refused, name):
    """Such as the experts of a long training, in the folder of its run."""
    file = folders / "runs" / name
    file.parent.mkdir(parents=True)
    file.write_text("styles:\n  another:\n")
    told = refused(regionroute, [*TEACH, "--out", "runs"])
    assert f"nothing says that its {name.partition('/')[0]} is of an earlier `teach" in told
    assert file.read_text() == "styles:\n  another:\n"
    assert started == []
    scored(folders / "mine", 0.2, 1.0)
    for _ in range(2):  # its own are
        assert regionroute([*TEACH, "--out", "mine"]) == 0


@pytest.mark.parametrize("command", [TEACH, ["demo"], ["study"]])
def test_a_second_one_at_the_same_time_starts_no_stage(started, folders, refused, command):
    """Else it would rewrite the pairs that the first one trains on."""
    with locked_output(folders / "here"):
        told = refused(regionroute, [*command, "--out", "here"])
    assert "here: another run is writing to this folder" in told
    assert started == []


@pytest.mark.parametrize(
    ("stem", "word"),
    [
        ("dog_00", "dog"),
        ("grey_cat-02", "grey cat"),
        ("Teddybear", "teddybear"),
        ("IMG_20240102_1203", "object"),
        ("DSC0001", "object"),
        ("3f2a9c", "object"),
        ("photo of my red cup", "red cup"),
    ],
)
def test_words_by_the_names_of_photos(stem, word):
    assert teach.object_word(stem) == word


def test_recipes_by_base(tiny_base, tiny_klein):
    photos = teach.recipe_of(nano.PHOTOS)
    assert (photos.config, photos.size, photos.dtype) == ("nano_photos", 160, "float32")
    assert "optim.lr=0.004" in photos.settings
    assert "experts.init_from=nano-photos/experts" in photos.settings
    assert teach.recipe_of(str(tiny_base)).config == "kontext"
    assert teach.recipe_of(str(tiny_klein)).config == "klein"


def test_experts_start_from_those_of_the_base_if_there_are_any(tmp_path):
    for part in nano.nano_folder(nano.PHOTOS).iterdir():
        if part.name != "experts":
            (tmp_path / part.name).symlink_to(part)
    assert not any("init" in setting for setting in teach.recipe_of(str(tmp_path)).settings)
    (tmp_path / "experts").symlink_to(nano.nano_folder(nano.PHOTOS) / "experts")
    assert f"experts.init_from={tmp_path}/experts" in teach.recipe_of(str(tmp_path)).settings
