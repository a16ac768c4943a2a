"""Loading a base: any folder or hub id through one function, and one sentence when it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
import torch
from diffusers import FluxKontextPipeline
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file, save_file

from regionroute.errors import UserError
from regionroute.models import embedded as nano
from regionroute.models import source
from regionroute.models.backbone import Backbone
from regionroute.models.loading import load_base
from regionroute.models.source import BaseSettings, read_settings
from regionroute.models.tiny import build_tiny

PROMPTS = ["make the dog in pixel-art style, keep other area unchanged", "zebra"]


@pytest.fixture
def broken(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the base to damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def test_everything_is_frozen_and_in_evaluation_mode(tiny_backbone: Backbone) -> None:
    for network in tiny_backbone.networks():
        assert not network.training
        assert not any(weight.requires_grad for weight in network.parameters())


def test_text_states_equal_the_stock_pipelines(
    tiny_backbone: Backbone, stock: FluxKontextPipeline
) -> None:
    with torch.no_grad():
        states, pooled, _ = stock.encode_prompt(PROMPTS, max_sequence_length=32)
    ours = tiny_backbone.encode_prompts(PROMPTS)
    torch.testing.assert_close(ours, (states, pooled))
    assert ours[0].shape == (2, 32, 32)


def test_dtype_reaches_every_network(tiny_base: Path) -> None:
    base = load_base(str(tiny_base), dtype=torch.bfloat16)
    assert {network.dtype for network in base.networks()} == {torch.bfloat16}
    assert base.encode_images(torch.rand(1, 3, 8, 8)).dtype == torch.bfloat16
    assert base.decode_latents(torch.zeros(1, 4, 4, 4)).dtype == torch.float32


def test_settings_come_from_the_folder_or_are_kontexts(broken: Path) -> None:
    assert load_base(str(broken)).settings == BaseSettings(2, 3.5, 32, 32)
    (broken / "regionroute.json").unlink()
    assert load_base(str(broken)).settings == BaseSettings(28, 3.5, 512, 1024)


def test_fingerprint_tells_architectures_apart(
    tiny_backbone: Backbone, tiny_plain: Backbone, tmp_path: Path
) -> None:
    assert tiny_backbone.fingerprint != tiny_plain.fingerprint
    other_weights = load_base(str(build_tiny(tmp_path / "other", seed=9)))
    assert other_weights.fingerprint == tiny_backbone.fingerprint


def test_random_bases_follow_their_seed(tiny_base: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    again, other = build_tiny(tmp_path / "a"), build_tiny(tmp_path / "b", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    weights = [
        load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
        for folder in (tiny_base, again, other)
    ]
    name = "transformer_blocks.0.attn.to_q.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((32, 32), (32, 32)), ((500, 500), (32, 32)), ((50, 200), (16, 64)), ((300, 200), (40, 28))],
)
def test_fit_size_keeps_area_and_aspect(
    tiny_backbone: Backbone, size: tuple[int, int], fitted: tuple[int, int]
) -> None:
    assert tiny_backbone.fit_size(*size) == fitted
    assert all(side % 4 == 0 for side in fitted)


def test_extreme_aspect_is_refused(tiny_backbone: Backbone) -> None:
    assert tiny_backbone.fit_size(16, 1) == (128, 8)
    with pytest.raises(UserError, match="10x1000: one side is more than 16 times"):
        tiny_backbone.fit_size(1000, 10)


def test_embedded_name_is_the_packaged_folder(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nano, "nano_folder", lambda name: tiny_base)
    assert load_base("nano").settings.resolution == 32


def test_a_package_without_nano_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano.resources, "files", lambda name: tmp_path)
    with pytest.raises(UserError, match="reinstall the package"):
        nano.nano_folder()


def test_a_folder_wins_over_a_hub_id(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_base, tmp_path / "someone" / "kontext")
    monkeypatch.chdir(tmp_path)
    assert load_base("someone/kontext").settings.resolution == 32


def drop_a_weight(base: Path) -> None:
    file = base / "text_encoder_2" / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.final_layer_norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def write_index(base: Path, text: str) -> None:
    (base / "model_index.json").write_text(text)


def test_the_old_name_of_refine_crop_in_a_saved_base_is_read(broken: Path) -> None:
    file = broken / "regionroute.json"
    for key in ("closer", "refine_crop"):
        file.write_text(json.dumps({key: True}))
        assert read_settings(broken).refine_crop is True


def quantized(config: Path) -> None:
    """Mark a network as diffusers and transformers mark one that bitsandbytes packed."""
    values = json.loads(config.read_text())
    values["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config.write_text(json.dumps(values))


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda base: (base / "model_index.json").unlink(), "no model_index.json"),
    (lambda base: write_index(base, '{"_class_name": "FluxPipeline"}'), "this is a FluxPipeline"),
    (lambda base: write_index(base, "{"), "model_index.json: not valid JSON"),
    (lambda base: write_index(base, "[]"), "must hold a JSON object"),
    (lambda base: shutil.rmtree(base / "vae"), "vae/config.json is missing"),
    (
        lambda base: quantized(base / "transformer/config.json"),
        "its transformer is stored in bitsandbytes; give the base in full precision",
    ),
    (lambda base: quantized(base / "text_encoder_2/config.json"), "its text_encoder_2 is stored"),
    (
        lambda base: (base / "transformer/diffusion_pytorch_model.safetensors").unlink(),
        "transformer has no weights",
    ),
    (
        lambda base: (base / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"x" * 99),
        "damaged",
    ),
    (drop_a_weight, "text_encoder_2: its weights lack encoder.final_layer_norm.weight"),
    (lambda base: shutil.rmtree(base / "tokenizer_2"), "tokenizer_2 has no tokenizer.json"),
    (lambda base: (base / "tokenizer_2/tokenizer.json").write_text("{"), "damaged"),
    (lambda base: (base / "tokenizer/tokenizer.json").write_text("{}"), "damaged"),
    (lambda base: shutil.rmtree(base / "scheduler"), "scheduler has no scheduler_config.json"),
    (
        lambda base: (base / "regionroute.json").write_text('{"step": 3}'),
        "unknown key 'step'; did you mean steps",
    ),
    (lambda base: (base / "regionroute.json").write_text('{"steps": "3"}'), "positive number"),
    (lambda base: (base / "regionroute.json").write_text('{"steps": true}'), "positive number"),
    (lambda base: (base / "regionroute.json").write_text('{"resolution": 0}'), "positive number"),
    (lambda base: (base / "regionroute.json").write_text('{"refine_crop": 1}'), "true or false"),
    (
        lambda base: (base / "regionroute.json").write_text('{"max_text_length": 900}'),
        "at most 512",
    ),
]


@pytest.mark.parametrize(("damage", "sentence"), DAMAGES)
def test_a_damaged_folder_is_named_in_one_sentence(
    broken: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    damage(broken)
    with pytest.raises(UserError, match=sentence) as error:
        load_base(str(broken))
    assert str(broken) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["nanu", "./nowhere", "/no/such/base", "a/b/c", "nowhere/"])
def test_what_is_neither_folder_nor_hub_id_never_reaches_the_hub(spec: str) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_base(spec)


def test_a_file_is_not_a_base(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").touch()
    with pytest.raises(UserError, match="this is a file"):
        load_base(str(tmp_path / "x.safetensors"))


def hub_error(kind: type[Exception]) -> Exception:
    request = httpx2.Request("GET", "https://hub.invalid/x")
    return kind("401 Client Error", response=httpx2.Response(401, request=request))


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (
            hub_error(GatedRepoError),
            "licence has to be accepted.*https://huggingface.co/someone/kontext.*hf auth login",
        ),
        (hub_error(RepositoryNotFoundError), "neither a folder here nor a repository"),
        (hub_error(RemoteEntryNotFoundError), "lacks files of a FluxKontextPipeline"),
        (LocalEntryNotFoundError("offline"), "the hub cannot be reached"),
        (OSError("something else\nsecond line"), "could not be fetched.*: something else"),
    ],
)
def test_hub_failures_are_explained(
    failure: Exception, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(repository: str, file: str, **options: object) -> None:
        raise failure

    monkeypatch.setattr(source, "hf_hub_download", fail)
    with pytest.raises(UserError, match=sentence) as error:
        load_base("someone/kontext")
    assert "someone/kontext" in str(error.value)
    assert "\n" not in str(error.value)


def test_offline_means_one_sentence_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the hub cannot be reached"):
        load_base("someone/kontext")


def test_a_hub_base_of_another_class_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_index(tmp_path, '{"_class_name": "FluxPipeline"}')
    monkeypatch.setattr(
        source, "hf_hub_download", lambda repository, file, **options: str(tmp_path / file)
    )
    with pytest.raises(UserError, match="FluxPipeline"):
        load_base("someone/flux")


def test_loading_prints_no_bars(tiny_base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_base(str(tiny_base))
    assert "it/s" not in capfd.readouterr().err


def test_model_index_names_the_real_classes(tiny_base: Path) -> None:
    index = json.loads((tiny_base / "model_index.json").read_text())
    parts = {key: value[1] for key, value in index.items() if isinstance(value, list)}
    assert parts["transformer"] == "FluxTransformer2DModel"
    assert parts["vae"] == "AutoencoderKL"
    assert parts["text_encoder"] == "CLIPTextModel"
    assert parts["text_encoder_2"] == "T5EncoderModel"
