import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from regionroute.models.loading import load_base
from train.pretrain.average import main

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def bases(tiny_base, tmp_path):
    """Two bases whose weights differ by 1, the second one's larger."""
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        shutil.copytree(tiny_base, folder)
        (folder / "README.md").write_text(f"# {folder.name}\n")
    weights = load_file(folders[0] / WEIGHTS)
    save_file({k: x + 1 for k, x in weights.items()}, folders[1] / WEIGHTS)
    return folders


def mean(bases, out):
    return main([*map(str, bases), "--out", str(out)])


def test_the_mean_lies_between_and_loads(bases, tmp_path):
    assert mean(bases, tmp_path / "mean") == 0

    first, found = (load_file(folder / WEIGHTS) for folder in (bases[0], tmp_path / "mean"))
    for key, tensor in first.items():
        torch.testing.assert_close(found[key], tensor + 0.5)
    card = (tmp_path / "mean" / "README.md").read_text()
    assert "mean of 2 runs" in card
    assert "# second" in card
    load_base(str(tmp_path / "mean"))


def test_bases_of_different_kinds_are_refused(bases, tmp_path, capsys):
    weights = load_file(bases[1] / WEIGHTS)
    key = next(iter(weights))
    save_file(weights | {key: weights[key][:1]}, bases[1] / WEIGHTS)

    assert mean(bases, tmp_path / "mean") != 0

    assert key in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def test_other_files_must_be_the_same(bases, tmp_path, capsys):
    path = bases[0] / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text() + "\n")

    assert mean(bases, tmp_path / "mean") != 0

    assert "scheduler_config.json" in capsys.readouterr().err


@pytest.mark.parametrize("given", [["absent", "absent"], ["first"]])
def test_what_is_no_base_is_refused(bases, tmp_path, capsys, given):
    assert mean([tmp_path / name for name in given], tmp_path / "mean") != 0
    assert capsys.readouterr().err.startswith("error: ")
