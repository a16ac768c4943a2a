import pytest
import torch

from regionroute.models.devices import fast_bfloat16


@pytest.mark.parametrize(
    ("found", "fast"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64"}, True),
    ],
)
def test_bfloat16_is_used_where_the_processor_has_it(monkeypatch, found, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert fast_bfloat16() is fast
