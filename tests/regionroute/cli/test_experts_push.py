"""`regionroute experts push`: a dry run lists the experts' own files, with a card that says all."""

import json

import pytest

from regionroute.cli.main import main


@pytest.fixture
def licensed(tiny_experts, tmp_path):
    import shutil

    folder = tmp_path / "experts"
    shutil.copytree(tiny_experts, folder)
    assert main(["experts", "card", str(folder), "--license", "cc0-1.0"]) == 0
    return folder


def test_a_dry_run_lists_and_sends_nothing(licensed, capsys, monkeypatch):
    import regionroute.hub

    monkeypatch.setattr(regionroute.hub, "push", lambda upload: pytest.fail("it was sent"))
    (licensed / "notes.txt").write_text("private")
    capsys.readouterr()
    assert main(["experts", "push", str(licensed), "--to-hub", "me/tiny", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "https://huggingface.co/me/tiny (private" in said
    assert "pixel-art/pytorch_lora_weights.safetensors" in said
    assert "experts.json" in said
    assert "README.md" in said
    assert "notes.txt" not in said


def test_without_a_licence_nothing_is_pushed(tiny_experts, tmp_path, capsys):
    import shutil

    folder = tmp_path / "experts"
    shutil.copytree(tiny_experts, folder)
    assert main(["experts", "push", str(folder), "--to-hub", "me/tiny", "--dry-run"]) == 2
    assert "--license NAME" in capsys.readouterr().err


def test_the_card_has_use_limits_and_slices(licensed, tmp_path):
    row = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    summary = {
        "metrics": {"leak": {"label": "Leak"}},
        "methods": {
            "floor": {"slices": {"all": {"leak": row}}},
            "ours": {
                "slices": {"all": {"leak": row}, "size:small": {"leak": {**row, "mean": 0.7}}}
            },
        },
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    command = ["experts", "card", str(licensed), "--scores", str(tmp_path / "summary.json")]
    assert main(command) == 0
    card = (licensed / "README.md").read_text()
    assert "## Intended use" in card
    assert "## Limits" in card
    assert "| size:small | 0.7 (0.4 to 0.6) |" in card
    assert card.startswith("---\nlicense: cc0-1.0\n")
