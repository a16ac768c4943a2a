import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval import rses
from eval.encoders import networks
from eval.encoders.features import LPIPS_VARIABLE
from eval.metrics import CATALOGUE
from eval.summary import RELATIVE
from regionroute.data.images import read_image, read_mask, write_image
from regionroute.data.manifest import load_manifest
from regionroute.files import read_json, read_jsonl, write_jsonl

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_networks(monkeypatch, tmp_path):
    """No weights found by chance; tests that want some give them."""
    monkeypatch.delenv(LPIPS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "no-hub"))


@pytest.fixture
def score(tiny_manifest, edits, tmp_path):
    """Runs the command on the tiny manifest: (exit code, summary, rows)."""

    def run(*extra, methods=("half", "good")):
        arguments = ["--manifest", str(tiny_manifest), "--split", "all"]
        for name in methods:
            arguments += ["--edits", f"{name}={edits[name]}"]
        out = tmp_path / "scores"
        code = rses.main([*arguments, "--out", str(out), *extra])
        return code, read_json(out / "summary.json"), read_jsonl(out / "samples.jsonl")

    return run


def mean(summary, method, metric, part="all"):
    return summary["methods"][method]["slices"][part][metric]["mean"]


def test_floor_methods_and_ceiling_stand_where_they_must(score, capsys):
    code, summary, rows = score()
    assert code == 0
    assert list(summary["methods"]) == ["floor", "half", "good", "ceiling"]
    assert len(rows) == 4 * 4
    assert mean(summary, "floor", "in_mask_ratio") == mean(summary, "floor", RELATIVE) == 1
    assert mean(summary, "floor", "mse_bg") == 0
    for exact in ("good", "ceiling"):
        assert mean(summary, exact, "in_mask_error") == mean(summary, exact, "leak") == 0
        assert mean(summary, exact, "success") == 1
    # Half of the way leaves a quarter of the squared error, up to 8-bit rounding.
    assert mean(summary, "half", "in_mask_ratio") == pytest.approx(0.25, abs=0.01)
    assert mean(summary, "half", "mse_bg") > 1e-4
    assert mean(summary, "good", "attention_iou") == 1
    assert mean(summary, "half", "attention_iou") is None
    out = capsys.readouterr()
    assert "| good | 4/4 |" in out.out
    assert out.err.count("is skipped") == 2  # lpips_bg and rsm, each with its remedy
    assert "--lpips-weights" in summary["skipped"]["lpips_bg"]
    assert "--clip" in summary["skipped"]["rsm"]
    assert "lpips_bg" not in rows[0]["metrics"]


