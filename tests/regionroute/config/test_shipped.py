"""Shipped configurations are found by name from any folder, files of the user come first."""

import importlib.util
import re

import pytest

from regionroute.config import shipped
from regionroute.config.run import load_config
from regionroute.errors import UserError
from train.run import main as train


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["nano_photos", "nano_photos.yaml", "configs/nano_photos.yaml"])
def test_a_shipped_configuration_is_found_from_any_folder(name):
    config = load_config(name, ["train.steps=7"])
    assert (config.base.name, config.train.steps) == ("nano-photos", 7)


def test_a_file_of_the_user_comes_first(tmp_path):
    (tmp_path / "nano_photos").write_text("train: {steps: 3}")
    assert load_config("nano_photos", []).train.steps == 3


def test_headers_name_commands_of_an_installed_package():
    for name in shipped.shipped_names():
        text = (shipped.FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
        assert re.findall(r"(?:python|\d) (?:train|eval)/\S+", text) == [], name
        assert set(re.findall(r"--config (\w+)", text)) <= set(shipped.shipped_names()), name
        for module in re.findall(r"(?:-m|--module) ([\w.]+)", text):
            assert importlib.util.find_spec(module), name


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(UserError) as caught:
        load_config("nano_fotos", [])
    assert "did you mean nano_photos?" in str(caught.value)
    assert set(shipped.shipped_names()) <= set(
        str(caught.value).partition("shipped: ")[2].rstrip(")").split(", ")
    )
    assert "kontext" in shipped.shipped_names()


@pytest.mark.parametrize("path", ["runs/nano_photos", "/nano_photos", "x/configs/nano.yaml", ".."])
def test_other_paths_are_not_looked_up(path):
    with pytest.raises(UserError, match=r"no such configuration|this is a folder"):
        load_config(path, [])


def test_a_file_that_a_shipped_configuration_names_is_found():
    words = shipped.shipped_file("configs/nano_words.txt")
    assert words.is_file()
    assert words.parent == shipped.FOLDER


def test_training_prints_a_shipped_configuration(capsys):
    assert train(["--config", "nano_photos", "--print-config", "train.steps=7"]) == 0
    printed = capsys.readouterr().out
    assert "name: nano-photos" in printed
    assert "steps: 7" in printed


def test_a_folder_of_that_name_hides_no_shipped_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert shipped.find_config("nano").is_file()
