"""Training that starts from finished experts."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from safetensors import safe_open
from safetensors.torch import save_file

from regionroute.adapters import SimilarityRouter, adapter_layers, inject
from regionroute.adapters.files.export import save_experts
from regionroute.adapters.files.lora_file import read_lora_file
from regionroute.config.run import ExpertsConfig
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError
from regionroute.models.loading import load_base
from train import warm_start
from train.warm_start import starting_gate

NAMES = ["neon", "ink", "mosaic"]


def start_from(folder, transformer, experts, fingerprint, styles, means):
    settings = experts.model_copy(update={"init_from": str(folder)})
    warm_start.start_from(transformer, settings, fingerprint, styles, means)


MEANS = {
    name: torch.randn(24, generator=torch.Generator().manual_seed(i))
    for i, name in enumerate([*NAMES, "chalk", "crayon", "dusk"])
}


def test_a_style_chooses_its_own_expert():
    gate = starting_gate(NAMES, MEANS, 4)
    router = SimilarityRouter(24, 4, 2)
    router.gate.weight.data.copy_(gate)
    for place, name in enumerate(NAMES):
        logits = gate @ torch.nn.functional.layer_norm(MEANS[name], (24,))
        assert int(logits.argmax()) == place
    assert gate[3].norm() > 0  # a style that no expert was given for


def test_more_experts_than_styles_are_left_without_a_preference():
    assert starting_gate(NAMES, {n: MEANS[n] for n in NAMES}, 5)[3:].eq(0).all()


@pytest.fixture
def finished(tiny_base: Path, tmp_path: Path) -> Path:
    transformer = load_base(str(tiny_base)).transformer
    inject(transformer, "regionroute", 3, 2, 2.0, shared_rank=1)
    with torch.no_grad():
        for layer in adapter_layers(transformer).values():
            layer.lora_B.normal_()
            layer.shared_B.normal_()
    save_experts(
        tmp_path, transformer, [StyleSpec(name) for name in NAMES],
        base_name="tiny", base_fingerprint="f",
    )  # fmt: skip
    return tmp_path


SETTINGS = {"rank": 2, "alpha": 2.0, "shared_rank": 1, "targets": "regionroute"}


@pytest.mark.parametrize("by_example", [False, True])
def test_it_starts_with_the_finished_experts(tiny_base: Path, finished: Path, by_example: bool):
    before = load_base(str(tiny_base)).transformer
    inject(before, "regionroute", 3, 2, 2.0, shared_rank=1)
    router = (lambda: SimilarityRouter(24, 4, 2)) if by_example else None
    transformer = load_base(str(tiny_base)).transformer
    inject(transformer, "regionroute", 4, 2, 2.0, shared_rank=1, router=router)
    settings = ExpertsConfig(router="similarity" if by_example else "style", **SETTINGS)
    styles = list(MEANS) if by_example else ["chalk", *NAMES]

    start_from(finished, transformer, settings, "f", styles, MEANS if by_example else None)

    place = 0 if by_example else 1  # of "neon"
    for layer in adapter_layers(transformer).values():
        assert layer.lora_B[place].abs().sum() > 0
        assert layer.shared_B.abs().sum() > 0
        assert layer.lora_B[3 if by_example else 0].eq(0).all()  # nobody's yet


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"rank": 3},
            "rank 2, alpha 2 and shared_rank 1, this run 3, 2 and 1; set the same, or "
            "experts.rank=3 experts.alpha=3 experts.shared_rank=0",
        ),
        ({"alpha": 1.0}, "this run 2, 1 and 1"),
        ({"targets": ["proj_out"]}, "another targets"),
        ({}, "another base"),
    ],
)
def test_other_experts_are_refused(tiny_base: Path, finished: Path, change: dict, named: str):
    transformer = load_base(str(tiny_base)).transformer
    inject(transformer, "regionroute", 3, 2, 2.0, shared_rank=1)
    settings = ExpertsConfig(**SETTINGS | change)
    with pytest.raises(UserError, match=named):
        start_from(finished, transformer, settings, "f" if change else "g", NAMES, None)


@pytest.fixture
def transformer(tiny_base: Path) -> FluxTransformer2DModel:
    return load_base(str(tiny_base)).transformer


def test_some_of_the_styles_are_enough(transformer: FluxTransformer2DModel, finished: Path):
    inject(transformer, "regionroute", 2, 2, 2.0, shared_rank=1)
    start_from(finished, transformer, ExpertsConfig(**SETTINGS), "f", ["ink", "chalk"], None)
    file = read_lora_file(finished / "ink" / LORA_WEIGHT_NAME_SAFE)[0]
    for name, layer in adapter_layers(transformer).items():
        assert layer.lora_B[1].eq(0).all()  # nobody's yet
        assert torch.equal(layer.lora_A[0], file[f"transformer.{name}.lora_A.weight"][:2])
        assert torch.equal(layer.lora_B[0], file[f"transformer.{name}.lora_B.weight"][:, :2])


def test_without_a_shared_expert_its_part_becomes_each_ones_own(
    transformer: FluxTransformer2DModel, finished: Path
):
    inject(transformer, "regionroute", 1, 3, 3.0)
    settings = ExpertsConfig(rank=3, alpha=3.0, shared_rank=0, targets="regionroute")
    start_from(finished, transformer, settings, "f", ["ink"], None)
    file = read_lora_file(finished / "ink" / LORA_WEIGHT_NAME_SAFE)[0]
    for name, layer in adapter_layers(transformer).items():
        assert torch.equal(layer.lora_A[0], file[f"transformer.{name}.lora_A.weight"])
        assert torch.equal(layer.lora_B[0], file[f"transformer.{name}.lora_B.weight"])
    with pytest.raises(UserError, match="this run 2, 3 and 0; set the same, or experts"):
        start_from(
            finished, transformer, settings.model_copy(update={"rank": 2}), "f", ["ink"], None
        )


@pytest.fixture
def alone(tiny_base: Path, tmp_path: Path) -> Path:
    """A folder of experts without a shared one."""
    before = load_base(str(tiny_base)).transformer
    inject(before, "regionroute", 2, 2, 2.0)
    for layer in adapter_layers(before).values():
        layer.lora_B.data.normal_()
    styles = [StyleSpec("ink-drawing", "ink"), StyleSpec("ink")]
    save_experts(tmp_path, before, styles, base_name="tiny", base_fingerprint="f")
    return tmp_path


@pytest.mark.parametrize("by_example", [False, True])
def test_experts_without_a_shared_one_are_given_a_new_one(
    transformer: FluxTransformer2DModel, alone: Path, by_example: bool
):
    router = (lambda: SimilarityRouter(24, 2, 2)) if by_example else None
    inject(transformer, "regionroute", 2, 2, 2.0, shared_rank=1, router=router)
    settings = ExpertsConfig(router="similarity" if by_example else "style", **SETTINGS)
    styles = ["ink", "ink-drawing"]
    means = dict(zip(styles, MEANS.values(), strict=False)) if by_example else None
    start_from(alone, transformer, settings, "f", styles, means)
    file = read_lora_file(alone / "ink" / LORA_WEIGHT_NAME_SAFE)[0]
    for name, layer in adapter_layers(transformer).items():
        place = 1 if by_example else 0  # by example in the order of the folder
        assert torch.equal(layer.lora_B[place], file[f"transformer.{name}.lora_B.weight"])
        assert layer.shared_A.abs().sum() > 0
        assert layer.shared_B.eq(0).all()


def test_a_style_is_not_taken_for_anothers_phrase(transformer: FluxTransformer2DModel, alone: Path):
    inject(transformer, "regionroute", 1, 2, 2.0)
    settings = ExpertsConfig(**SETTINGS | {"shared_rank": 0})
    start_from(alone, transformer, settings, "f", ["ink"], None)
    file = read_lora_file(alone / "ink" / LORA_WEIGHT_NAME_SAFE)[0]
    for name, layer in adapter_layers(transformer).items():
        assert torch.equal(layer.lora_B[0], file[f"transformer.{name}.lora_B.weight"])


def test_a_damaged_file_is_named(transformer: FluxTransformer2DModel, alone: Path):
    path = alone / "ink" / LORA_WEIGHT_NAME_SAFE
    with safe_open(path, "pt") as file:
        keys, about = list(file.keys()), file.metadata()
        save_file({key: file.get_tensor(key) for key in keys[1:]}, path, about)
    inject(transformer, "regionroute", 1, 2, 2.0, shared_rank=1)
    with pytest.raises(UserError, match=r"ink.*: 1 weights are missing"):
        start_from(alone, transformer, ExpertsConfig(**SETTINGS), "f", ["ink"], None)


def test_experts_of_other_styles_alone_are_refused(
    transformer: FluxTransformer2DModel, finished: Path
):
    inject(transformer, "regionroute", 1, 2, 2.0, shared_rank=1)
    with pytest.raises(UserError, match="only of neon, ink, mosaic; name some of these"):
        start_from(finished, transformer, ExpertsConfig(**SETTINGS), "f", ["chalk"], None)


def test_by_example_every_style_must_be_trained(
    transformer: FluxTransformer2DModel, finished: Path
):
    inject(
        transformer, "regionroute", 4, 2, 2.0, shared_rank=1,
        router=lambda: SimilarityRouter(24, 4, 2),
    )  # fmt: skip
    settings = ExpertsConfig(router="similarity", **SETTINGS)
    with pytest.raises(UserError, match="'mosaic' is not trained"):
        start_from(finished, transformer, settings, "f", NAMES[:2], MEANS)


@pytest.mark.parametrize(("rank", "alpha", "shared"), [(9, 4.5, 0), (12, 12.0, 1)])
def test_new_styles_start_from_the_mean(
    transformer: FluxTransformer2DModel, finished: Path, rank: int, alpha: float, shared: int
):
    """Of three experts of ranks 2 + 1: 9 ranks hold it, whatever the run's own alpha is."""
    inject(transformer, "regionroute", 2, rank, alpha, shared_rank=shared)
    new = {
        name: layer.lora_A.detach().clone() for name, layer in adapter_layers(transformer).items()
    }
    settings = ExpertsConfig(
        rank=rank, alpha=alpha, shared_rank=shared, targets="regionroute",
        init_from=str(finished), init_with="mean",
    )  # fmt: skip
    start_from(finished, transformer, settings, "f", ["chalk", "crayon"], None)
    files = [read_lora_file(finished / name / LORA_WEIGHT_NAME_SAFE)[0] for name in NAMES]
    for name, layer in adapter_layers(transformer).items():
        key = f"transformer.{name}.lora_"
        mean = sum(file[f"{key}B.weight"] @ file[f"{key}A.weight"] for file in files) / len(files)
        for place in range(2):
            added = layer.lora_B[place] @ layer.lora_A[place] * (alpha / rank)
            torch.testing.assert_close(added, mean, rtol=1e-3, atol=1e-3)
        # What the mean does not need learns from new ranks, not from zeros.
        used = int(layer.lora_B[0].abs().sum(0).gt(0).sum())
        assert used <= 9
        assert torch.equal(layer.lora_A[:, used:], new[name][:, used:])
        assert not shared or layer.shared_B.eq(0).all()


