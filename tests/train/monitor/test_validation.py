"""The validation loss: the same numbers whatever computes them; the best checkpoint; scores."""

import json

import pytest
import torch

from eval import rses
from regionroute.config.run import load_config
from regionroute.data.manifest import StyleSpec, load_manifest, write_manifest
from regionroute.errors import UserError
from train.engine.distributed import Ranks
from train.monitor.validation import Validation, choose_held_out
from train.step import pixel_weights

STYLES = [StyleSpec("pixel-art"), StyleSpec("line-art")]


def scores(runs, name):
    path = runs.output(name) / "scores.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_loss_depends_on_the_weights_alone(runs):
    """Not on the seed, the batch, the optimizer, or the noise that training draws."""
    rest = ["optim.lr=1e-30", "train.validate_every=2", "train.validation_samples=3"]
    assert runs("one", *rest) == 0
    others = ["flow.timesteps=logit_normal", "flow.mask_weight=3", "train.global_batch=2"]
    assert runs("other", *rest, *others, "train.zero_stage=1") == 0
    rows = scores(runs, "one")
    assert [row.pop("step") for row in rows] == [2, 4, 6]
    assert rows[0] == rows[1] == rows[2]
    assert {"val_flow", "val_focus", "val_cover", "val_total", "val_iou"} <= rows[0].keys()
    for row in scores(runs, "other"):
        del row["step"]
        assert row == rows[0]


def test_total_and_levels_add_up(runs):
    assert runs("run", "train.validate_every=6", "train.validation_levels=2") == 0
    (row,) = scores(runs, "run")
    levels = [row[f"val_flow@{level}"] for level in (0.25, 0.75)]
    assert sum(levels) / 2 == pytest.approx(row["val_flow"])
    total = row["val_flow"] + 0.1 * row["val_focus"] + 0.2 * row["val_cover"]
    assert row["val_total"] == pytest.approx(total)


class Shares:
    """What two processes would each compute, one after the other, put together as they would."""

    def __init__(self, monkeypatch):
        self.rows = []
        monkeypatch.setattr("train.engine.distributed.gather_rows", self.gather)

    def gather(self, rows, ranks):
        self.rows.append(rows.double())
        filled = self.rows + [rows.double()] * (ranks.world - len(self.rows))
        return torch.stack(filled)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_processes_gives_the_same_numbers(monkeypatch, count):
    config = load_config(None, ["train.validation_levels=2"])
    validation = Validation(config, [f"sample {i}" for i in range(count)], None)

    def losses(self, model, place, ranks):
        return torch.full((2, 8), float(place + 1)) + torch.tensor([[0.0], [0.5]])

    monkeypatch.setattr(Validation, "_losses", losses)

    class Model:
        def eval(self):
            """Nothing to switch."""

        train = eval

    def by(world):
        with monkeypatch.context() as patch:
            Shares(patch)
            ranks = [Ranks(rank, world, torch.device("cpu")) for rank in range(world)]
            return [validation.run(Model(), one) for one in ranks][-1]

    assert by(1) == by(2) == by(3)
    assert by(1)["val_flow"] == pytest.approx(sum(range(1, count + 1)) / count + 0.25)
    assert by(1)["val_flow@0.75"] - by(1)["val_flow@0.25"] == pytest.approx(0.5)


def test_the_best_checkpoint_is_kept_beside_the_newest(runs, monkeypatch, capsys):
    losses = iter([0.5, 0.2, 0.4, 0.3, 0.6, 0.1])

    def run(self, model, ranks):
        return {"val_total": next(losses)}

    monkeypatch.setattr(Validation, "run", run)
    rest = ["train.validate_every=1", "train.save_every=1", "train.keep=1"]
    assert runs("run", *rest, "train.steps=5") == 0
    assert runs.checkpoints("run") == ["step-000002", "step-000005"]
    said = capsys.readouterr().out
    assert "lowest validation loss, 0.2000: " in said
    assert "step-000002/experts" in said
    facts = json.loads((runs.output("run") / "run.json").read_text())
    assert (facts["best_step"], facts["best_validation_loss"]) == (2, 0.2)
    assert runs("run", *rest) == 0  # which loss was best survives the stop
    assert runs.checkpoints("run") == ["step-000006"]
    assert [row["val_total"] for row in scores(runs, "run")] == [0.5, 0.2, 0.4, 0.3, 0.6, 0.1]


