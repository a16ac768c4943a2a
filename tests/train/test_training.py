"""The command itself, in this process, on the tiny base."""

import json
import os
import re
import signal

import pytest
import torch

from regionroute.adapters import read_registry
from regionroute.config.run import load_config
from regionroute.data.images import read_image
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditRequest
from regionroute.models.loading import load_base
from train.monitor.logs import Reporter, rewind

STEPS = 6


def stop_at(monkeypatch, step, number=signal.SIGTERM):
    """Has this process receive a signal while it reports a step."""
    original = Reporter.step

    def report(self, now, row):
        if now == step:
            os.kill(os.getpid(), number)
        original(self, now, row)

    monkeypatch.setattr(Reporter, "step", report)


def test_a_run_leaves_experts_losses_previews_and_facts(runs, tiny_base, tiny_manifest):
    assert runs("run", "train.preview_every=3", "train.save_every=2", "train.keep=2") == 0
    output = runs.output("run")
    rows = runs.losses("run")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all({"flow", "focus", "cover", "total", "lr", "grad_norm"} <= row.keys() for row in rows)
    assert ["iou" in row for row in rows] == [True, True, False, True, False, True]
    assert runs.checkpoints("run") == ["step-000004", "step-000006"]
    assert (output / "previews" / "step-000003.png").is_file()
    assert read_image(output / "previews" / "step-000006.png").shape[0] == 3
    assert list((output / "tb").iterdir())
    assert load_config(str(output / "config.yaml"), []).train.steps == STEPS
    facts = json.loads((output / "run.json").read_text())
    assert facts["finished"]
    assert facts["steps"] == STEPS
    assert facts["styles"] == ["line-art", "pixel-art"]
    assert facts["steps_per_second"] > 0

    registry = read_registry(output / "experts")
    assert [style.name for style in registry.styles] == ["line-art", "pixel-art"]
    editor = Editor(load_base(str(tiny_base)), output / "experts")
    picture = read_image(tiny_manifest / "0.context.png")
    result = editor.edit(picture, EditRequest("square", "pixel-art"), want_map=True)
    assert result.image.shape == picture.shape
    assert result.region_map.shape == (8, 8)
    assert any(weight.abs().max() > 0 for weight in runs.experts("run").values())


def test_accumulation_changes_no_loss(runs):
    assert runs("one") == 0
    assert runs("two", "train.accumulation=2") == 0
    assert runs.difference("one", "two") < 1e-5
    assert runs("four", "train.accumulation=4", "train.gradient_checkpointing=true") == 0
    assert runs.difference("one", "four") < 1e-5


def test_a_stopped_run_continues_bit_for_bit(runs, monkeypatch, capsys):
    rest = ["optim.schedule=cosine", "experts.dropout=0.1", "optim.warmup=2"]
    assert runs("whole", *rest) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert runs("halves", *rest) == 143
    assert "stopped at step 4" in capsys.readouterr().out  # the signal is heard a step later
    assert runs.checkpoints("halves") == ["step-000004"]
    with (runs.output("halves") / "losses.jsonl").open("a") as file:
        file.write('{"step": 5, "flow": 9}\n{"step": 6, "fl')  # as a killed process leaves it
    assert runs("halves", *rest) == 0
    assert runs.difference("whole", "halves") == 0
    whole, halves = runs.experts("whole"), runs.experts("halves")
    assert all(torch.equal(whole[key], halves[key]) for key in whole)
    assert runs("halves", *rest) == 0  # nothing left to do
    assert len(runs.losses("halves")) == STEPS


def test_interrupting_exits_with_130_and_the_learning_rate_may_change(runs, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 1, signal.SIGINT)
        assert runs("run") == 130
    assert runs("run", "optim.lr=0.005") == 0
    assert [row["lr"] for row in runs.losses("run")] == [0.01] * 2 + [0.005] * 4


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_stage_resumes_bit_for_bit(runs, monkeypatch, stage, dtype):
    rest = [f"train.zero_stage={stage}", f"base.dtype={dtype}", "train.accumulation=2"]
    rest += ["train.gradient_checkpointing=true"]
    assert runs("plain", f"base.dtype={dtype}") == 0
    assert runs("whole", *rest) == 0
    assert runs.difference("plain", "whole") < (1e-5 if dtype == "float32" else 1e-2)
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert runs("halves", *rest) == 143
    assert runs("halves", *rest) == 0
    assert runs.difference("whole", "halves") == 0