def test_the_largest_directions_of_the_mean_are_kept(
    transformer: FluxTransformer2DModel, finished: Path
):
    inject(transformer, "regionroute", 1, 2, 2.0)
    settings = ExpertsConfig(
        **SETTINGS | {"shared_rank": 0}, init_from=str(finished), init_with="mean"
    )
    start_from(finished, transformer, settings, "f", ["chalk"], None)
    files = [read_lora_file(finished / name / LORA_WEIGHT_NAME_SAFE)[0] for name in NAMES]
    for name, layer in adapter_layers(transformer).items():
        key, a, b = f"transformer.{name}.lora_", layer.lora_A[0], layer.lora_B[0]
        mean = sum(file[f"{key}B.weight"] @ file[f"{key}A.weight"] for file in files) / len(files)
        values = torch.linalg.svdvals(mean)
        torch.testing.assert_close((mean - b @ a).norm(), values[2:].norm(), rtol=1e-3, atol=1e-3)
        for found in (a.norm(dim=1), b.norm(dim=0)):
            torch.testing.assert_close(found, values[:2].sqrt(), rtol=1e-3, atol=1e-3)


def test_a_mean_needs_experts_by_name_in_a_folder():
    for given in ({}, {"init_from": "folder", "router": "similarity"}):
        with pytest.raises(ValueError, match="have router style and set init_from with init_with"):
            ExpertsConfig(init_with="mean", **given)