def test_numbers_equal_an_independent_computation(score, tiny_manifest, edits):
    _, summary, rows = score()
    manifest = load_manifest(tiny_manifest)
    expected = []
    for sample in manifest.samples:
        source, edit = (
            np.asarray(Image.open(path), dtype=np.float64) / 127.5 - 1
            for path in (tiny_manifest / sample.context, edits["half"] / f"{sample.id}.png")
        )
        outside = np.asarray(Image.open(tiny_manifest / sample.regions[0].mask)) < 128
        expected.append(((edit - source)[outside] ** 2).mean())
    found = [row["metrics"]["mse_bg"] for row in rows if row["method"] == "half"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert mean(summary, "half", "mse_bg") == pytest.approx(np.mean(expected), rel=1e-5)


def test_slices_are_the_samples_own(score, tiny_manifest):
    samples = [json.loads(line) for line in (tiny_manifest / "manifest.jsonl").open()]
    samples[0]["flags"] = ["small", "touching"]
    samples[2]["flags"] = ["small"]
    write_jsonl(tiny_manifest / "manifest.jsonl", samples)
    _, summary, rows = score()
    assert summary["slices"] == {
        "all": 4,
        "size:large": 4,
        "count:one": 4,
        "flag:small": 2,
        "flag:touching": 1,
        "style:line-art": 2,
        "style:pixel-art": 2,
    }
    values = {row["id"]: row["metrics"]["mse_bg"] for row in rows if row["method"] == "half"}
    assert mean(summary, "half", "mse_bg", "flag:touching") == values[samples[0]["id"]]
    small = np.mean([values[samples[number]["id"]] for number in (0, 2)])
    assert mean(summary, "half", "mse_bg", "flag:small") == pytest.approx(small)


def test_every_pair_of_methods_is_compared_on_the_same_samples(score):
    _, summary, _ = score()
    (pair,) = summary["pairs"]
    assert (pair["a"], pair["b"]) == ("good", "half")
    entry = pair["slices"]["all"]["in_mask_ratio"]
    assert entry["difference"] == pytest.approx(-0.25, abs=0.01)
    assert entry["win_rate"] == 1
    assert entry["high"] < 0


def test_definitions_hashes_and_versions_are_written(score):
    _, summary, _ = score()
    for name, entry in summary["metrics"].items():
        assert entry["definition"] == CATALOGUE[name].definition
    assert "[-1,1]" in summary["metrics"]["mse_bg"]["definition"]
    assert "0.1" in summary["metrics"]["leak"]["definition"]
    assert len(summary["manifest"]["hash"]) == 16
    assert summary["versions"]["torch"] == torch.__version__.split("+")[0]
    assert summary["bootstrap"] == {
        "resamples": 2000,
        "level": 0.95,
        "seed": 0,
        "kind": "percentile",
    }


def test_a_second_run_and_another_batch_size_write_the_same(score, tmp_path):
    score("--batch-size", "1")
    first = (tmp_path / "scores" / "summary.json").read_text()
    score("--batch-size", "3")
    assert (tmp_path / "scores" / "summary.json").read_text() == first
    json.loads(first, parse_constant=pytest.fail)  # NaN is no JSON


def test_lpips_weights_make_lpips(score, assets, monkeypatch):
    monkeypatch.setenv(LPIPS_VARIABLE, str(assets / "weights" / "lpips"))
    _, summary, _ = score()
    assert mean(summary, "good", "lpips_bg") == 0
    assert mean(summary, "half", "lpips_bg") > 0
    assert len(summary["metrics"]["lpips_bg"]["encoder"]["weights"]) == 16
    assert "lpips_bg" not in summary["skipped"]


def test_an_encoder_makes_rsm(score, stub_encoder, monkeypatch):
    encoder = stub_encoder({"line-art style": [1.0, 1.0, 1.0], "pixel-art style": [0.0, 1.0, 0.0]})
    monkeypatch.setattr(networks, "load_clip", lambda name, device: encoder)
    _, summary, _ = score("--clip", "stub")
    assert mean(summary, "ceiling", "rsm") > mean(summary, "floor", "rsm")
    assert summary["metrics"]["rsm"]["encoder"] == {"encoder": "stub", "weights": "none"}


def test_bad_edits_are_one_line_each_and_counted(score, edits, tiny_manifest, capsys):
    folder = edits["half"]
    (folder / "pair-0.png").unlink()
    (folder / "pair-1.png").write_bytes(b"no image")
    write_image(folder / "pair-2.png", torch.rand(3, 64, 48))
    code, summary, rows = score()
    assert code == 0
    entry = summary["methods"]["half"]
    assert (entry["n_samples"], entry["n_scored"], entry["n_failed"]) == (4, 1, 3)
    errors = {row["id"]: row["error"] for row in rows if row["method"] == "half" and row["error"]}
    assert "no such image" in errors["pair-0"]
    assert "damaged" in errors["pair-1"]
    assert "48x64" in errors["pair-2"]
    assert "64x64" in errors["pair-2"]
    assert summary["methods"]["good"]["n_scored"] == 4
    assert summary["pairs"][0]["slices"]["all"]["mse_bg"]["n"] == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "half: " in line]
    assert len(lines) == 4  # three failures and their count
    assert lines[-1] == "half: 3 of 4 failed"


def test_a_bad_sample_is_counted_for_every_method(score, tiny_manifest):
    mask = tiny_manifest / load_manifest(tiny_manifest).samples[1].regions[0].mask
    write_image(mask, torch.zeros(1, 64, 64))
    _, summary, rows = score()
    assert {entry["n_failed"] for entry in summary["methods"].values()} == {1}
    assert all("the mask is empty" in row["error"] for row in rows if row["id"] == "pair-1")


