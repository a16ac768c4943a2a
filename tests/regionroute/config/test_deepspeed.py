import json

import pytest

from regionroute.config.deepspeed import read_deepspeed_file, zero_section, zero_stage
from regionroute.config.run import load_config
from regionroute.errors import UserError


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"train_batch_size": 4}', "remove 'train_batch_size' and set train.global_batch instead"),
        ('{"bf16": {"enabled": true}}', "remove 'bf16' and set base.dtype instead"),
        ("{", "this is not JSON"),
        ('{"a": ' * 500 + "1" + "}" * 500, "this JSON cannot be read"),
        ('{"a": ' * 100_000, "this JSON cannot be read"),
        ("[1]", "must hold a JSON object"),
        ('{"zero_optimization": 2}', "zero_optimization must be a JSON object"),
        ('{"zero_optimization": {"stage": "3"}}', "stage must be 0, 1, 2 or 3, not '3'"),
        ('{"zero_optimization": {"stage": 7}}', "stage must be 0, 1, 2 or 3, not 7"),
        ('{"zero_optimization": {"stage": true}}', "stage must be 0, 1, 2 or 3, not True"),
        ('{"zero_optimization": {"offload_param": "cpu"}}', "offload_param must be a JSON object"),
        (
            '{"zero_optimization": {"offload_optimizer": false}}',
            "offload_optimizer must be a JSON object",
        ),
        (
            '{"zero_optimization": {"offload_param": {"device": "gpu"}}}',
            "offload_param.device must be one of none, cpu, nvme, not 'gpu'",
        ),
        ('{"steps_per_print": "x"}', "steps_per_print must be a whole number from 1, not 'x'"),
        *(
            (
                f'{{"zero_optimization": {{"stage3_max_live_parameters": {value}}}}}',
                f"stage3_max_live_parameters must be a whole number, not {shown}",
            )
            for value, shown in [
                ('"many"', "'many'"),
                ("1e999", "inf"),
                ("NaN", "nan"),
                ("1.5", "1.5"),
                ("-1", "-1"),
                ("true", "True"),
            ]
        ),
        (None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, text, sentence):
    path = tmp_path / "ds.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=rf"train\.deepspeed: .*ds\.json.*{sentence}"):
        zero_stage(load_config(None, [f"train.deepspeed={path}"]))


def test_what_another_trainer_fills_in_counts_as_absent(tmp_path):
    path = tmp_path / "ds.json"
    zero = {"stage": "auto", "offload_param": "auto", "stage3_max_live_parameters": "auto"}
    path.write_text(json.dumps({"zero_optimization": {**zero, "x": 1}, "fp16": "auto"}))
    assert read_deepspeed_file(str(path)) == {"zero_optimization": {"x": 1}}
    path.write_text('{"zero_optimization": "auto"}')
    assert zero_stage(load_config(None, [f"train.deepspeed={path}", "train.zero_stage=2"])) == 2


def test_the_file_decides_on_the_stage(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert zero_stage(load_config(None, [f"train.deepspeed={path}"])) == 3
    assert zero_stage(load_config(None, ["train.zero_stage=1"])) == 1
    assert zero_section(load_config(None, ["train.zero_stage=1"])) == {}
