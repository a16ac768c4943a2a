"""Random weights: deterministic, of the right scale, complete, and loadable by load_base."""

import pytest
import torch
from safetensors.torch import load_file

from regionroute.models.loading import fingerprint, load_base, load_skeleton
from regionroute.rehearsal import weights
from regionroute.rehearsal.bases import Shape, write_configurations

SHAPE = Shape(32, 64, 2)


def made(folder, name="tiny-klein", quantize=None, seed=0):
    write_configurations(name, folder, SHAPE, quantize)
    weights.write_weights(folder, quantize, seed)
    return folder


@pytest.fixture(params=["tiny", "tiny-klein"])
def name(request):
    return request.param


def test_a_written_base_loads_and_computes_finite_numbers(name, tmp_path):
    base = load_base(str(made(tmp_path, name)), torch.bfloat16)
    states, _ = base.encode_prompts(["make the dog pixel-art"])
    latents = base.encode_images(torch.rand(1, 3, 32, 32))
    assert states.isfinite().all()
    assert latents.isfinite().all()
    assert 0.1 < latents.float().std() < 10


def test_the_seed_alone_decides(tmp_path):
    one, same, other = (
        load_file(
            made(tmp_path / str(i), seed=seed) / "transformer" / f"{weights.NAME}.safetensors"
        )
        for i, seed in enumerate((1, 1, 2))
    )
    assert all(torch.equal(one[key], same[key]) for key in one)
    key = "x_embedder.weight"
    assert not torch.equal(one[key], other[key])
    assert one[key].float().std() == pytest.approx(one[key].shape[1] ** -0.5, rel=0.1)


def test_shards_are_what_one_file_is_and_those_there_are_kept(tmp_path, monkeypatch):
    whole = load_base(str(made(tmp_path / "whole")), torch.bfloat16).transformer.state_dict()
    monkeypatch.setattr(weights, "SHARD", 20_000)
    folder = made(tmp_path / "parts") / "transformer"
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    before = files[0].stat().st_mtime_ns
    files[1].unlink()
    weights.write_weights(folder.parent, None)
    assert files[1].is_file()
    assert files[0].stat().st_mtime_ns == before
    parts = load_base(str(folder.parent), torch.bfloat16).transformer.state_dict()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_sizes_are_those_of_the_files(name, tmp_path):
    made(tmp_path, name)
    for part, size in weights.stored_sizes(tmp_path, None).items():
        files = sum(f.stat().st_size for f in (tmp_path / part).glob("*.safetensors"))
        assert size < files < size + 40_000  # headers


def test_a_transformer_in_nf4_is_read_as_it_was_written(name, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = made(tmp_path, name, "nf4")
    base = load_base(str(folder), torch.bfloat16)
    assert base.quantized == "nf4"
    assert base.fingerprint == fingerprint(load_skeleton(str(folder)))
    layer = base.transformer.transformer_blocks[0].attn.to_q
    from bitsandbytes.functional import dequantize_4bit

    plain = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    assert plain.shape == (layer.out_features, layer.in_features)
    assert plain.std() == pytest.approx(layer.in_features**-0.5, rel=0.15)
    inputs = torch.randn(3, layer.in_features).to(torch.bfloat16)
    wanted = inputs.float() @ plain.T + layer.bias.float() if layer.bias is not None else None
    wanted = inputs.float() @ plain.T if wanted is None else wanted
    torch.testing.assert_close(layer(inputs).float(), wanted, atol=0.05, rtol=0.05)
    stored = weights.stored_sizes(folder, "nf4")["transformer"]
    assert stored < weights.stored_sizes(folder, None)["transformer"]
