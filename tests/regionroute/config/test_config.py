"""Settings: defaults, file, overrides; every mistake named by its key."""

import argparse

import pytest
import yaml
from pydantic import Field

from regionroute.config import io as config_io
from regionroute.config.run import (
    RunConfig,
    Section,
    add_config_arguments,
    dump_config,
    load_config,
    save_config,
)
from regionroute.errors import UserError, command


def _file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


def test_defaults():
    config = load_config(None, [])
    assert config == RunConfig()
    assert (config.train.steps, config.optim.lr, config.base.name) == (5000, 1e-4, "nano")


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = _file(tmp_path, "train:\n  steps: 7\n  keep: 3\noptim: {lr: 1e-3}\nflow:\n")
    config = load_config(path, ["train.steps=9", "experts.styles=[pixel-art, line-art]"])
    assert (config.train.steps, config.train.keep, config.train.previews) == (9, 3, 4)
    assert config.optim.lr == 1e-3  # PyYAML alone reads 1e-3 as a text
    assert config.experts.styles == ["pixel-art", "line-art"]
    assert config.flow == RunConfig().flow  # a group with nothing in it
    group = load_config(path, ["train={steps: 2}"])
    assert (group.train.steps, group.train.keep) == (2, 3)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optim.lr=3e-4", "optim.lr", 3e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("optim.betas=[0.8, 0.9]", "optim.betas", (0.8, 0.9)),
        ("supervision.layers=[double.1]", "supervision.layers", ["double.1"]),
        ("supervision.layers=all", "supervision.layers", "all"),
        (
            'supervision.layers=["double.1.context:0,2"]',
            "supervision.layers",
            ["double.1.context:0,2"],
        ),
        ("data.cache=null", "data.cache", None),
        ("data.cache= a=b", "data.cache", "a=b"),
        ("train.resume=false", "train.resume", False),
    ],
)
def test_override_values_are_yaml(override, key, value):
    config = load_config(None, [override])
    group, name = key.split(".")
    assert getattr(getattr(config, group), name) == value


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load_config(_file(tmp_path, "# nothing\n"), []) == RunConfig()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.step=4", "unknown key 'train.step', the nearest known one is 'train.steps'"),
        ("train.lr=1", "unknown key 'train.lr', the nearest known one is 'optim.lr'"),
        ("rank=2", "unknown key 'rank', the nearest known one is 'experts.rank'"),
        ("supervison={}", "the nearest known one is 'supervision'"),
        (
            "train=4",
            "'train' is a group of settings and not a value, write for example train.steps",
        ),
        ("train.steps=many", "train.steps must be a valid integer, not many"),
        ("train.steps=4.5", "train.steps must be a valid integer, not 4.5"),
        ('train.steps="4"', "train.steps must be a valid integer"),
        ("train.steps=true", "train.steps must be a valid integer, not true"),
        ("train.resume=1", "train.resume must be a valid boolean, not 1"),
        ("seed=", "seed must be a valid integer, not null"),
        ("train.steps=0", "train.steps must be greater than or equal to 1, not 0"),
        ("experts.rank=0", "experts.rank must be greater than or equal to 1"),
        ("experts.alpha=-1", "experts.alpha must be greater than 0"),
        ("experts.dropout=1", "experts.dropout must be less than 1"),
        ("experts.styles=[]", "experts.styles must have at least 1 item"),
        ("experts.num_experts=4", "experts must leave num_experts null with router style"),
        ("experts.load_balance=1", "experts must have load_balance 0 with router style"),
        ("experts={router: similarity, num_experts: 4, top_k: 5}", r"a top_k \(5\) of at most"),
        ("experts={router: similarity, top_k: 17}", r"a top_k \(17\) of at most"),
        ("experts.targets=styleexperts", "'regionroute', 'styleexpert' or 'all'"),
        ("optim.lr=.inf", "optim.lr must be a finite number"),
        ("optim.betas=[0.9]", "optim.betas must .*"),
        ("optim.betas=[0.9, 2]", "optim.betas must be less than 1 in item 2"),
        ("flow.timesteps=cosine", "flow.timesteps must be 'uniform' or 'logit_normal', not cosine"),
        ("supervision.layers=5", "supervision.layers must be 'all' or be a valid array, not 5"),
        ("supervision.layers=[a b]", 'layers must hold names of blocks: "a b" is not of the form'),
        ("supervision.layers=[double.1@object]", 'layers must not name "@object"'),
        ("train.zero_stage=4", "train.zero_stage must be 0, 1, 2 or 3, not 4"),
        ("train.accumulation=3", r"global_batch \(8\) that its accumulation \(3\) divides"),
        ("train.steps", "write it as key=value"),
        ("=4", "write it as key=value"),
        ("train.steps=[1", "this is not valid YAML"),
        ("train.steps.x=4", "train.steps must be a valid integer"),
    ],
)
def test_wrong_overrides_are_told_in_one_sentence(override, told):
    with pytest.raises(UserError, match=told) as caught:
        load_config(None, [override])
    assert str(caught.value).startswith("override ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train:\n  stepz: 4\n", r"run\.yaml: unknown key 'train.stepz', .* 'train.steps'"),
        ("trian:\n  steps: 4\n", r"run\.yaml: unknown key 'trian', .* 'train'"),
        ("train:\n  steps: x\n", r"run\.yaml: train.steps must be a valid integer, not x"),
        ("train: 5\n", r"run\.yaml: 'train' is a group of settings"),
        ("- a\n- b\n", r"run\.yaml: a configuration is a list of 'key: value' lines"),
        ("train:\n  steps: [1\n", r"run\.yaml:\d: this is not valid YAML"),
        ("seed: 1\nseed: 2\n", r"run\.yaml:2: .*key 'seed' is given twice"),
        ("seed: 2020-01-01\n", r"run\.yaml: seed must be a valid integer"),
        ("seed: x\ntrain: {steps: y}\n", "seed must be .* not x; .*train.steps must be .* not y"),
    ],
)
def test_wrong_files_are_told_in_one_sentence(tmp_path, text, told):
    with pytest.raises(UserError, match=told) as caught:
        load_config(_file(tmp_path, text), [])
    assert "\n" not in str(caught.value)


