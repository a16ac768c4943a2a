"""The score as a function: the objects it returns hold what the command writes."""

import subprocess
import sys

import pytest
import torch

import eval.rses
from eval.encoders.features import LPIPS_VARIABLE
from eval.metrics import GROUPS
from eval.metrics.views import SCOPES
from regionroute.errors import UserError
from regionroute.files import read_json, read_jsonl
from regionroute.settings_files import check_page_output


@pytest.fixture(autouse=True)
def _no_networks(monkeypatch, tmp_path):
    monkeypatch.delenv(LPIPS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no-hub"))


def test_the_function_returns_what_the_command_writes(tiny_manifest, edits, tmp_path, capsys):
    folders = {"half": edits["half"], "ours": edits["good"]}
    report = eval.rses.score(
        tiny_manifest,
        folders,
        tmp_path / "function",
        split="all",
        metrics=["success", "in_mask_ratio"],
        fail_if=["half:in_mask_ratio>0.1", "ours:in_mask_ratio>0.1"],
        report=tmp_path / "page.html",
    )
    capsys.readouterr()
    arguments = [
        "--manifest",
        str(tiny_manifest),
        "--split",
        "all",
        "--metrics",
        "success,in_mask_ratio",
    ]
    for name, folder in folders.items():
        arguments += ["--edits", f"{name}={folder}"]
    assert eval.rses.main([*arguments, "--out", str(tmp_path / "command")]) == 0
    assert report.table() in capsys.readouterr().out
    assert read_json(tmp_path / "command" / "summary.json") == report.summary
    assert read_jsonl(tmp_path / "function" / "samples.jsonl") == report.rows

    assert list(report.methods) == ["half", "ours"]
    assert report.scored == 8
    assert report.mean("ours", "success") == report.mean("ceiling", "success") == 1
    assert report.mean("floor", "success") == 0
    [violation] = report.violations
    assert "half" in violation
    check_page_output(report.report)  # it may be made again
    with pytest.raises(KeyError):
        report.mean("theirs", "success")


def test_the_function_takes_the_commands_way_of_naming_edits(tiny_manifest, edits, tmp_path):
    named = [f"ours={edits['good']}", str(edits["half"])]
    report = eval.rses.score(tiny_manifest, named, tmp_path / "out", split="all", metrics="leak")
    assert list(report.methods) == ["ours", edits["half"].name]


def test_a_folder_with_an_equals_sign_is_scored_either_way(tiny_manifest, edits, tmp_path):
    folder = edits["good"].rename(edits["good"].with_name("lr=0.1"))
    report = eval.rses.score(
        tiny_manifest, {"ours": folder}, tmp_path / "function", split="all", metrics="leak"
    )
    arguments = ["--manifest", str(tiny_manifest), "--split", "all", "--metrics", "leak"]
    for name, item in (("named", f"ours={folder}"), ("plain", str(folder))):
        eval.rses.main([*arguments, "--edits", item, "--out", str(tmp_path / name)])
    named, plain = (read_json(tmp_path / n / "summary.json") for n in ("named", "plain"))
    assert named == report.summary
    assert plain["edits"] == {"lr=0.1": folder.as_posix()}


def test_a_missing_folder_is_refused(tiny_manifest, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        eval.rses.score(tiny_manifest, {"ours": tmp_path / "nowhere"}, tmp_path / "out")


def test_the_help_names_every_group_and_scope():
    text = eval.rses.parser().format_help()
    assert all(f"{group}" in text for group in GROUPS)
    assert f"{{{','.join(SCOPES)}}}" in text


def test_the_arguments_need_no_torch():
    code = "import sys, eval.rses; eval.rses.parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
