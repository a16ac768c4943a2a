"""`regionroute doctor` on broken machines: every finding is a line, none stops the report.

The command takes no input but the machine itself, so wrong arguments are few and what is tried here
are environments.
"""

import json
import shutil

import pytest
import torch

from regionroute.cli import doctor
from regionroute.cli.main import main as regionroute
from regionroute.models import embedded as nano


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["photo.png"], "unrecognized arguments: photo.png"),
        (["--base", "nano"], "unrecognized arguments: --base nano"),
        (["--fix"], "unrecognized arguments: --fix"),
        (["-v"], "unrecognized arguments: -v"),
    ],
)
def test_wrong_arguments(refused, arguments, told):
    assert told in refused(regionroute, ["doctor", *arguments])


@pytest.fixture
def report(monkeypatch, capsys):
    """Runs the doctor with one check and the one after it: (exit code, the lines)."""

    def run(check):
        after = doctor.Finding("ok", "after", "the report went on")
        monkeypatch.setattr(doctor, "CHECKS", (check, lambda: iter([after])))
        code = regionroute(["doctor"])
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        assert "after" in said.out
        return code, said.out

    return run


def damaged(file, content):
    def damage(base):
        if content is None:
            shutil.rmtree(base / file) if (base / file).is_dir() else (base / file).unlink()
        else:
            (base / file).write_bytes(content)

    return damage


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damaged("model_index.json", None), "no model_index.json"),
        (damaged("model_index.json", b"{"), "model_index.json: not valid JSON"),
        (damaged("transformer", None), "transformer/config.json is missing"),
        (damaged("transformer/config.json", b"[]"), "must hold a JSON object"),
        (damaged(WEIGHTS, None), "transformer has no weights"),
        (damaged(WEIGHTS, b""), "its files are damaged"),
        (damaged(WEIGHTS, b"text" * 99), "its files are damaged"),
        (damaged("tokenizer_2", None), "tokenizer_2 has no"),
        (damaged("regionroute.json", json.dumps({"steps": 0}).encode()), "must be a positive"),
    ],
)
def test_a_damaged_embedded_base(report, tiny_base, tmp_path, monkeypatch, damage, told):
    base = shutil.copytree(tiny_base, tmp_path / "nano")
    damage(base)
    monkeypatch.setattr(nano, "nano_folder", lambda name: base)
    code, said = report(doctor.check_base)
    assert code == 1
    assert "bad   base nano" in said
    assert told in said


def test_a_library_that_breaks_while_it_loads(report, tmp_path, monkeypatch):
    (tmp_path / "broken_binary.py").write_text("raise SystemError('bad magic number')")
    monkeypatch.syspath_prepend(tmp_path)
    code, said = report(lambda: doctor.check_imports(("broken_binary",)))
    assert code == 1
    assert "bad   import broken_binary" in said
    assert "SystemError: bad magic number" in said


def test_a_driver_that_breaks_when_it_is_asked(report, monkeypatch):
    def broken():
        raise RuntimeError("CUDA driver version is insufficient\nsee above")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    code, said = report(doctor.check_devices)
    assert code == 1
    assert "check devices" in said
    assert "cannot run: RuntimeError: CUDA driver version is insufficient\n" in said


def test_weights_that_are_not_there_are_a_note(report, tmp_path, monkeypatch):
    monkeypatch.setenv(doctor.LPIPS_VARIABLE, "no/such\nfile" * 100)
    code, said = report(doctor.check_weights)
    assert code == 0
    assert "note  LPIPS weights" in said


def test_a_folder_that_was_removed_below_us(report, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    _, said = report(doctor.check_disk)
    assert "disk" in said


def test_nothing_on_the_path(report, monkeypatch):
    monkeypatch.setenv("PATH", "")
    code, said = report(doctor.check_training)
    assert code == 0
    assert "note  deepspeed command" in said
