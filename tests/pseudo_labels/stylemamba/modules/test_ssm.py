"""The scan: against the loop, closed forms, and the published reference's arithmetic."""

import sys
import types

import pytest
import torch

from pseudo_labels.stylemamba.modules import ssm
from pseudo_labels.stylemamba.modules.scan import scan_in_place
from pseudo_labels.stylemamba.modules.ssm import selective_scan
from regionroute.errors import UserError

LENGTHS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 37, 64, 100, 1000, 5000)


def inputs(batch, length, channels, states=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    delta = torch.rand((batch, length, channels), generator=generator, dtype=dtype) * 0.1 + 1e-3
    rates = -torch.arange(1, states + 1, dtype=dtype).repeat(channels, 1)
    tensors = [normal(batch, length, channels), delta, rates, normal(batch, length, states)]
    tensors += [normal(batch, length, states), normal(channels)]
    return [tensor.requires_grad_() for tensor in tensors]


def close(a, b, tolerance=1e-5):
    """Equal within the tolerance, in units of the largest value."""
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=1)) < tolerance


@pytest.mark.parametrize("length", LENGTHS)
def test_the_associative_scan_is_the_loop_with_gradients(length):
    tensors = inputs(2, length, 3)
    weights = torch.randn(2, length, 3, generator=torch.Generator().manual_seed(1))
    results = {}
    for method, elements in (("loop", None), ("associative", None), ("chunks", 2 * length * 16)):
        name = "associative" if method == "chunks" else method
        y = selective_scan(*tensors, method=name, elements=elements)
        results[method] = (y, *torch.autograd.grad((y * weights).sum(), tensors))
    for method in ("associative", "chunks"):
        for ours, loops in zip(results[method], results["loop"], strict=True):
            assert close(ours, loops)


@pytest.mark.parametrize("span", [1024, 4, 1])
def test_gradients_are_those_of_finite_differences(span, monkeypatch):
    monkeypatch.setattr(ssm, "_SPAN", span)
    tensors = inputs(2, 6, 3, states=2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, method="associative"), tensors)


@pytest.mark.parametrize("length", [1, 2, 7, 100, 5000])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_constant_coefficients_have_a_closed_form(length, decay):
    whole = torch.ones((length, 2), dtype=torch.float64)
    h = scan_in_place(decay * whole, 0.5 * whole)
    powers = torch.arange(1, length + 1, dtype=torch.float64)
    expected = 0.5 * (1 - decay**powers) / (1 - decay)
    torch.testing.assert_close(h[:, 0], expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("length", [1, 2, 3, 6, 15, 16, 17, 32, 33, 64, 300])
def test_backwards_is_forwards_of_the_reversed(length):
    generator = torch.Generator().manual_seed(length)
    decay, drive = torch.rand((2, length, 4), generator=generator)
    kept = decay.clone()
    forwards = scan_in_place(decay.flip(0), drive.flip(0))  # flip copies
    torch.testing.assert_close(scan_in_place(decay, drive, reverse=True), forwards.flip(0))
    assert torch.equal(decay, kept)


def test_strong_decay_does_not_overflow():
    x, _, A, B, C, D = inputs(1, 2000, 2)
    delta = torch.full((1, 2000, 2), 50.0)  # exp of the summed exponents would be 0 / 0
    y = selective_scan(x, delta, A, B, C, D)
    assert torch.isfinite(y).all()
    assert close(y, selective_scan(x, delta, A, B, C, D, method="loop"))


@pytest.mark.parametrize(("length", "channels"), [(256, 8), (256, 64), (5000, 64)])
def test_memory_does_not_grow_with_channels_or_tokens(length, channels, monkeypatch):
    monkeypatch.setattr(ssm, "_SPAN", 256)
    x = torch.empty(1, length, channels)
    chunks = ssm._Chunks(x, 16, 256 * 16 * 2, buffers=1)
    assert [part.stop - part.start for part in chunks.parts] == [2] * (channels // 2)
    assert len(chunks.spans) == -(-length // 256)
    held = chunks.views(x[0, : chunks.spans[0].stop, None, chunks.parts[0]])[0]
    assert held.shape == (257, 1, 2, 16)
    assert held.untyped_storage().nbytes() == 4 * 257 * 2 * 16


def test_the_state_is_float32_under_autocast_and_for_half_precision():
    tensors = [t.detach() for t in inputs(1, 300, 4)]
    exact = selective_scan(*tensors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(selective_scan(*tensors), exact)
    halves = [t.bfloat16() for t in tensors]
    y = selective_scan(*halves)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, selective_scan(*[t.float() for t in halves]).bfloat16())


def published_reference(u, delta, A, B, C):
    """selective_scan_ref of state-spaces/mamba (Apache-2.0) with our options: tokens last."""
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    drive = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    x, ys = A.new_zeros((u.shape[0], *A.shape)), []
    for i in range(u.shape[2]):
        x = decay[:, :, i] * x + drive[:, :, i]
        ys.append(torch.einsum("bdn,bn->bd", x, C[:, :, i]))
    return torch.stack(ys, 2)


def test_the_fused_kernel_is_called_in_its_own_layout(monkeypatch):
    interface = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = published_reference
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    ssm._import_kernel.cache_clear()
    try:
        x, delta, A, B, C, D = inputs(2, 50, 3)
        y = ssm._run_kernel(x, delta, A, B, C) + D * x
        assert close(y, selective_scan(x, delta, A, B, C, D, method="loop"))
    finally:
        monkeypatch.undo()
        ssm._import_kernel.cache_clear()


def test_the_fused_kernel_says_what_it_needs():
    with pytest.raises(UserError, match=r"mamba-ssm|GPU"):
        selective_scan(*inputs(1, 4, 2), method="fused")


def test_wrong_shapes_and_methods_are_named():
    x, delta, A, B, C, D = inputs(1, 4, 2)
    with pytest.raises(ValueError, match=r"B is \[1, 3, 16\], expected \[1, 4, 16\]"):
        selective_scan(x, delta, A, B[:, :3], C, D)
    with pytest.raises(ValueError, match="unknown method 'lop'"):
        selective_scan(x, delta, A, B, C, D, method="lop")
