"""Everything a user can get wrong with the pre-training: one sentence, nothing lost."""

import errno
import json
import shutil

import pytest
import torch

from pseudo_labels.bank.corpus import build_corpus
from train.pretrain.run import main

SMALL = [
    "corpus.manifest=corpus",
    "corpus.resolution=32",
    "corpus.held_out=1",
    "codec.latent_channels=4",
    "model.num_layers=1",
    "model.num_single_layers=1",
    "model.num_attention_heads=2",
    "model.attention_head_dim=16",
    "model.axes_dims_rope=[4, 4, 8]",
    "model.text_dim=32",
    "base.steps=1",
    "base.batch=2",
    "base.bfloat16=false",
    "output=run",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_corpus(tmp_path_factory.mktemp("corpus"), scenes=2, size=32, workers=1).parent


@pytest.fixture
def folder(tmp_path, built, monkeypatch):
    """A corpus, what an earlier run left, and odd files."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(built, tmp_path / "corpus")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("of an earlier run")
    (tmp_path / "file").write_text("text")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("base:\n  steps: [1\n")
    (tmp_path / "twice.yaml").write_text("seed: 1\nseed: 2\n")
    (tmp_path / "date.yaml").write_text("seed: 2020-13-45\n")
    (tmp_path / "itself.yaml").write_text("base: {tasks: &x {copy: *x}}\n")
    return tmp_path


ARGUMENTS = [
    (["--config", "nowhere.yaml"], "nowhere.yaml: no such configuration"),
    (["--config", "corpus"], "corpus: this is a folder, give a YAML file"),
    (["--config", "binary.txt"], "binary.txt: this is not UTF-8"),
    (["--config", "list.yaml"], "list.yaml: a configuration is a list of 'key: value'"),
    (["--config", "broken.yaml"], "broken.yaml:3: this is not valid YAML"),
    (
        ["--config", "twice.yaml"],
        "twice.yaml:2: this is not valid YAML (key 'seed' is given twice)",
    ),
    (["--config", "date.yaml"], "date.yaml: this is not valid YAML (month must be in 1..12)"),
    (["--config", "itself.yaml"], "itself.yaml:1: this is not valid YAML (the alias *x is inside"),
    (["--confg", "x"], "unrecognized arguments: --confg"),
    (["steps"], "override 'steps': write it as key=value"),
    (["base.step=5"], "unknown key 'base.step', the nearest known one is 'base.steps'"),
    (["base=5"], "'base' is a group of settings"),
    (["base.steps=many"], "base.steps must be a valid integer, not many"),
    (["base.steps=0"], "base.steps must be greater than or equal to 1"),
    (["base.steps=" + "9" * 5000], "this is not valid YAML"),
    (["base.lr=.nan"], "base.lr must be a finite number"),
    (["base.timestep_mean=.inf"], "base.timestep_mean must be a finite number"),
    (["base.betas=[0.9]"], "base.betas must "),
    (["base.betas=[0.9, 1]"], "base.betas must be less than 1 in item 2"),
    (["base.tasks={copy: -1}"], "base.tasks must be greater than or equal to 0"),
    (["base.tasks={copy: 0}"], "base.tasks: give at least one task a share"),
    (["base.tasks={}"], "base.tasks: give at least one task a share"),
    (["base.tasks={recolor: 1}"], "no task 'recolor', the nearest is 'recolour'"),
    (["seed=-1"], "seed must be greater than or equal to 0"),
    (["seed=1" + "0" * 30], "seed must be less than"),
    (["threads=0"], "threads must be greater than or equal to 1"),
    (["model.axes_dims_rope=[4, 4, 4]"], "(4, 4, 4) that add up to its attention_head_dim (16)"),
    (["model.axes_dims_rope=[8, 8]"], "model.axes_dims_rope must "),
    (["model.axes_dims_rope=[5, 5, 6]"], "model.axes_dims_rope must be a multiple of 2 in item 1"),
    (["model.text_dim=34"], "model.text_dim must be a multiple of 4"),
    (["model.words=nowhere.txt"], "nowhere.txt: no such file"),
    (["model.words=binary.txt"], "binary.txt: this is not UTF-8"),
    (["codec.latent_channels=49"], "codec.latent_channels must be less than or equal to 48"),
    (["corpus.resolution=40"], "corpus.resolution must be a multiple of 16"),
    (["corpus.held_out=2"], "corpus.held_out=2: corpus has 2 scenes"),
    (["corpus.manifest=nowhere"], "nowhere/manifest.jsonl: no such manifest"),
    (["corpus.manifest=file"], "file/manifest.jsonl: no such manifest"),
    (["output=file"], "file: this is a file, give a folder"),
    (["output=file/run"], "file is a file, not a folder"),
    (["output="], "output must be a valid string"),
    (['output=""'], "the folder's name is empty"),
]


@pytest.mark.parametrize(("arguments", "told"), ARGUMENTS)
def test_wrong_settings(folder, refused, arguments, told):
    assert told in refused(main, [*SMALL, *arguments])


def last_picture(folder):
    return max((folder / "corpus").rglob("*.png"))


def without_task(folder):
    file = folder / "corpus" / "manifest.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[3]["provenance"] = {}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


CORPUS = [
    (lambda f: (f / "corpus" / "manifest.jsonl").write_text(""), "corpus holds no rows"),
    (lambda f: (f / "corpus" / "manifest.jsonl").write_text("{"), "manifest.jsonl:1: this line"),
    (without_task, "has no task in its provenance"),
    (lambda f: last_picture(f).unlink(), "no such image"),
    (lambda f: last_picture(f).write_text("text"), "this image cannot be read"),
]


@pytest.mark.parametrize(("damage", "told"), CORPUS)
def test_wrong_corpora(folder, refused, damage, told):
    damage(folder)
    assert told in refused(main, SMALL)


def test_pictures_of_another_size(folder, refused):
    assert "corpus.resolution is 64" in refused(main, [*SMALL, "corpus.resolution=64"])


def test_what_a_finished_run_left_is_safe(folder, refused):
    """Damaged or foreign checkpoints are named; kept pictures that are damaged are read again."""
    assert main(SMALL) == 0
    run = folder / "run"
    told = refused(main, [*SMALL, "model.num_layers=2"])
    assert told.startswith("error: run/checkpoint.pt: this checkpoint is damaged or of other sizes")
    checkpoint = (run / "checkpoint.pt").read_bytes()
    for content in (b"", checkpoint[: len(checkpoint) // 2]):
        (run / "checkpoint.pt").write_bytes(content)
        assert "run/checkpoint.pt: this checkpoint is damaged" in refused(main, SMALL)
    (run / "checkpoint.pt").write_bytes(checkpoint)
    pictures = (run / "pictures.pt").read_bytes()
    (run / "pictures.pt").write_bytes(pictures[: len(pictures) // 2])
    assert main(SMALL) == 0
    kept = torch.load(run / "pictures.pt", weights_only=True)["pictures"]
    assert kept.shape[1:] == (3, 32, 32)
    assert not list(run.glob(".*"))


def test_a_full_disk_leaves_the_earlier_base(folder, refused, monkeypatch):
    assert main(SMALL) == 0

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "run/base")

    monkeypatch.setattr("train.pretrain.model.FluxKontextPipeline.save_pretrained", full)
    (folder / "run" / "log.jsonl").unlink()  # the rest of what a run writes is the same again
    assert "the disk is full" in refused(main, SMALL)


def test_no_permission_is_told_before_the_work(folder, refused, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "run: no permission to write in" in refused(main, SMALL)
