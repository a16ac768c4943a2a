"""The private names of libraries that we use are there and mean what we take them for."""

import subprocess
import sys
from typing import Any

import deepspeed
import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from diffusers.models.transformers.transformer_flux2 import (
    Flux2AttnProcessor,
    Flux2ParallelSelfAttnProcessor,
)
from torch import nn
from torch.utils.flop_counter import flop_registry
from transformers import T5TokenizerFast

from regionroute import compat
from train.engine import distributed


def test_it_imports_no_library() -> None:
    code = "import sys, regionroute.compat; print({'torch', 'diffusers'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_all_names_can_be_imported() -> None:
    for name in compat.__all__:
        assert callable(getattr(compat, name)), name
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = compat.absent


@pytest.mark.parametrize("name", compat.ATTENTION_OPERATORS)
def test_torch_has_the_attention_operator(name: str) -> None:
    operators = compat.attention_operators()
    assert hasattr(operators, name), f"torch {torch.__version__} has no operator aten::{name}"
    returns = [value.name for value in getattr(operators, name).default._schema.returns]
    if name.endswith("_backward"):
        assert returns[:3] in (["grad_query", "grad_key", "grad_value"], ["", "", ""]), returns
        assert len(returns) in (3, 4)
    else:
        assert len(returns) >= 2, returns
        assert returns[1] in ("logsumexp", "log_sumexp"), returns


def test_a_backward_pass_is_noticed() -> None:
    seen = []
    x = torch.ones(1, requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: seen.append(compat.in_backward_pass()))
    assert not compat.in_backward_pass()
    y.backward()
    assert seen == [True]
    assert not compat.in_backward_pass()


def test_fake_tensors_share_a_storage_key_with_their_views_only() -> None:
    with compat.FakeTensorMode():
        one, other = torch.ones(4), torch.ones(4)
        keys = [compat.storage_key(t.untyped_storage()) for t in (one, one[1:], other)]
    assert keys[0] == keys[1] != keys[2]


def test_a_dispatch_mode_sees_operators_that_the_flop_counter_knows() -> None:
    seen = []

    class Watch(compat.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(compat.operator_of(function))
            return function(*args, **(kwargs or {}))

    with Watch():
        torch.ones(2, 3) @ torch.ones(3, 2)
    assert torch.ops.aten.mm in seen
    assert torch.ops.aten.mm in flop_registry


def test_tree_leaves_finds_tensors_in_nested_outputs() -> None:
    a, b = torch.ones(1), torch.ones(2)
    assert [leaf.shape for leaf in compat.tree_leaves((a, [b, {"c": a}]))] == [(1,), (2,), (1,)]


def test_many_tensors_are_averaged_and_set_at_once() -> None:
    targets, ends = [torch.zeros(2), torch.zeros(3, 1)], [torch.ones(2), torch.full((3, 1), 4.0)]
    compat.lerp_all(targets, ends, 0.25)
    assert [t.flatten()[0].item() for t in targets] == [0.25, 1.0]
    compat.set_all(targets, ends)
    assert all(torch.equal(t, e) for t, e in zip(targets, ends, strict=True))


@pytest.mark.parametrize(
    "kind", [FluxAttnProcessor, Flux2AttnProcessor, Flux2ParallelSelfAttnProcessor]
)
def test_attention_processors_say_what_they_compute_with(kind: type) -> None:
    assert compat.uses_default_attention(kind())
    for name in ("_attention_backend", "_parallel_config"):
        changed = kind()
        setattr(changed, name, "another")
        assert not compat.uses_default_attention(changed)


def test_diffusers_records_another_attention_backend_in_the_processor(tiny_base) -> None:
    from regionroute.models.loading import load_base

    transformer = load_base(str(tiny_base)).transformer
    processors = transformer.attn_processors.values()
    assert all(map(compat.uses_default_attention, processors))
    transformer.set_attention_backend("native")
    assert not any(map(compat.uses_default_attention, transformer.attn_processors.values()))


def test_t5_replaces_characters_before_it_splits_a_text() -> None:
    from regionroute.models.tokenizers import build_t5_tokenizer

    folded = build_t5_tokenizer(["dog"], 8)
    vocabulary = [*folded.get_vocab()]
    vocabulary.sort(key=folded.get_vocab().get)
    plain = T5TokenizerFast(vocab=[(piece, -1.0) for piece in vocabulary], extra_ids=0)
    assert plain("DÓG").input_ids != plain("dog").input_ids
    assert folded("DÓG").input_ids == folded("dog").input_ids


def test_parameters_that_are_whole() -> None:
    parameter = nn.Parameter(torch.ones(2, 3))
    assert not compat.is_partitioned(parameter)
    assert compat.own_part(parameter).data_ptr() == parameter.data_ptr()
    assert compat.whole_size(parameter) == (2, 3)
    compat.gather_again([parameter])


def test_deepspeed_marks_the_parameters_that_it_partitions() -> None:
    settings = {
        "train_batch_size": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 100},
    }
    distributed.start()
    try:
        layer = torch.nn.Linear(3, 2, bias=False)
        weight = layer.weight.detach().clone()
        deepspeed.zero.Init(module=layer, config_dict_or_path=settings)
        parameter: Any = layer.weight
        assert compat.is_partitioned(parameter), "no ds_tensor"
        assert tuple(compat.whole_size(parameter)) == (2, 3), "no ds_shape"
        assert int(parameter.ds_numel) == 6
        assert hasattr(parameter, "ds_id")
        assert torch.equal(compat.own_part(parameter)[:6], weight.flatten())
        parameter.all_gather([parameter])
        assert parameter.data.shape == (2, 3)
        compat.own_part(parameter).mul_(2)
        compat.gather_again([parameter])
        changed = "partition and all_gather do not bring changes back"
        assert torch.equal(parameter.data.cpu(), 2 * weight), changed
    finally:
        distributed.stop()


def test_deepspeed_has_the_table_of_operators() -> None:
    assert compat.skip_shared_memory_op(deepspeed)
    assert not compat.skip_shared_memory_op(object())
