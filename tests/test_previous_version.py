"""Files of the version before still load; tests/data/previous/README.md describes them."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from regionroute.adapters import load_experts, read_registry
from regionroute.adapters.files.lora_file import read_lora_file
from regionroute.config.run import load_config
from regionroute.data.manifest import load_manifest
from regionroute.editing.expert_settings import stored_routing
from regionroute.models.loading import load_base
from regionroute.models.tiny import build_tiny
from train.data.encode import identity

PREVIOUS = Path(__file__).parent / "data" / "previous"
STYLES = ["cyberpunk", "pixel-art"]
LOSSES = ("flow", "focus", "cover", "total", "lr", "grad_norm", "supervision_scale")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy in which the program stands where it stood then: its settings hold relative paths."""
    shutil.copytree(PREVIOUS, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    build_tiny(tmp_path / "out" / "tiny")
    return tmp_path / "out"


def test_settings_under_their_old_names(capsys):
    files = {"old.yaml": set(), "run/config.yaml": {"flow.perceptual.vgg"}}
    for name, more in files.items():
        path = PREVIOUS / name
        config = load_config(path)
        assert (config.train.loss_spike, config.routing.threshold) == (50.0, 0.45)
        supervision = config.supervision
        assert (supervision.gradient_norms_every, supervision.max_gradient_ratio) == (2, 0.5)
        notes = capsys.readouterr().err.splitlines()
        old = {note.split(" is now called ")[0].split()[-1] for note in notes}
        assert old == more | {
            "supervision.shares_every", "supervision.max_share", "train.explosion",
        }  # fmt: skip


def test_a_manifest():
    manifest = load_manifest(PREVIOUS / "labels")
    assert len(manifest.samples) == 6
    assert {sample.regions[0].style for sample in manifest.samples} == set(STYLES)
    for sample in manifest.samples:
        assert manifest.context(sample).shape == manifest.target(sample).shape == (3, 64, 64)
        assert 0 < manifest.masks(sample).mean() < 0.5
        assert sample.prompt[slice(*sample.regions[0].style_span)] == sample.regions[0].style


def test_label_records_are_continued(folder, capsys):
    from regionroute.cli.label import main

    records = {path: path.stat().st_mtime_ns for path in (folder / "labels/.cache").iterdir()}
    assert len(records) == 3
    rows = (folder / "labels/manifest.jsonl").read_text().splitlines()
    arguments = ["--labels", "out/photos/labels.jsonl", "--styles", "scenes", "--workers", "1"]
    arguments += ["--only", ",".join(reversed(STYLES)), "--size", "64", "--out", "out/labels"]
    assert main([*arguments, "--min-structure", "-1", "--min-strength", "0"]) == 0
    assert "6 samples of 3 photos" in capsys.readouterr().out
    again = (folder / "labels/manifest.jsonl").read_text().splitlines()
    assert [json.loads(row)["id"] for row in again] == [json.loads(row)["id"] for row in rows]
    for row, before in zip(again, rows, strict=True):
        kept = {key: json.loads(row)[key] for key in ("context", "target", "regions", "prompt")}
        assert kept.items() <= json.loads(before).items()


def test_experts(folder):
    registry = read_registry(folder / "run/experts")
    assert [style.name for style in registry.styles] == STYLES
    routing = stored_routing(registry.extra, folder / "run/experts")
    assert (routing.threshold, routing.branch) == (0.45, "base")
    backbone = load_base(str(folder / "tiny"))
    load_experts(folder / "run/experts", backbone)
    weights, _ = read_lora_file(folder / "run/experts" / registry.experts[0].file)
    loaded = [
        p.detach() for name, p in backbone.transformer.named_parameters() if name.endswith("lora_B")
    ]
    total = sum(float(w[0].double().abs().sum()) for w in loaded)  # of the first expert
    wanted = sum(float(w.double().abs().sum()) for key, w in weights.items() if "lora_B" in key)
    assert total == pytest.approx(wanted, rel=1e-6)
    assert total > 0


def test_a_run_resumes_from_its_checkpoint_and_its_cache(folder, capsys):
    from train.run import main

    state = folder / "run/checkpoints/step-000003/trainer.json"
    facts = json.loads(state.read_text())
    # Random weights differ in their last bits between processors.
    facts["facts"]["base_weights"] = identity(load_base(str(folder / "tiny")).transformer)
    state.write_text(json.dumps(facts))
    before = [json.loads(line) for line in (folder / "run/losses.jsonl").read_text().splitlines()]
    assert main(["--config", "out/run/config.yaml"]) == 0
    said = capsys.readouterr().out
    assert "10 entries cached, 0 to encode" in said
    assert "resuming from out/run/checkpoints/step-000003" in said
    assert "has changed" not in said
    rows = [json.loads(line) for line in (folder / "run/losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row, old in zip(rows[3:], before[3:], strict=True):
        assert {name: row[name] for name in LOSSES if name in old} == pytest.approx(
            {name: old[name] for name in LOSSES if name in old}, rel=1e-5
        )
    experts = [
        read_lora_file(path / "experts/cyberpunk/pytorch_lora_weights.safetensors")[0]
        for path in (PREVIOUS / "run", folder / "run")
    ]
    for key, value in experts[0].items():
        assert torch.allclose(value, experts[1][key], atol=1e-5), key