def test_the_source_of_a_wrong_value_is_named(tmp_path):
    path = _file(tmp_path, "train: {accumulation: 2, steps: x}\n")
    with pytest.raises(UserError, match=r"^\S*run\.yaml: train\.steps"):
        load_config(path, ["seed=3"])
    with pytest.raises(UserError, match=r"^override 'train\.steps=y'"):
        load_config(path, ["train.steps=y"])
    assert load_config(path, ["train.steps=1"]).train.steps == 1


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: no such configuration"):
        load_config(str(tmp_path / "none.yaml"), [])
    with pytest.raises(UserError, match="this is a folder"):
        load_config(str(tmp_path), [])
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(str(tmp_path / "run.yaml"), [])


def test_a_mistake_ends_a_command_without_traceback(tmp_path, capsys):
    @command
    def main(argv):
        parser = argparse.ArgumentParser()
        add_config_arguments(parser)
        arguments = parser.parse_intermixed_args(argv)
        load_config(arguments.config, arguments.overrides)
        return 0

    assert main(["train.steps=4"]) == 0
    assert main(["--config", str(tmp_path / "none.yaml")]) == 2
    assert main(["train.steps=4", "train.stepz=4"]) == 2
    err = capsys.readouterr().err
    assert err.count("error: ") == err.count("\n") == 2


def test_a_dump_reads_back_as_the_same_settings(tmp_path):
    config = load_config(
        None, ["optim.lr=1e-5", "experts.styles=[a b, 'null']", "data.cache='x: y # z'", "seed=4"]
    )
    path = save_config(config, tmp_path / "new")
    assert path == tmp_path / "new" / "config.yaml"
    assert load_config(str(path), []) == config
    assert yaml.safe_load(path.read_text())["train"] == config.train.model_dump()


def test_a_dump_explains_every_key():
    lines = dump_config(RunConfig()).split("\n")
    keys = [
        line.split(":")[0].strip() for line in lines if line and not line.strip().startswith("#")
    ]
    assert keys == [key.rpartition(".")[2] for key in config_io.known_keys(RunConfig)]
    for number, line in enumerate(lines):
        if line and not line.strip().startswith("#"):
            assert lines[number - 1].strip().startswith("# "), f"no comment above {line!r}"
    assert max(map(len, lines)) <= 100
    assert "(uniform | logit_normal)" in dump_config(RunConfig())


def test_settings_cannot_change_under_way():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().train.steps = 4


class _Codec(Section):
    levels: list[int] = Field([8, 16], description="widths")


class _Other(Section):
    name: str = Field(description="has no default")
    codec: _Codec = Field(_Codec(), description="the codec")


def test_any_model_can_be_loaded():
    config = config_io.load_config(None, ["name=x", "codec.levels=[4]"], _Other)
    assert config == _Other(name="x", codec=_Codec(levels=[4]))
    with pytest.raises(UserError, match="defaults: name must be given"):
        config_io.load_config(None, [], _Other)
    with pytest.raises(UserError, match=r"nearest known one is 'codec\.levels'"):
        config_io.load_config(None, ["codec.level=[4]"], _Other)


class _Inner(Section):
    sizes: dict[str, int] = Field({"a": 1}, description="by name")
    depth: int = Field(1, description="of the inner")


class _Middle(Section):
    inner: _Inner = Field(_Inner(depth=2), description="the inner")
    width: int = Field(1, description="of the middle")
    height: int = Field(1, description="of the middle")


class _Outer(Section):
    middle: _Middle = Field(
        _Middle(inner=_Inner(sizes={"b": 3}, depth=4), width=5), description="the middle"
    )


def test_what_is_not_given_is_as_in_the_default_of_the_group_above():
    middle = config_io.load_config(None, ["middle.height=6"], _Outer).middle
    assert middle == _Middle(inner=_Inner(sizes={"b": 3}, depth=4), width=5, height=6)
    inner = config_io.load_config(None, ["middle.inner.sizes={c: 7}"], _Outer).middle.inner
    assert inner == _Inner(sizes={"c": 7}, depth=4)  # a value is replaced as a whole
    with pytest.raises(UserError, match=r"middle\.inner\.deep"):
        config_io.load_config(None, ["middle.inner.deep=1"], _Outer)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "c.yaml", "a=1", "b=2", "--print-config"],
        ["a=1", "--config", "c.yaml", "b=2", "--print-config"],
        ["--print-config", "--config=c.yaml", "a=1", "b=2"],
    ],
)
def test_overrides_may_stand_among_the_options(arguments):
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    parsed = parser.parse_intermixed_args(arguments)
    assert parsed.config == "c.yaml"
    assert parsed.overrides == ["a=1", "b=2"]
    assert parsed.print_config


def test_the_map_of_edits_is_the_supervised_one_unless_it_is_named():
    assert load_config(None, []).map.choice() is None
    named = ["map.layers=[double.0.context:2@object, single.1]", "map.combine=geometric"]
    choice = load_config(None, named).map.choice()
    assert choice.layers == ["double.0.context:2@object", "single.1"]
    assert choice.combine == "geometric"
    with pytest.raises(UserError, match=r"map\.layers must .*BLOCK"):
        load_config(None, ["map.layers=[double:x]"])
