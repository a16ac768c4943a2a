"""Optimizers from their packages, offloading, and what does not go together."""

import builtins

import pytest
import torch

from regionroute.config.run import load_config
from regionroute.errors import UserError
from regionroute.planning.estimate import STATE_BYTES
from train.engine.engine import engine_settings
from train.engine.optimizers import build_optimizer, check_optimizer

SLOW = pytest.mark.slow
STAGES = [0, pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW), pytest.param(3, marks=SLOW)]


def optim(*overrides):
    return load_config(None, overrides).optim


@pytest.mark.parametrize(
    ("overrides", "package", "name"),
    [
        ([], "torch", "AdamW"),
        (["optim.name=adamw8bit"], "bitsandbytes", "AdamW8bit"),
        (["optim.name=prodigy", "optim.lr=1"], "pytorch_optimizer", "Prodigy"),
    ],
)
def test_each_name_stands_for_its_packages_class(overrides, package, name):
    pytest.importorskip(package)
    settings = ["optim.betas=[0.8, 0.95]", "optim.eps=1e-6", "optim.weight_decay=0.1"]
    weight = torch.nn.Parameter(torch.ones(8192))
    optimizer = build_optimizer([weight], optim(*overrides, *settings))
    assert type(optimizer).__name__ == name
    assert type(optimizer).__module__.startswith(package)
    (group,) = optimizer.param_groups
    assert tuple(group["betas"]) == (0.8, 0.95)
    assert (group["eps"], group["weight_decay"]) == (1e-6, 0.1)
    weight.grad = torch.linspace(0.1, 1, 8192)
    optimizer.step()
    assert (weight < 1).all()  # against the gradient
    if name == "AdamW8bit":
        assert optimizer.state[weight]["state1"].dtype == torch.uint8


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["adamw8bit", "prodigy"])
def test_they_train_and_continue_bit_for_bit(runs, name, stage):
    pytest.importorskip("bitsandbytes")
    rest = [f"optim.name={name}", f"train.zero_stage={stage}", "experts.rank=32"]
    rest += ["optim.lr=1"] if name == "prodigy" else []
    assert runs("whole", *rest) == 0
    assert runs("halves", *rest, "train.steps=3") == 0
    assert runs("halves", *rest) == 0
    assert runs.difference("whole", "halves") == 0
    whole, halves = runs.experts("whole"), runs.experts("halves")
    assert all(torch.equal(whole[key], halves[key]) for key in whole)
    moved = [value.abs().max() for key, value in whole.items() if "lora_B" in key]
    assert max(moved) > 0


def test_eight_bits_take_nearly_the_steps_of_32(runs):
    pytest.importorskip("bitsandbytes")
    assert runs("32", "experts.rank=32", "optim.lr=1e-3") == 0
    assert runs("8", "experts.rank=32", "optim.lr=1e-3", "optim.name=adamw8bit") == 0
    assert 0 < runs.difference("32", "8") < 0.02


def test_another_optimizer_does_not_continue_a_checkpoint(runs, capsys):
    assert runs("run", "train.steps=1") == 0
    capsys.readouterr()
    assert runs("run", "optim.name=prodigy", "optim.lr=1") == 2
    assert "optim.name = adamw, now it is prodigy" in capsys.readouterr().err


def test_prodigy_is_refused_where_each_process_would_find_its_own_size():
    config = load_config(None, ["optim.name=prodigy", "optim.lr=1", "train.zero_stage=2"])
    with pytest.raises(UserError, match=r"step size on each of the 2 processes: set train.zero"):
        engine_settings(config, 2, 1000)
    engine_settings(config, 1, 1000)
    check_optimizer(config.optim, 0, 2)


def test_a_missing_package_is_named_before_anything_is_read(runs, monkeypatch, capsys):
    original = builtins.__import__

    def without(name, *rest, **options):
        if name.startswith("bitsandbytes"):
            raise ImportError(name)
        return original(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert runs("run", "optim.name=adamw8bit", "data.manifest=nowhere") == 2
    assert "pip install 'regionroute[optimizers]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stage", "what"),
    [
        (1, "optimizer"),
        pytest.param(2, "optimizer", marks=SLOW),
        pytest.param(3, "all", marks=SLOW),
    ],
)
def test_offloading_changes_no_loss(runs, stage, what):
    rest = [f"train.zero_stage={stage}", "train.save_every=3", "optim.ema=0.9"]
    assert runs("there", *rest, f"train.offload={what}") == 0
    assert runs("here", *rest) == 0
    assert runs.difference("there", "here") < 1e-5
    (runs.output("there") / "checkpoints" / "step-000006").rename(runs.folder / "aside")
    before = runs.losses("there")
    assert runs("there", *rest, f"train.offload={what}") == 0
    assert runs.losses("there") == before


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        ([], set()),
        (["train.zero_stage=1", "train.offload=optimizer"], {"offload_optimizer"}),
        (["train.zero_stage=3", "train.offload=all"], {"offload_optimizer", "offload_param"}),
    ],
)
def test_deepspeed_is_told_what_waits_elsewhere(overrides, keys):
    section = engine_settings(load_config(None, overrides), 1, 1000)["zero_optimization"]
    assert {key for key in section if key.startswith("offload")} == keys
    assert all(section[key]["device"] == "cpu" for key in keys)


def test_compiled_blocks_are_refused_where_weights_come_and_go(tmp_path):
    file = tmp_path / "zero.json"
    file.write_text('{"zero_optimization": {"stage": 3}}')
    for rest in (["train.zero_stage=3"], [f"train.deepspeed={file}"]):
        with pytest.raises(UserError, match=r"train.compile: ZeRO stage 3 .*train.compile=false"):
            engine_settings(load_config(None, ["train.compile=true", *rest]), 1, 1000)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optim.name=prodigy"], "an lr of about 1 with name prodigy"),
        (["train.offload=optimizer"], "a zero_stage of at least 1 with offload optimizer"),
        (["train.offload=all", "train.zero_stage=2"], r"zero_stage 3 \(it is 2\) with offload all"),
        (
            ["train.offload=all", "train.zero_stage=3", "train.deepspeed=x.json"],
            "offload none with a deepspeed file",
        ),
        (["optim.name=sgd"], "optim.name must be 'adamw', 'adamw8bit' or 'prodigy', not sgd"),
        (["optim.ema=1"], "optim.ema must be less than 1"),
        (
            ["supervision.max_gradient_ratio=0.3", "supervision.gradient_norms_every=0"],
            "gradient_norms_every above 0",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_one_sentence(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        load_config(None, overrides)


@pytest.mark.parametrize("name", list(STATE_BYTES))
def test_optimizers_keep_what_the_plan_foretells(name):
    """The bytes of the real optimizer's tensors after a step, of a weight of a LoRA's size."""
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    weight = torch.nn.Parameter(torch.randn(64, 256))
    optimizer = build_optimizer([weight], optim(f"optim.name={name}", "optim.lr=1"))
    weight.square().sum().backward()
    optimizer.step()
    kept = {k: v for k, v in optimizer.state[weight].items() if isinstance(v, torch.Tensor)}
    # Its tables of 256 levels are shared by all weights.
    measured = sum(v.nbytes for k, v in kept.items() if not k.startswith("qmap"))

    assert STATE_BYTES[name] * weight.numel() == pytest.approx(measured, rel=0.01)