def test_a_run_starts_from_a_mean_of_other_styles_and_sizes(runs, capsys):
    assert runs("first", "train.steps=2") == 0
    folder = runs.output("first") / "experts"
    given = [f"experts.init_from={folder}", "train.save_every=1", "experts.rank=3"]
    capsys.readouterr()
    assert runs("further", *given, "experts.init_with=mean", "train.steps=1") == 0
    said = f"every style starts from the mean of the 2 experts in {folder}"
    assert said in capsys.readouterr().out
    assert runs("further", *given, "experts.init_with=own", "train.steps=2") == 2
    assert "this run started with experts.init_with=mean, now it is own" in capsys.readouterr().err


def test_a_run_starts_from_anothers_experts_and_resumes_without_them(runs, capsys):
    assert runs("first", "train.steps=2") == 0
    folder = runs.output("first") / "experts"
    given = [f"experts.init_from={folder}", "train.save_every=1"]
    capsys.readouterr()
    assert runs("further", *given, "train.steps=1") == 0
    assert f"line-art, pixel-art start from {folder}" in capsys.readouterr().out
    assert runs("first", *given, "train.resume=false", "train.steps=1") == 2
    assert "would overwrite these experts" in capsys.readouterr().err
    file = next(folder.glob("*/*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert runs("fresh", *given, "train.steps=1") == 2
    shown = capsys.readouterr()
    assert f"{file}: this LoRA file is damaged" in shown.err
    assert "to encode" not in shown.out + shown.err
    file.write_bytes(whole)
    with safe_open(file, "pt") as opened:
        keys, about = sorted(opened.keys()), opened.metadata()
        less = {key: opened.get_tensor(key) for key in keys[1:]}
    save_file(less, file, about)
    assert runs("fresh", *given, "train.steps=1") == 2
    shown = capsys.readouterr()
    assert f"{file}: " in shown.err
    assert "to encode" not in shown.out + shown.err
    file.write_bytes(whole)
    shutil.rmtree(folder)
    assert runs("further", *given, "train.steps=2") == 0
    capsys.readouterr()
    assert runs("further", "experts.init_from=elsewhere", "train.steps=3") == 2
    assert "it is read at the first step only" in capsys.readouterr().err
    assert runs("fresh", *given, "train.steps=1") == 2
    shown = capsys.readouterr()
    assert "no experts.json" in shown.err
    assert "to encode" not in shown.out + shown.err
