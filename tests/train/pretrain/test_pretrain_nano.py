import shutil

import pytest
import torch
from diffusers import FluxKontextPipeline
from safetensors.torch import load_file

from pseudo_labels.bank.corpus import build_corpus
from regionroute.models.loading import load_base
from train.pretrain import base as nano_base
from train.pretrain.base import learning_rate
from train.pretrain.config import BaseTrainingConfig
from train.pretrain.run import main

SMALL = [
    "corpus.resolution=32",
    "corpus.held_out=2",
    "codec.latent_channels=4",
    "model.num_layers=1",
    "model.num_single_layers=1",
    "model.num_attention_heads=2",
    "model.attention_head_dim=16",
    "model.axes_dims_rope=[4, 4, 8]",
    "model.text_dim=32",
    "base.batch=4",
    "base.log_every=1",
    "base.save_every=2",
    "base.bfloat16=false",
    "threads=1",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_corpus(tmp_path_factory.mktemp("corpus"), scenes=8, size=32, workers=1)


def pretrain(corpus, output, steps, *more):
    settings = [
        f"corpus.manifest={corpus}",
        f"output={output}",
        f"base.steps={steps}",
        *SMALL,
        *more,
    ]
    return main(settings)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    assert pretrain(corpus, output, 4) == 0
    return output


def test_the_base_loads_by_our_loader_and_by_stock_diffusers(finished):
    backbone = load_base(str(finished / "base"))
    stock = FluxKontextPipeline.from_pretrained(finished / "base")

    assert backbone.settings.resolution == 32
    states, pooled = backbone.encode_prompts(["make the apple red"])
    assert states.shape == (1, 32, 32)
    assert pooled.shape == (1, 32)
    assert type(stock.vae).__name__ == "PatchCodec"
    tokens = backbone.tokenizer_2.tokenize("make the image in pixel-art style")
    assert sum("pixel-art" in token for token in tokens) == 1  # a style is one word


def test_a_transformer_stored_in_float8_is_the_same_but_for_rounding(corpus, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    assert pretrain(corpus, run, 4, "model.float8=true") == 0  # resumed at its end: saved again

    stored = load_file(run / "base" / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, weight in stored.items():
        assert weight.dtype == (torch.float16, torch.float8_e4m3fn)[weight.ndim == 2], name
    plain, small = (load_base(str(folder / "base")) for folder in (finished, run))
    assert small.fingerprint == plain.fingerprint
    rounded = small.transformer.state_dict()
    for name, weight in plain.transformer.state_dict().items():
        assert rounded[name].dtype == torch.float32
        torch.testing.assert_close(rounded[name], weight, rtol=2**-4, atol=2**-10)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(corpus, tmp_path, monkeypatch):
    # The schedule of four steps for both, so that ending at two is a stop and not another plan.
    plan = nano_base.learning_rate
    monkeypatch.setattr(
        nano_base,
        "learning_rate",
        lambda step, cfg: plan(step, cfg.model_copy(update={"steps": 4})),
    )
    for output, stops in ((tmp_path / "whole", (4,)), (tmp_path / "stopped", (2, 4))):
        for steps in stops:
            assert pretrain(corpus, output, steps) == 0

    whole, stopped = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["model"]
        for name in ("whole", "stopped")
    )
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_learning_rate_warms_up_holds_and_falls():
    cfg = BaseTrainingConfig(steps=100, warmup=10, decay=0.4, lr=1.0)
    rates = [learning_rate(step, cfg) for step in range(100)]

    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[59] == 1.0
    assert rates[80] == pytest.approx(0.5)
    assert rates[-1] < 0.05


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("base.step=5", "base.steps"),
        ("base.lr=-1", "base.lr"),
        ("corpus.manifest=nowhere/manifest.jsonl", "nowhere"),
        ("corpus.resolution=64", "corpus.resolution"),
    ],
)
def test_bad_settings_are_one_sentence(corpus, tmp_path, capsys, setting, message):
    status = main([f"corpus.manifest={corpus}", f"output={tmp_path}", *SMALL, setting])

    error = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert error[-1].startswith("error: ")
    assert message in error[-1]