def test_a_mask_without_background_is_undefined_not_zero(score, tiny_manifest):
    sample = load_manifest(tiny_manifest).samples[1]
    write_image(tiny_manifest / sample.regions[0].mask, torch.ones(1, 64, 64))
    _, summary, rows = score()
    entry = summary["methods"]["half"]["slices"]["all"]["mse_bg"]
    assert (entry["n"], entry["n_invalid"]) == (3, 1)
    (row,) = [r for r in rows if r["id"] == "pair-1" and r["method"] == "half"]
    assert row["metrics"]["mse_bg"] is None


def test_a_bad_map_costs_only_the_map(score, edits, capsys):
    (edits["good"] / "pair-0.json").write_text('{"map": {"grid": [900, 8]}}')
    (edits["good"] / "pair-1.map.png").write_bytes(b"broken")
    (edits["good"] / "pair-2.json").unlink()  # the map's own pixels are its cells then
    _, summary, _ = score()
    assert summary["methods"]["good"]["n_failed"] == 0
    entry = summary["methods"]["good"]["slices"]["all"]["attention_iou"]
    assert (entry["n"], entry["n_invalid"]) == (2, 2)
    said = capsys.readouterr().err
    assert said.count("map skipped: ") == 2
    assert "good: 2 of 4: map skipped" in said
    assert summary["methods"]["good"]["remarks"] == {"map skipped": 2}


def test_pictures_of_several_sizes_keep_their_order(score, tiny_manifest, edits):
    for path in [*tiny_manifest.glob("1.*.png"), *(f / "pair-1.png" for f in edits.values())]:
        image = read_image(path) if "mask" not in path.name else read_mask(path)
        write_image(path, image[:, :48, :])
    code, _, rows = score()
    assert code == 0
    assert [row["id"] for row in rows[::4]] == ["pair-0", "pair-1", "pair-2", "pair-3"]
    assert rows[4]["size"] == [48, 64]


def test_nothing_scored_is_exit_code_one(score, edits):
    for path in edits["half"].glob("*.png"):
        path.unlink()
    code, summary, _ = score(methods=("half",))
    assert code == 1
    assert summary["methods"]["half"]["n_failed"] == 4
    assert score(methods=("half", "good"))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--manifest", "nowhere"], "no such manifest"),
        (["--edits", "nowhere"], "no such folder"),
        (["--edits", "floor=EDITS"], "'floor' is reserved"),
        (["--edits", "half=EDITS"], "used twice"),
        (["--split", "tset"], "splits there: train, val"),
        (["--device", "cuda:99"], "try cpu"),
        (["--device", "gpu"], "try cpu"),
        (["--batch-size", "0"], "at least 1"),
        (["--lpips-weights", "nowhere"], "no such file or folder"),
        (["--clip", "./nowhere"], "--clip ./nowhere: cannot be loaded"),
        (["--out", "MANIFEST"], "this is a file, give a folder"),
        (["--report", "EDITS"], "this is a folder, give a file name"),
    ],
)
def test_what_the_user_gets_wrong_is_one_sentence(score, edits, tiny_manifest, arguments, sentence,
                                                  capsys, monkeypatch):  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    places = {"EDITS": str(edits["half"]), "MANIFEST": str(tiny_manifest / "manifest.jsonl")}
    for word, place in places.items():
        arguments = [argument.replace(word, place) for argument in arguments]
    base = ["--manifest", str(tiny_manifest), "--split", "all", "--edits", f"half={edits['half']}"]
    assert rses.main([*base, "--out", str(tiny_manifest.parent / "scores"), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert sentence in error
    assert "\n" not in error


def test_it_starts_as_a_script():
    result = subprocess.run(
        [sys.executable, "eval/rses.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "--edits ours=out/a" in result.stdout


def test_the_older_name_of_a_scope_is_read_with_one_line(capsys):
    arguments = ["--manifest", "m", "--edits", "e", "--out", "o", "--scope"]
    assert rses.parser().parse_args([*arguments, "picture"]).scope == "image"
    assert capsys.readouterr().err.count("--scope picture: this is now `--scope image`") == 1
    assert rses.parser().parse_args([*arguments, "image"]).scope == "image"
    assert capsys.readouterr().err == ""