def test_a_loss_that_explodes_stops_the_run_and_keeps_the_checkpoint(runs, capsys):
    assert runs("run", "train.steps=2", "train.save_every=1") == 0
    capsys.readouterr()
    assert runs("run", "optim.lr=1e30") == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert "is not finite at step" in error
    assert "step-000002 is intact" in error
    assert "Traceback" not in error
    bad = json.loads((runs.output("run") / "bad_batch.json").read_text())
    assert bad["step"] > 2
    assert len(bad["samples"]) == 4
    assert {sample["id"] for sample in bad["samples"]} <= {"pair-0", "pair-1", "pair-2"}
    assert runs.checkpoints("run") == ["step-000001", "step-000002"]
    assert runs("run") == 0  # continues from the intact checkpoint
    assert runs("clean") == 0
    assert runs.difference("run", "clean") == 0


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("experts.rank=2", "experts.rank = 4, now it is 2"),
        ("experts.styles=[pixel-art]", "experts.styles = "),
        ("experts.targets=[to_q]", "experts.targets = "),
        ("train.zero_stage=1", "train.zero_stage = 0, now it is 1"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(runs, capsys, override, sentence):
    assert runs("run", "train.steps=1") == 0
    capsys.readouterr()
    assert runs("run", override) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "start over with train.resume=false" in error


def test_starting_over_keeps_the_earlier_checkpoints_aside(runs, capsys):
    assert runs("run", "train.steps=2") == 0
    assert runs("run", "train.resume=false", "experts.rank=2", "train.steps=1") == 0
    assert "starting over" in capsys.readouterr().out
    assert runs.checkpoints("run") == ["step-000001"]
    (aside,) = runs.output("run").glob("checkpoints-before-*")
    assert (aside / "step-000002" / "trainer.json").is_file()
    assert len(runs.losses("run")) == 1


def test_a_damaged_checkpoint_is_named(runs, capsys):
    assert runs("run", "train.steps=2", "train.save_every=1") == 0
    folder = runs.output("run") / "checkpoints" / "step-000002"
    (state,) = (folder / "engine").glob("*model_states.pt")
    state.write_bytes(state.read_bytes()[:1000])
    capsys.readouterr()
    assert runs("run") == 2
    assert "step-000002: this checkpoint is damaged" in capsys.readouterr().err


def test_a_checkpoint_without_some_adapters_is_noticed(runs, capsys):
    assert runs("run", "train.steps=2") == 0
    (path,) = runs.output("run").glob("checkpoints/step-000002/engine/*model_states.pt")
    state = torch.load(path, weights_only=False)
    del state["module"][next(key for key in state["module"] if key.endswith("lora_B"))]
    torch.save(state, path)
    (path.parents[1] / "checksums.json").unlink()  # as in checkpoints of earlier versions
    capsys.readouterr()
    assert runs("run") == 2
    assert "was not restored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.manifest=nowhere"], "no such manifest"),
        (["base.name=nowhere"], "base 'nowhere'"),
        (["experts.styles=[crayon]"], "no style 'crayon'"),
        (["data.split=holdout"], "split 'holdout'"),
        (["base.max_text_length=5"], "sample 'pair-0': .*beyond the 5 tokens"),
        (["base.dtype=float16"], "use bfloat16 or float32"),
        (["experts.targets=[to_z]"], "no linear layer is named"),
        (["supervision.layers=[double.9]"], 'no block "double.9"'),
        (["train.deepspeed=nowhere.json"], "nowhere.json: no such file"),
        (["train.stepz=3"], "unknown key 'train.stepz'"),
        (["train.steps=many"], "train.steps"),
    ],
)
def test_a_users_mistake_is_one_sentence(runs, capsys, overrides, sentence):
    assert runs("run", *overrides) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(sentence, error)
    assert not (runs.output("run") / "checkpoints").exists()


def test_a_damaged_picture_is_named_before_training(runs, tiny_manifest, capsys):
    (tiny_manifest / "1.target.png").write_bytes(b"no picture")
    assert runs("run") == 2
    assert "1.target.png: this image cannot be read" in capsys.readouterr().err


def test_the_output_may_not_be_a_file(runs, capsys):
    runs.output("run").write_text("")
    assert runs("run") == 2
    assert "this is a file, give a folder" in capsys.readouterr().err


def test_overfitting_two_pictures_moves_attention_into_the_mask(runs, tiny_manifest):
    """Spec §10, 10."""
    few = ["experts.styles=[pixel-art]", "train.steps=120", "train.log_every=20"]
    assert runs("run", *few, "experts.rank=8", "optim.lr=0.02") == 0
    rows = runs.losses("run")
    shares = [row["share"] for row in rows if "share" in row]
    assert shares[-1] >= 2 * shares[0]
    early = sum(row["flow"] for row in rows[:20]) / 20
    late = sum(row["flow"] for row in rows[-20:]) / 20
    assert late < 0.9 * early


def test_rewinding_drops_later_rows(tmp_path):
    path = tmp_path / "losses.jsonl"
    rewind(path, 3)
    assert path.read_text() == ""
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 6)) + '{"step"')
    rewind(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
