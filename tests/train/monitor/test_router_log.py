"""What is told of routers and shared experts in training."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regionroute.adapters import RouteContext, SimilarityRouter, inject, read_registry
from train.monitor.logs import Reporter

EXPERTS = 2
STAGES = pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])


def learned(*args, generator, shared_rank, router):
    """`inject`, with a gate in every layer that tells the two styles apart at once."""

    def gate():
        made = SimilarityRouter(EXPERTS, EXPERTS, 1, normalize=False, generator=generator)
        torch.nn.init.eye_(made.gate.weight)
        return made

    assert router is None
    return inject(*args, router=gate, generator=generator, shared_rank=shared_rank)


def by_style(expert_ids, style_emb):
    """A route whose style embeddings are the styles' numbers, one hot."""
    return RouteContext(style_emb=F.one_hot(expert_ids, EXPERTS).float())


@STAGES
def test_a_learned_router_is_logged(runs, monkeypatch, stage):
    monkeypatch.setattr("train.prepare.inject", learned)
    monkeypatch.setattr("train.step.RouteContext", by_style)
    rest = [f"train.zero_stage={stage}", "train.gradient_checkpointing=true"]
    assert runs("run", "train.accumulation=2", *rest) == 0
    rows = runs.losses("run")
    measured = ["entropy" in row for row in rows]
    assert measured == [True, True, False, True, False, True]
    for row in (row for row in rows if "entropy" in row):
        assert 0 <= row["entropy"] <= 1
        assert row.get("overlap_within", 1) == 1  # one-hot styles: each has its own expert
        assert row.get("overlap_between", 0) == 0
    assert any("overlap_between" in row for row in rows)
    lines = (runs.output("run") / "router.jsonl").read_text().splitlines()
    details = [json.loads(line) for line in lines]
    assert [line["step"] for line in details] == [1, 2, 4, 6]
    assert len(details[0]["experts"]) == len(details[0]["entropy"]) == 11
    assert all(sum(shares) == pytest.approx(1) for shares in details[0]["experts"].values())
    board = EventAccumulator(str(runs.output("run") / "tb")).Reload()
    tags = board.Tags()
    assert {"router/entropy", "router_entropy/transformer_blocks.0.attn.to_q"} <= {*tags["scalars"]}
    assert "router/experts" in tags["images"]
    registry = read_registry(runs.output("run") / "experts")
    assert registry.learned
    gates = load_file(runs.output("run") / "experts" / registry.router.file)
    assert any(not torch.equal(gate, torch.eye(EXPERTS)) for gate in gates.values())


def test_without_a_learned_router_nothing_is_logged(runs):
    assert runs("run", "train.steps=2") == 0
    assert all("entropy" not in row for row in runs.losses("run"))
    assert not (runs.output("run") / "router.jsonl").exists()


@STAGES
def test_a_shared_expert_is_trained_saved_and_restored(runs, capsys, stage):
    rest = ["experts.license=cc0-1.0", "train.save_every=4", f"train.zero_stage={stage}"]
    rest.append("experts.shared_rank=3")
    assert runs("whole", *rest) == 0
    assert runs("halves", *rest, "train.steps=4") == 0
    assert runs("halves", *rest) == 0
    folders = [runs.output(name) / "experts" for name in ("whole", "halves")]
    whole, halves = (load_file(folder / "router.safetensors") for folder in folders)
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[key], halves[key]) for key in whole)
    assert any(x.abs().max() > 0 for key, x in whole.items() if key.endswith("shared_B"))
    registry = read_registry(folders[0])
    assert registry.shared_rank == 3
    assert (registry.extra["steps"], registry.extra["data"]["split"]) == (6, "train")
    card = (folders[0] / "README.md").read_text()
    assert "license: cc0-1.0" in card
    assert "| steps | 6 |" in card
    assert "| flow |" in card
    capsys.readouterr()
    assert runs("halves", *rest, "experts.shared_rank=2") == 2
    assert "experts.shared_rank = 3, now it is 2" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "float8"])
def test_a_shared_expert_that_was_not_restored_is_noticed(runs, capsys, dtype):
    rest = ["experts.shared_rank=3", "train.save_every=2", f"experts.dtype={dtype}"]
    assert runs("run", *rest, "train.steps=1") == 0
    assert runs("run", *rest, "train.steps=2") == 0  # all as it was
    path = Path(runs.output("run")) / "checkpoints/step-000002/experts/router.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (path.parents[1] / "checksums.json").unlink()  # as in checkpoints of earlier versions
    capsys.readouterr()
    assert runs("run", *rest, "train.steps=3") == 2
    assert "of all was not restored" in capsys.readouterr().err


def test_a_continued_run_takes_later_rows_back(tmp_path):
    options = {"steps": 9, "samples": 1, "log_every": 1, "main": True}
    first = Reporter(tmp_path, start=0, **options)
    for step in (1, 2, 3):
        first.router(step, ["a"], torch.tensor([[0.5, 0.5]]), torch.tensor([1.0]))
    first.close()
    again = Reporter(tmp_path, start=2, **options)
    again.router(3, ["a"], torch.tensor([[1.0, 0.0]]), torch.tensor([0.0]))
    again.close()
    rows = [json.loads(line) for line in (tmp_path / "router.jsonl").read_text().splitlines()]
    assert [(row["step"], row["entropy"]["a"]) for row in rows] == [(1, 1.0), (2, 1.0), (3, 0.0)]
