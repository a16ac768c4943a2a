"""The configurations that come with the repository."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

from regionroute.adapters import (
    SimilarityRouter,
    adapter_parameters,
    inject,
    read_registry,
    target_names,
)
from regionroute.config import io as config_io
from regionroute.config.io import known_keys
from regionroute.config.run import RunConfig, load_config
from regionroute.diffusion.families import family_of
from regionroute.models.embedded import nano_folder
from regionroute.planning.sizes import KONTEXT_PARTS
from train.engine.engine import engine_settings
from train.style_encoder.config import StyleEncoderConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RUNS = ["nano", "kontext", "kontext_released", "nano_by_example", "nano_photos_by_example"]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("processes", [1, 2, 8])
def test_a_configuration_loads_and_fits_the_usual_numbers_of_gpus(name, processes):
    config = load_config(str(CONFIGS / f"{name}.yaml"))
    assert engine_settings(config, processes, 1000)["train_batch_size"] >= 8


def test_kleins_configuration_is_for_one_gpu_and_fits_several():
    config = load_config(str(CONFIGS / "klein.yaml"))
    assert engine_settings(config, 1, 1000)["train_micro_batch_size_per_gpu"] == 1
    for processes in (2, 4, 8):
        rest = [f"train.accumulation={8 // processes}"]
        config = load_config(str(CONFIGS / "klein.yaml"), rest)
        assert engine_settings(config, processes, 1000)["train_batch_size"] == 8


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_the_deepspeed_files_name_their_stage(name):
    config = load_config(None, [f"train.deepspeed={CONFIGS / name}.json"])
    settings = engine_settings(config, 1, 1000)
    assert settings["zero_optimization"]["stage"] == int(name[-1])


def test_the_embedded_bases_configuration_shows_every_key():
    text = (CONFIGS / "nano.yaml").read_text()
    for key in known_keys(RunConfig):
        assert f"{key.split('.')[-1]}:" in text, key


def test_the_paper_and_the_release_differ_where_they_should():
    paper, released = (load_config(str(CONFIGS / f"{name}.yaml")) for name in RUNS[1:3])
    assert (paper.optim.lr, paper.train.steps) == (1e-4, 5000)
    assert (paper.supervision.focus, paper.supervision.cover) == (0.1, 0.2)
    assert (released.optim.lr, released.train.steps) == (1e-5, 10000)
    assert (released.supervision.focus, released.supervision.cover) == (0.1, 5e-5)
    assert (released.supervision.norm, released.supervision.tau) == ("selected", 0.1)
    for config in (paper, released):
        assert (config.experts.rank, config.train.global_batch) == (4, 8)
        assert (config.base.dtype, config.optim.name) == ("bfloat16", "adamw8bit")
        assert (config.optim.schedule, config.optim.warmup) == ("constant", 0)
        assert (config.flow.timesteps, config.flow.guidance) == ("uniform", 1)
    assert (paper.base.quantize, released.base.quantize) == (None, "nf4")
    assert (released.optim.weight_decay, released.optim.clip, released.seed) == (1e-4, 1, 0)


def test_the_small_cards_configuration_is_the_papers_in_four_bits_or_from_the_host():
    path = str(CONFIGS / "kontext_24gb.yaml")
    config = load_config(path)
    assert engine_settings(config, 1, 1000)["train_micro_batch_size_per_gpu"] == 1
    assert config.base.quantize == "nf4"
    rest = ["base.quantize=null", "train.zero_stage=3", "train.offload=all"]  # as its head says
    zero = engine_settings(load_config(path, rest), 1, 1000)["zero_optimization"]
    assert zero["offload_param"]["device"] == "cpu"
    paper = load_config(str(CONFIGS / "kontext.yaml"))
    same = ("experts", "flow", "supervision", "routing")
    assert all(getattr(config, name) == getattr(paper, name) for name in same)
    assert config.train.global_batch == paper.train.global_batch


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        *((name, "object") for name in ("kontext", "kontext_24gb", "kontext_released")),
        *((name, "object") for name in ("kontext_styleexpert", "klein", "nano_by_example")),
        ("nano", "image"),  # measured: the experts of the embedded bases paint better so
        ("nano_photos", "object"),
    ],
)
def test_the_prompt_inside_the_gates_is_the_one_of_training_on_large_bases(name, prompt):
    assert load_config(str(CONFIGS / f"{name}.yaml")).routing.prompt == prompt


def test_the_packaged_experts_are_those_of_the_configurations():
    base = nano_folder("nano-photos")
    registry, mixture = (read_registry(base / name) for name in ("experts", "experts_by_example"))
    by_name, by_example = (
        load_config(str(CONFIGS / f"{name}.yaml")).experts
        for name in ("nano_photos", "nano_photos_by_example")
    )
    assert by_name.dtype == by_example.dtype == "float8"
    assert by_name.targets == by_example.targets == registry.targets == mixture.targets
    # Each was trained further with the shared expert as part of its own.
    assert by_name.rank + by_name.shared_rank == registry.rank == registry.alpha
    assert registry.router is None
    assert (mixture.rank, mixture.alpha) == (by_example.rank, by_example.alpha)
    assert mixture.router is not None
    assert mixture.router.top_k == by_example.top_k
    assert mixture.shared_rank == by_example.shared_rank
    assert len(mixture.experts) == by_example.num_experts


def test_styleexpert_at_full_size_is_the_papers():
    config = load_config(str(CONFIGS / "kontext_styleexpert.yaml"))
    experts = config.experts
    assert (experts.router, experts.num_experts, experts.top_k) == ("similarity", 16, 2)
    assert (experts.rank, experts.alpha, experts.shared_rank) == (8, 16, 8)
    assert (config.optim.lr, config.train.steps) == (1e-4, 10000)
    assert (config.supervision.focus, config.supervision.cover) == (0, 0)
    for processes in (1, 2, 4):
        rest = [f"train.accumulation={4 // processes}"]
        config = load_config(str(CONFIGS / "kontext_styleexpert.yaml"), rest)
        settings = engine_settings(config, processes, 1000)
        assert settings["train_micro_batch_size_per_gpu"] == 1
        assert settings["train_batch_size"] == 4


MODULATION = ("norm1.linear", "norm1_context.linear", "norm.linear")


@pytest.mark.parametrize(
    ("shared_rank", "modulation", "millions"),
    [
        (0, False, 543.52), (8, False, 576.21), (16, False, 608.89), (32, False, 674.27),
        (64, False, 805.01), (0, True, 711.62), (8, True, 754.58), (16, True, 797.54),
        (32, True, 883.46),
    ],
)  # fmt: skip
def test_the_parameter_totals_of_styleexpert_in_the_docs(shared_rank, modulation, millions):
    experts = load_config(str(CONFIGS / "kontext_styleexpert.yaml")).experts
    heads = config_io.load_config(str(CONFIGS / "style_encoder.yaml"), (), StyleEncoderConfig).head
    style_dim = len(heads.levels) * heads.tokens * heads.width
    with torch.device("meta"):
        flux = FluxTransformer2DModel.from_config(KONTEXT_PARTS["transformer"])
    targets = [*family_of(flux).targets[experts.targets], *MODULATION * modulation]
    names = inject(
        flux, [name for name in target_names(flux, targets) if "transformer_blocks." in name],
        experts.num_experts, experts.rank, experts.alpha, shared_rank=shared_rank,
        router=lambda: SimilarityRouter(style_dim, experts.num_experts, experts.top_k),
    )  # fmt: skip
    assert len(names) == (494 if modulation else 418)
    total = sum(parameter.numel() for parameter in adapter_parameters(flux))
    assert round(total / 1e6, 2) == millions
    documented = (CONFIGS.parent / "docs" / "explanation" / "deviations.md").read_text()
    assert f"{millions:.2f}" in documented
    assert (
        f"{millions:.2f}" in (CONFIGS / "kontext_styleexpert.yaml").read_text() or not shared_rank
    )


@pytest.mark.parametrize(("name", "width"), [("nano_style_encoder", 192), ("style_encoder", 3072)])
def test_the_style_encoders_configurations_load(name, width):
    config = config_io.load_config(str(CONFIGS / f"{name}.yaml"), (), StyleEncoderConfig)
    assert len(config.head.levels) * config.head.tokens * config.head.width == width
    assert (config.tower.name is None) == (name == "nano_style_encoder")


def test_the_extras_that_the_configurations_name_exist():
    import re
    import tomllib

    known = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())
    extras = set(known["project"]["optional-dependencies"])
    named = {
        extra
        for path in CONFIGS.glob("*.yaml")
        for group in re.findall(r"regionroute\[([^\]]+)\]", path.read_text())
        for extra in group.split(",")
    }
    assert named
    assert named <= extras
