import json
from itertools import pairwise

import pytest

from regionroute.config.run import load_config
from regionroute.errors import UserError
from train.engine.engine import engine_settings, learning_rate_factor, merged


def factors(*overrides, steps=10):
    config = load_config(None, [f"train.steps={steps}", *overrides])
    factor = learning_rate_factor(config)
    return [factor(step) for step in range(steps + 1)]


def test_constant_after_the_warm_up():
    assert factors("optim.warmup=4") == [0.25, 0.5, 0.75, *[1.0] * 8]


def test_linear_and_cosine_fall_to_zero():
    linear = factors("optim.schedule=linear", "optim.warmup=2")
    assert linear[:3] == [0.5, 1.0, 1.0]
    assert linear[6] == pytest.approx(0.5)
    assert linear[-1] == 0
    cosine = factors("optim.schedule=cosine")
    assert cosine[0] == 1
    assert cosine[5] == pytest.approx(0.5)
    assert cosine[-1] == pytest.approx(0)
    assert all(a > b for a, b in pairwise(cosine))


def test_a_warm_up_longer_than_the_run_is_no_error():
    assert factors("optim.schedule=cosine", "optim.warmup=20")[-1] == pytest.approx(11 / 20)


def test_settings_share_the_global_batch():
    config = load_config(None, ["train.global_batch=12", "train.accumulation=2"])
    settings = engine_settings(config, 3, 1000)
    assert settings["train_batch_size"] == 12
    assert settings["train_micro_batch_size_per_gpu"] == 2
    assert settings["gradient_accumulation_steps"] == 2
    assert settings["zero_optimization"]["reduce_bucket_size"] == 1000
    with pytest.raises(UserError, match=r"cannot be shared by 4 processes .* multiple of 8"):
        engine_settings(config, 4, 1000)


def test_a_deepspeed_file_is_merged_over_ours(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}, "wall_clock_breakdown": True}))
    config = load_config(None, [f"train.deepspeed={path}"])
    settings = engine_settings(config, 1, 7)
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["reduce_bucket_size"] == 7
    assert settings["wall_clock_breakdown"] is True


def test_keys_left_to_auto_are_ours(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"train_batch_size": "auto", "gradient_clipping": "auto"}')
    config = load_config(None, [f"train.deepspeed={path}", "optim.clip=0.5"])
    assert engine_settings(config, 1, 7)["gradient_clipping"] == 0.5


@pytest.mark.parametrize(
    "zero",
    ["auto", {"stage": "auto", "offload_param": "auto", "stage3_max_live_parameters": "auto"}],
)
def test_zero_keys_left_to_auto_are_ours(tmp_path, zero):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    ours = load_config(None, ["train.zero_stage=2"])
    config = load_config(None, [f"train.deepspeed={path}", "train.zero_stage=2"])
    assert engine_settings(config, 1, 7) == engine_settings(ours, 1, 7)


def test_an_unknown_stage_is_refused(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 7}}))
    with pytest.raises(UserError, match=r"ds\.json: zero_optimization\.stage must be 0, 1, 2 or 3"):
        engine_settings(load_config(None, [f"train.deepspeed={path}"]), 1, 7)


def test_merging_keeps_both_sides_of_nested_settings():
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"c": 4}, "e": 5}) == {
        "a": {"b": 1, "c": 4},
        "d": 3,
        "e": 5,
    }
