"""`regionroute doctor` tells what works, and fails when something necessary does not."""

import huggingface_hub
import pytest
import torch

from eval.encoders import features
from regionroute.cli import doctor
from regionroute.cli.doctor import Finding, main
from regionroute.errors import UserError
from regionroute.models import embedded as nano


@pytest.mark.parametrize(
    ("requirement", "state", "told"),
    [
        ("torch>=2", "ok", torch.__version__.split("+")[0]),
        ("torch<2", "bad", "but <2 is needed"),
        ("no-such-package-here>=1", "bad", "not installed, >=1 is needed"),
    ],
)
def test_packages(requirement, state, told):
    (finding,) = doctor.check_packages([requirement])
    assert finding.state == state
    assert told in finding.detail


def test_this_environment_has_every_package():
    findings = list(doctor.check_packages())
    assert {"torch", "deepspeed", "pydantic"} <= {finding.what for finding in findings}
    assert "pytest" not in {finding.what for finding in findings}  # an extra, not necessary
    assert {finding.state for finding in findings} == {"ok"}


def test_imports():
    good, bad = doctor.check_imports(("json", "no_such_module_here"))
    assert good == Finding("ok", "import json", "works")
    assert bad.state == "bad"
    assert "ModuleNotFoundError" in bad.detail


def test_devices_and_training():
    findings = {finding.what: finding for finding in doctor.check_devices()}
    assert f"torch uses {torch.get_num_threads()} threads" in findings["cpu"].detail
    assert ("gpu 0" in findings) == torch.cuda.is_available()
    findings = {finding.what: finding for finding in doctor.check_training()}
    assert findings["gloo"].state == "ok"
    assert findings["deepspeed runs on"].state == "ok"


def test_attention_kernels_and_why_not():
    findings = {finding.what: finding for finding in doctor.check_attention()}
    assert findings["attention dense"] == Finding("ok", "attention dense", "works")
    if not torch.cuda.is_available():
        assert findings["attention cpu"].state == "ok"
        assert "needs a CUDA GPU" in findings["attention flash"].detail
    assert "auto" not in str(findings.keys())


def test_the_base_is_loaded(tiny_base):
    (finding,) = doctor.check_base(str(tiny_base))
    assert finding.state == "ok"
    assert "fingerprint" in finding.detail


def test_a_base_that_is_absent_is_told(monkeypatch):
    def absent(name):
        raise UserError("the embedded base nano has no files")

    monkeypatch.setattr(nano, "nano_folder", absent)
    (finding,) = doctor.check_base()
    assert finding == Finding("bad", "base nano", "the embedded base nano has no files")


def test_weights_are_looked_for_where_the_score_looks(tmp_path, monkeypatch):
    assert features.LPIPS_VARIABLE == doctor.LPIPS_VARIABLE
    assert features.HUB_FILE == doctor.ALEXNET_FILE
    monkeypatch.setenv(doctor.LPIPS_VARIABLE, str(tmp_path / "alexnet.pth"))
    finding = next(doctor.check_weights())
    assert finding.state == "note"
    assert str(tmp_path) in finding.detail
    (tmp_path / "alexnet.pth").touch()
    assert next(doctor.check_weights()).state == "ok"


@pytest.mark.parametrize("answer", [None, huggingface_hub.file_download._CACHED_NO_EXIST])
def test_a_clip_that_the_hub_cache_lacks_is_not_ok(answer, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: answer)
    *_, finding = doctor.check_weights()
    assert finding.state == "note"
    assert "not in the hub cache" in finding.detail


def test_low_disk_is_told(tmp_path, monkeypatch):
    (finding,) = doctor.check_disk(tmp_path)
    assert "GB free" in finding.detail
    monkeypatch.setattr(doctor, "LOW_DISK_GB", 10**9)
    (finding,) = doctor.check_disk(tmp_path)
    assert finding.state == "note"
    assert "may not fit" in finding.detail


def _missing_library():
    yield Finding("ok", "first", "fine")
    raise ImportError("no libfoo")


@pytest.mark.parametrize(
    ("checks", "code"),
    [
        ([lambda: iter([Finding("ok", "a", "x"), Finding("note", "b", "y")])], 0),
        ([lambda: iter([Finding("bad", "a", "x")]), lambda: iter([Finding("ok", "b", "y")])], 1),
        ([_missing_library], 1),
    ],
)
def test_the_exit_code_tells_whether_something_necessary_is_broken(
    checks, code, monkeypatch, capsys
):
    monkeypatch.setattr(doctor, "CHECKS", tuple(checks))
    assert main([]) == code
    out = capsys.readouterr().out
    assert out.startswith("ok    python")
    assert ("broken: 1" in out) == bool(code)
