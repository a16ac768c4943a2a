"""`regionroute experts push`: a dry run lists the experts' own files, with a card that says all."""

import json

import pytest

from regionroute.cli.main import main

FILE = "lines/pytorch_lora_weights.safetensors"


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


def rescaled(folder):
    path = folder / "experts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rank": 3, "alpha": 5}))


def replaced_by_a_folder(folder):
    (folder / FILE).unlink()
    (folder / FILE).mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / FILE).unlink(),
            "lines/pytorch_lora_weights.safetensors: no such",
        ),
        (replaced_by_a_folder, "lines/pytorch_lora_weights.safetensors: this is a folder"),
        (lambda folder: (folder / FILE).write_bytes(b"x" * 99), "damaged"),
        (rescaled, "rank and alpha are not the registry's"),
    ],
    ids=["missing", "folder", "damaged", "rank"],
)
def test_an_incomplete_folder_is_not_pushed(licensed, capsys, monkeypatch, damage, message):
    import regionroute.hub

    monkeypatch.setattr(regionroute.hub, "push", lambda upload: pytest.fail("it was sent"))
    damage(licensed)
    for options in ([], ["--dry-run"]):
        assert main(["experts", "push", str(licensed), "--to-hub", "me/tiny", *options]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_file_whose_name_has_a_patterns_characters_is_pushed(licensed, capsys):
    (licensed / "lines").rename(licensed / "[1]")
    path = licensed / "experts.json"
    path.write_text(path.read_text().replace("lines/", "./[1]/"))
    assert main(["experts", "push", str(licensed), "--to-hub", "me/tiny", "--dry-run"]) == 0
    assert "  [1]/pytorch_lora_weights.safetensors" in capsys.readouterr().out
