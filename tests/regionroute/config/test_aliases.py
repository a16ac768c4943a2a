"""Renamed settings are read under their old names, with one line that names the new one."""

from typing import ClassVar

import pytest
from pydantic import Field

from regionroute.config.aliases import with_current_names
from regionroute.config.base import NonNegative, Section
from regionroute.config.io import load_config
from regionroute.editing.expert_settings import stored_routing
from regionroute.errors import UserError


class _Loop(Section):
    renamed: ClassVar = {"explosion": "loss_spike"}

    loss_spike: NonNegative = Field(100.0)
    steps: int = Field(1)


class _Run(Section):
    renamed: ClassVar = {"loop": "train"}

    train: _Loop = Field(_Loop())


def _file(tmp_path, text):
    path = tmp_path / "old.yaml"
    path.write_text(text)
    return path


def test_a_file_with_an_old_name_is_read_and_one_line_names_the_new_one(tmp_path, capsys):
    path = _file(tmp_path, "train: {explosion: 5, steps: 3}\n")
    config = load_config(path, [], _Run)
    assert (config.train.loss_spike, config.train.steps) == (5.0, 3)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"note: {path}: train.explosion is now called train.loss_spike, please rename it"
    ]


def test_an_override_may_use_the_old_name(tmp_path, capsys):
    config = load_config(_file(tmp_path, "train: {loss_spike: 9}\n"), ["train.explosion=5"], _Run)
    assert config.train.loss_spike == 5.0
    (line,) = capsys.readouterr().err.splitlines()
    assert "override 'train.explosion=5'" in line
    assert line.count("train.loss_spike") == 1


def test_a_group_may_be_renamed_and_hold_renamed_settings(capsys):
    config = load_config(None, ["loop={explosion: 7}", "loop.steps=4"], _Run)
    assert (config.train.loss_spike, config.train.steps) == (7.0, 4)
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_the_current_names_print_nothing(tmp_path, capsys):
    load_config(_file(tmp_path, "train: {loss_spike: 5}\n"), ["train.steps=2"], _Run)
    assert capsys.readouterr().err == ""


def test_both_names_in_one_file_are_refused(tmp_path):
    path = _file(tmp_path, "train: {loss_spike: 5, explosion: 5}\n")
    with pytest.raises(UserError, match=r"train\.explosion is the old name of train\.loss_spike"):
        load_config(path, [], _Run)


def test_both_names_among_the_overrides_are_refused():
    with pytest.raises(UserError, match=r"train\.loss_spike and train\.explosion are one setting"):
        load_config(None, ["train.loss_spike=5", "train.explosion=6"], _Run)
    repeated = load_config(None, ["train.explosion=5", "train.explosion=6"], _Run)
    assert repeated.train.loss_spike == 6.0  # the last one wins, as with any setting


def test_a_wrong_value_under_an_old_name_is_reported_with_the_override_and_the_new_name():
    with pytest.raises(UserError, match=r"override 'train\.explosion=-1': train\.loss_spike must"):
        load_config(None, ["train.explosion=-1"], _Run)


def test_in_a_distributed_run_only_process_0_prints(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert load_config(None, ["train.explosion=5"], _Run).train.loss_spike == 5.0
    assert capsys.readouterr().err == ""


def test_stored_settings_are_read_without_a_note(capsys):
    stored = {"train": {"explosion": 2, "other": 1}}
    current = with_current_names(stored, _Run, "experts.json", quiet=True)
    assert current == {"train": {"loss_spike": 2, "other": 1}}  # unknown names: someone else's
    assert stored == {"train": {"explosion": 2, "other": 1}}
    assert capsys.readouterr().err == ""


def test_stored_routing_settings_go_through_the_aliases(monkeypatch):
    from regionroute.config.run import RoutingConfig

    monkeypatch.setattr(RoutingConfig, "renamed", {"old_threshold": "threshold"})
    assert stored_routing({"routing": {"old_threshold": 0.25}}, "experts").threshold == 0.25


def test_the_old_names_of_the_version_before_are_read():
    from regionroute.config.run import RunConfig
    from train.pretrain.config import PretrainConfig

    old = ["train.explosion=5", "supervision.shares_every=7", "supervision.max_share=0.5"]
    config = load_config(None, old, RunConfig)
    assert config.train.loss_spike == 5.0
    supervision = config.supervision
    assert (supervision.gradient_norms_every, supervision.max_gradient_ratio) == (7, 0.5)
    pretrain = load_config(None, ["start=base", "codec.vision=file"], PretrainConfig)
    assert (pretrain.init_from, pretrain.codec.image_encoder) == ("base", "file")
