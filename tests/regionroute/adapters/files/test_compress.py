"""Experts cut to a lower rank, and rounded."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from regionroute.adapters import (
    SimilarityRouter,
    adapter_layers,
    adapter_parameters,
    inject,
    load_experts,
    read_registry,
    save_experts,
)
from regionroute.adapters.files.compress import compress, truncated
from regionroute.adapters.files.export import expert_names
from regionroute.errors import UserError
from regionroute.files import write_json

FILE = "pytorch_lora_weights.safetensors"


def adapted(flux, shared_rank=2, router=None):
    generator = torch.Generator().manual_seed(3)
    inject(
        flux, "styleexpert", 3, 4, 6.0, shared_rank=shared_rank, router=router, generator=generator
    )
    with torch.no_grad():
        for parameter in adapter_parameters(flux):
            parameter.normal_(0, 0.1, generator=generator)
    return flux


@pytest.fixture(params=[0, 2], ids=["alone", "with a shared expert"])
def saved(request, make_flux, tmp_path):
    flux, folder = adapted(make_flux(), request.param), tmp_path / "experts"
    save_experts(folder, flux, expert_names(3), base_name="tiny", base_fingerprint="abc")
    return flux, folder


def loaded(make_flux, folder):
    flux = make_flux()
    load_experts(folder, SimpleNamespace(name="x", fingerprint="abc", transformer=flux))
    return adapter_layers(flux)


def update(layer, expert):
    return layer.lora_B[expert] @ layer.lora_A[expert] * (layer.alpha / layer.rank)


def test_truncation_is_the_svds():
    torch.manual_seed(0)
    a, b = torch.randn(6, 20), torch.randn(9, 6)
    low_a, low_b = truncated(a, b, 2)
    u, s, vh = torch.linalg.svd(b @ a)
    torch.testing.assert_close(low_b @ low_a, (u[:, :2] * s[:2]) @ vh[:2], rtol=0, atol=1e-4)
    assert (low_a.shape, low_b.shape) == ((2, 20), (9, 2))


def test_experts_of_a_lower_rank_load_and_are_the_best_of_it(saved, make_flux, tmp_path):
    flux, folder = saved
    changes = compress(folder, tmp_path / "small", torch.float32, 3)
    registry = read_registry(tmp_path / "small")
    assert (registry.rank, registry.alpha, registry.extra["trained_rank"]) == (3, 4.5, 4)
    assert "| rank in training | 4 |" in (tmp_path / "small" / "README.md").read_text()
    before, after = adapter_layers(flux), loaded(make_flux, tmp_path / "small")
    assert all(0.05 < value < 0.5 for value in changes.values())
    for name, layer in before.items():
        low = after[name]
        assert (low.rank, low.shared_rank) == (3, layer.shared_rank)
        error = torch.linalg.matrix_norm(update(layer, 1) - update(low, 1))
        least = torch.linalg.svdvals(update(layer, 1).detach())[3]  # what rank 3 cannot hold
        torch.testing.assert_close(error, least, rtol=1e-3, atol=1e-5)
        if layer.shared_rank:
            assert torch.equal(low.shared_B, layer.shared_B)


def test_float8_keeps_rank_and_all_else(saved, make_flux, tmp_path):
    _, folder = saved
    (folder / "style_encoder").mkdir()
    (folder / "style_encoder" / "x.json").write_text("{}")
    before = read_registry(folder)
    scored = before.model_copy(update={"extra": before.extra | {"metrics": {"success": 1.0}}})
    write_json(folder / "experts.json", scored.model_dump(by_alias=True))
    changes = compress(folder, tmp_path / "small", torch.float8_e4m3fn)
    assert all(0.01 < value < 0.05 for value in changes.values())
    state = load_file(tmp_path / "small" / "expert-00" / FILE)
    assert {x.dtype for x in state.values()} == {torch.float8_e4m3fn}
    assert (tmp_path / "small" / "style_encoder" / "x.json").read_text() == "{}"
    assert read_registry(tmp_path / "small") == before  # the scores were of the old experts
    loaded(make_flux, tmp_path / "small")
    compress(tmp_path / "small", tmp_path / "again", torch.float8_e4m3fn)
    again = load_file(tmp_path / "again" / "expert-00" / FILE)
    assert all(torch.equal(again[key].float(), x.float()) for key, x in state.items())


def test_learned_routing_survives(make_flux, tmp_path):
    flux = adapted(make_flux(), 2, lambda: SimilarityRouter(6, 3, 2))
    folder = tmp_path / "experts"
    save_experts(folder, flux, expert_names(3), base_name="tiny", base_fingerprint="abc")
    compress(folder, tmp_path / "small", torch.float8_e4m3fn, 2)
    for name, layer in loaded(make_flux, tmp_path / "small").items():
        gate = adapter_layers(flux)[name].router.gate.weight
        torch.testing.assert_close(layer.router.gate.weight, gate, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("rank", "taken", "message"),
    [
        (5, False, "rank 5: the experts have rank 4"),
        (0, False, "rank 0"),
        (2, True, "not empty"),
    ],
)
def test_mistakes(saved, tmp_path, rank, taken, message):
    _, folder = saved
    out = tmp_path / "out"
    if taken:
        shutil.copytree(folder, out)
    with pytest.raises(UserError, match=message):
        compress(folder, out, torch.float16, rank)
    assert out.exists() == taken


def test_a_damaged_expert_leaves_nothing(saved, tmp_path):
    _, folder = saved
    path = folder / "expert-01" / FILE
    with safe_open(path, "pt") as file:
        header = file.metadata()
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    layer = next(iter(state)).split(".lora_")[0]
    less = {key: x for key, x in state.items() if not key.startswith(f"{layer}.lora_")}
    save_file(less, path, header)
    with pytest.raises(UserError, match=r"expert-01.*(layers|weights)"):
        compress(folder, tmp_path / "small", torch.float16)
    with pytest.raises(UserError, match="name one outside"):
        compress(folder, folder / "small", torch.float16)
    assert not list(tmp_path.glob("*small*"))
    assert not (folder / "small").exists()