def test_patience_ends_a_run_that_no_longer_improves(runs, monkeypatch, capsys):
    losses = iter([0.5, 0.2, 0.4, 0.3])
    monkeypatch.setattr(Validation, "run", lambda self, model, ranks: {"val_total": next(losses)})
    rest = ["train.validate_every=1", "train.save_every=100", "train.patience=2"]
    assert runs("run", *rest) == 0
    assert runs.checkpoints("run") == ["step-000002", "step-000004"]
    assert "stopped at step 4: the best was step 2" in capsys.readouterr().out
    facts = json.loads((runs.output("run") / "run.json").read_text())
    assert (facts["finished"], facts["steps"]) == (True, 4)
    assert runs("run", *rest) == 0  # nothing is left to train, and no loss to draw
    assert runs.checkpoints("run") == ["step-000002", "step-000004"]


def test_patience_needs_validation():
    with pytest.raises(UserError, match=r"train.*have validate_every above 0"):
        load_config(None, ["train.patience=2"])


def test_levels_can_be_named_and_whole_targets_count_inside_the_mask():
    config = load_config(None, ["train.validation_levels=[1.0,0.5]", "data.whole_targets=true"])
    validation = Validation(config, ["sample"], None)
    assert validation.levels == [1.0, 0.5]
    weights = pixel_weights(torch.eye(4)[None, None], validation._plain.flow.mask_weight)
    torch.testing.assert_close(weights, 4 * torch.eye(4)[None, None], atol=1e-4, rtol=0)


def test_a_best_step_is_saved_when_it_comes_and_may_be_forgotten(runs, monkeypatch):
    monkeypatch.setattr(Validation, "run", lambda self, model, ranks: {"val_total": 1.0})
    rest = ["train.validate_every=2", "train.save_every=100", "train.keep=1"]
    assert runs("kept", *rest) == 0
    assert runs.checkpoints("kept") == ["step-000002", "step-000006"]
    assert runs("forgotten", *rest, "train.keep_best=false") == 0
    assert runs.checkpoints("forgotten") == ["step-000006"]


def held_out(folder, *overrides):
    config = load_config(None, [f"data.manifest={folder}", "train.validate_every=1", *overrides])
    return [sample.id for sample in choose_held_out(load_manifest(folder), config, STYLES)]


def test_samples_are_spread_over_the_split(tiny_manifest):
    assert held_out(tiny_manifest) == ["pair-3"]
    assert held_out(tiny_manifest, "train.validate_every=0") == []
    few = ["data.split=val", "train.validation_split=train", "train.validation_samples=2"]
    assert held_out(tiny_manifest, *few) == ["pair-0", "pair-1"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.validation_split=train"], "is the split that is trained on"),
        (["train.validation_split=nowhere"], "no sample of a trained style in split nowhere"),
        (["data.split=val"], "no sample of a trained style in split val or test: set train.valid"),
    ],
)
def test_without_held_out_pairs_there_is_one_sentence(tiny_manifest, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        held_out(tiny_manifest, *overrides)


def test_previews_are_scored(runs):
    assert runs("run", "train.preview_every=3") == 0
    rows = scores(runs, "run")
    assert [row["step"] for row in rows] == [3, 6]
    assert all(row["preview_error_left"] > 0 for row in rows)
    assert all(row["preview_background_error"] > 0 for row in rows)


def test_previews_can_be_given_to_the_regional_style_editing_score(runs):
    assert runs("run", "train.preview_every=3") == 0
    previews, out = runs.output("run") / "previews", runs.output("scores")
    edits = [f"--edits={step}={previews / f'step-{step:06d}'}" for step in (3, 6)]
    assert rses.main(["--manifest", str(previews), "--split=all", *edits, "--out", str(out)]) == 0

    means = json.loads((out / "summary.json").read_text())["methods"]
    for row in scores(runs, "run"):
        found = means[str(row["step"])]["slices"]["all"]
        # The logged numbers are of the edits before they were rounded to eight bits.
        for name, logged in (("in_mask_ratio", "error_left"), ("mse_bg", "background_error")):
            assert found[name]["mean"] == pytest.approx(row[f"preview_{logged}"], rel=0.02)


def test_a_continued_run_takes_later_scores_back(runs, tiny_manifest):
    rest = ["train.validate_every=1", "train.save_every=2"]
    assert runs("run", *rest, "train.steps=2") == 0
    with (runs.output("run") / "scores.jsonl").open("a") as file:
        file.write('{"step": 3, "val_total": 1}\n')
    assert runs("run", *rest, "train.steps=4") == 0
    assert [row["step"] for row in scores(runs, "run")] == [1, 2, 3, 4]
    assert "val_flow" in scores(runs, "run")[2]
    manifest = load_manifest(tiny_manifest)
    write_manifest(tiny_manifest, manifest.samples[:3])  # without the held-out one
    assert runs("other", *rest) == 2
