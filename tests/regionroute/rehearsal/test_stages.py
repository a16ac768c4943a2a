"""The driver: which stages run, what is measured, what is refused. All stages: marked slow."""

import json
import sys

import pytest

from regionroute.cli.main import main as regionroute
from regionroute.errors import UserError
from regionroute.rehearsal import measure, stages, work
from regionroute.rehearsal.bases import Shape
from regionroute.rehearsal.measure import Measured, measured
from regionroute.rehearsal.settings import Settings, read_settings, write_settings


@pytest.fixture
def settings(tmp_path):
    found = Settings(tmp_path, "tiny-klein", Shape(32, 64, 2))
    write_settings(found)
    return found


@pytest.fixture
def started(monkeypatch):
    """Names of the stages that are started, none of which runs."""
    names = []

    def run(command, log):
        names.append(log.stem)
        log.write_text("it broke\n")
        return Measured(3 if log.stem == "train" else 0, 1.0, 10**9, None)

    monkeypatch.setattr(stages, "measured", run)
    monkeypatch.setattr(Settings, "sample", lambda self: stages_sample())
    return names


def stages_sample():
    from pathlib import Path

    from regionroute.rehearsal.settings import Sample

    return Sample(Path("a.png"), Path("m.png"), "dog", "pixel-art")


def test_a_failed_stage_is_named_and_the_rest_resumes_there(settings, started):
    with pytest.raises(UserError, match=r"stage train ended with status 3 \(it broke\)"):
        stages.run_stages(settings, None, say=lambda line: None)
    assert started == ["start", "write", "load", "pairs", "cache", "train"]
    with pytest.raises(UserError, match="stage train"):
        stages.run_stages(settings, None, say=lambda line: None)
    assert started[6:] == ["train"]


def test_named_stages_run_again(settings, started):
    stages.run_stages(settings, ["load", "write"], say=lambda line: None)
    stages.run_stages(settings, ["write"], say=lambda line: None)
    assert started == ["write", "load", "write"]
    assert set(stages.read_results(settings.folder)) == {"write", "load"}


def test_memory_of_a_process_is_measured(tmp_path):
    code = "import time; x = bytes(1) * 200_000_000; time.sleep(1)"
    found = measured([sys.executable, "-c", code], tmp_path / "log")
    assert found.status == 0
    assert found.seconds > 1
    assert 200e6 < found.peak < 300e6
    if found.own is not None:
        assert 200e6 < found.own < 300e6
    assert (
        measure.measured([sys.executable, "-c", "raise SystemExit(5)"], tmp_path / "l").status == 5
    )


def test_a_folder_of_another_rehearsal_is_refused(settings):
    assert read_settings(settings.folder) == settings
    with pytest.raises(UserError, match="holds another rehearsal"):
        write_settings(Settings(settings.folder, "tiny", settings.shape))


def test_too_little_disk_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"needs 1050000\.0 GB of disk"):
        stages.check_disk(tmp_path / "new", 1e15)


def test_the_table_compares_with_the_plan():
    row = {"seconds": 12.0, "peak": 2e9, "own": 1e9, "status": 0}
    lines = list(stages.table({"load": row, "start": row}, {"load": 1.6e9}))
    assert lines[2].split()[-1] == "+25%"
    assert lines[1].split() == ["start", "12", "s", "2.00", "GB", "1.00", "GB"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base", "flux"], "--base flux: must be one of"),
        (["--base", "tiny", "--stages", "load,sing"], "--stages sing: must be among start"),
        (["--base", "tiny", "--text-length", "600"], "at most 512 tokens"),
        (["--base", "tiny", "--resolution", "2"], "--resolution 2: must be at least 64"),
    ],
)
def test_wrong_arguments(refused, tmp_path, arguments, said):
    assert said in refused(regionroute, ["rehearse", *arguments, "--out", str(tmp_path / "x")])


def test_a_dry_run_writes_nothing_and_says_the_disk(capsys, tmp_path):
    out = tmp_path / "x"
    given = ["--base", "flux1-kontext-12b", "--quantize", "nf4", "--out", str(out), "--dry-run"]
    assert regionroute(["rehearse", *given]) == 0
    shown = capsys.readouterr().out
    assert "needs 17." in shown  # 6.2 GB in nf4, 9.5 GB of T5, autoencoder, CLIP
    assert not out.exists()


def in_this_process(command, log):
    """Runs a stage without starting Python again; its memory means nothing then."""
    main = {"regionroute.cli": regionroute, "regionroute.rehearsal.work": work.main}[command[2]]
    return Measured(main(command[3:]), 1.0, 10**9, None)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "quantize"),
    [("tiny-klein", "none"), pytest.param("tiny", "nf4", marks=pytest.mark.slow)],
)
def test_all_stages_in_one_process(tmp_path, capsys, monkeypatch, name, quantize):
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(stages, "measured", in_this_process)
    check_all(tmp_path / "out", capsys, name, quantize)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_stages(tmp_path, capsys):
    check_all(tmp_path / "out", capsys, "tiny", "none")
    assert stages.read_results(tmp_path / "out")["load"]["peak"] > 10**8


def check_all(out, capsys, name, quantize):
    given = ["--base", name, "--quantize", quantize, "--resolution", "64", "--text-length", "64"]
    assert regionroute(["rehearse", *given, "--out", str(out)]) == 0
    assert set(stages.read_results(out)) == set(stages.NAMES)
    stock = json.loads((out / "stock.json").read_text())
    assert stock["mean_difference"] < 1e-2
    assert stock["mean_effect_of_the_expert"] > 2 * stock["mean_difference"]
    assert {"train", "cache", "stock"} <= json.loads((out / "expected.json").read_text()).keys()
    assert "stock" in capsys.readouterr().out
