"""The arithmetic of a plan, on the public sizes of FLUX.1-Kontext and on small transformers."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import AutoencoderKL, Flux2Transformer2DModel, FluxTransformer2DModel

from regionroute.config.run import OptimConfig, load_config
from regionroute.diffusion import flux2_klein
from regionroute.errors import UserError
from regionroute.planning.chips import CHIPS, chip, chip_of
from regionroute.planning.estimate import (
    Data,
    Machine,
    Zero,
    cache_bytes,
    disk_bytes,
    read_data,
    read_zero,
    step_memory,
)
from regionroute.planning.estimate import make_plan as make_any_plan
from regionroute.planning.remedies import changed, remedies, retraced, without_supervision
from regionroute.planning.sizes import (
    KLEIN,
    KLEIN_DISTILLED,
    KLEIN_PARTS,
    KONTEXT,
    KONTEXT_PARTS,
    caching_sizes,
    read_sizes,
)
from regionroute.planning.trace import StepShape, Trace
from regionroute.planning.trace import trace_step as trace_any_step
from train.planned import planned_step

TINY = KONTEXT_PARTS["transformer"] | {
    "num_layers": 2,
    "num_single_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 24,
    "axes_dims_rope": [4, 6, 6],
}
SHAPE = StepShape(batch=2, latent=(16, 16, 16), text=(32, 32), pooled=24, experts=3)
DATA = Data(100, 10, 50, 150, 4, "made up")


trace_step = partial(trace_any_step, step=planned_step)


def make_plan(config, machine, data):
    return make_any_plan(config, machine, planned_step, data)


def machine(gpus=1, memory=80.0):
    return Machine(gpus, memory, reserve=2.0, teraflops=100.0, share=0.5, link=50.0)


def nano(*overrides):
    return load_config("configs/nano.yaml", overrides)


def test_kontext_has_its_published_sizes():
    settings = KONTEXT_PARTS["transformer"]
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(settings)
    assert model.num_parameters() == 11_901_408_320
    config = load_config(None, ["train.gradient_checkpointing=false"])
    few = settings | {"num_layers": 1, "num_single_layers": 1}
    shape = StepShape(1, (16, 16, 16), (32, 4096), 768, experts=1)
    one = trace_step(few, config, shape).trainable
    more = trace_step(few | {"num_layers": 2}, config, shape).trainable - one  # a double block
    assert 19 * more + 38 * (one - more) == 4_669_440


def test_kontext_encoders_have_their_published_sizes():
    base = read_sizes(KONTEXT)
    assert base.folder is None
    assert base.vae_scale == 8
    sizes = caching_sizes(base, torch.bfloat16, 64, 8)
    # T5-XXL's encoder, CLIP-L's text encoder, the autoencoder
    assert sizes.values == pytest.approx(4.762e9 + 0.123e9 + 0.084e9, rel=1e-3)
    assert sizes.weights == 2 * sizes.values
    assert sizes.activations > 0


def test_klein_has_its_published_sizes():
    base = read_sizes(KLEIN)
    assert base.family is flux2_klein.FAMILY
    assert (base.vae_scale, base.latent_channels, base.settings.guidance) == (8, 32, 4.0)
    assert read_sizes(KLEIN_DISTILLED).settings.steps == 4
    with torch.device("meta"):
        model = Flux2Transformer2DModel.from_config(base.parts["transformer"])
    assert model.num_parameters() == pytest.approx(3.9e9, rel=0.02)
    sizes = caching_sizes(base, torch.bfloat16, 64, 8)
    assert sizes.values == pytest.approx(4.022e9 + 0.084e9, rel=1e-2)  # Qwen3-4B, autoencoder


def test_a_quantised_base_takes_less_and_its_experts_as_much():
    config = load_config("configs/klein.yaml")
    small = load_config("configs/klein.yaml", ["base.quantize=nf4"])
    settings = KLEIN_PARTS["transformer"] | {
        "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2,
    }  # fmt: skip
    shape = StepShape(1, (32, 8, 8), (8, 7680), 0, experts=1)
    one, other = (trace_step(settings, c, shape) for c in (config, small))
    assert (one.frozen, one.trainable) == (other.frozen, other.trainable)
    blocks = (26 + 13) * 256**2
    saved = blocks * (2 - 0.516)
    assert one.frozen_bytes - other.frozen_bytes == pytest.approx(saved, rel=1e-3)


def test_klein_on_24_gib_fits_without_quantising():
    plan = make_plan(load_config("configs/klein.yaml"), machine(memory=24.0), DATA)
    assert plan.fits


def test_operations_are_those_of_the_formula():
    """Matrix products of a plain step by hand: forward, and gradients of the inputs alone."""
    config = without_supervision(load_config(None, ["experts.rank=1"]))
    shape = StepShape(1, (16, 16, 16), (32, 32), 24, experts=1)
    found = trace_step(TINY, config, shape).flops
    width, tokens, blocks = 32, shape.tokens, 4
    linear = 2 * 12 * width**2 * tokens * blocks
    attention = 4 * tokens**2 * width * blocks
    assert found == pytest.approx(2 * linear + 3.5 * attention, rel=0.2)  # adapters, embedders


def test_checkpointing_keeps_less_and_computes_more():
    config = load_config(None, [])
    plain = trace_step(TINY, config, SHAPE)
    saved = trace_step(TINY, changed(config, "train", gradient_checkpointing=True), SHAPE)
    assert saved.kept < plain.kept / 3
    assert saved.activations < plain.activations
    assert plain.flops < saved.flops < 1.5 * plain.flops


def test_supervision_costs_memory():
    config = load_config(None, [])
    with_it = trace_step(TINY, config, SHAPE)
    without = trace_step(TINY, without_supervision(config), SHAPE)
    assert without.kept < with_it.kept
    assert without.trainable == with_it.trainable


def perceptual(config):
    """The configuration with a perceptual loss; planning needs no file of weights."""
    section = config.flow.perceptual.model_copy(update={"network": "vgg16.safetensors"})
    return config.model_copy(
        update={"flow": config.flow.model_copy(update={"perceptual": section})}
    )


def tiny_autoencoder():
    return AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=16, norm_num_groups=4,
    )  # fmt: skip


def test_a_perceptual_loss_is_traced_with_its_decoder_and_its_vgg():
    config = load_config(None, [])
    plain = trace_step(TINY, config, SHAPE)
    found = trace_step(TINY, perceptual(config), SHAPE, autoencoder=tiny_autoencoder)
    assert found.operations > plain.operations + 50
    decoder = sum(p.numel() for p in tiny_autoencoder().parameters())
    assert found.loss_bytes == 4 * (14_714_688 + decoder)  # VGG16's convolutions
    assert plain.loss_bytes == 0
    # Images of 32 x 32 pixels through VGG16 up to conv4_3: 30.7 GFLOP at 224 x 224 for all of it.
    vgg = 2 * 12.1e9 * (32 / 224) ** 2
    # Of each of the two images forward for prediction and target, and back for the prediction.
    assert found.flops - plain.flops > 2 * 3 * vgg
    assert found.activations > plain.activations
    assert (found.trainable, found.frozen) == (plain.trainable, plain.frozen)
    with pytest.raises(ValueError, match="give the autoencoder"):
        trace_step(TINY, perceptual(config), SHAPE)


def test_a_plan_holds_the_networks_of_the_perceptual_loss():
    config = nano("train.global_batch=4")
    plain = make_plan(config, machine(), DATA)
    plan = make_plan(perceptual(config), machine(), DATA)
    held = "decoder and network of the perceptual loss"
    assert held not in plain.memory
    assert plan.memory[held] > 14_714_688 * 4
    assert plan.bytes_in_step > plain.bytes_in_step + plan.memory[held]
    assert plan.seconds_computing > plain.seconds_computing


def test_load_balance_and_the_weight_of_the_mask_are_traced():
    settings = ["experts.router=similarity"]
    wide = replace(SHAPE, style_dim=48)
    plain = trace_step(TINY, load_config(None, settings), wide)
    balanced = trace_step(TINY, load_config(None, [*settings, "experts.load_balance=0.01"]), wide)
    assert balanced.operations > plain.operations
    assert balanced.trainable == plain.trainable


def test_experts_chosen_by_pictures_have_gates():
    config = load_config(None, ["experts.router=similarity"])
    wide = StepShape(2, (16, 16, 16), (32, 32), 24, experts=3, style_dim=48)
    named = trace_step(TINY, load_config(None, []), SHAPE).trainable
    gates = trace_step(TINY, config, wide).trainable - named
    layers = 4 * 2 + 3 * 2
    assert gates == layers * 3 * 48


def test_same_trace_twice():
    config = load_config(None, ["train.gradient_checkpointing=true"])
    assert trace_step(TINY, config, SHAPE) == trace_step(TINY, config, SHAPE)


def trace(frozen=1000, trainable=100):
    return Trace(
        frozen, 2 * frozen, trainable, loss_bytes=0, kept=10, activations=50, flops=1, operations=1
    )


@pytest.mark.parametrize(
    ("stage", "together"),
    [
        (0, 2000 + 400 + 400 + 800 + 50),
        (1, 2000 + 400 + 400 + 400 + 300 + 50),  # a bucket; a quarter of three copies
        (2, 2000 + 400 + 100 + 400 + 300 + 50),
        (3, 500 + 2000 + 100 + 100 + 400 + 300 + 50),
    ],
)
def test_memory_of_each_stage(stage, together):
    assert sum(step_memory(trace(), Zero(stage), 4, OptimConfig()).values()) == together


def test_offloading_moves_to_the_host():
    found = step_memory(trace(), Zero(3, True, True, live=10), 4, OptimConfig())
    assert found["frozen weights, a share"] == found["optimizer state"] == 0
    assert found["weights gathered for use"] == 20


def test_the_moving_average_is_a_copy_of_the_weights():
    found = step_memory(trace(), Zero(0), 1, OptimConfig(ema=0.99))
    assert found["moving average"] == found["adapters"]
    assert "moving average" not in step_memory(trace(), Zero(0), 1, OptimConfig())


def test_the_deepspeed_file_decides(tmp_path):
    file = tmp_path / "zero.json"
    file.write_text(
        '{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, '
        '"stage3_max_live_parameters": 5}}'
    )
    found = read_zero(load_config(None, [f"train.deepspeed={file}", "train.zero_stage=1"]))
    assert found == Zero(3, offload_weights=True, offload_optimizer=False, live=5)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"zero_optimization": "auto"}', Zero(1)),
        (
            '{"zero_optimization": {"stage": 3, "offload_param": "auto", '
            '"stage3_max_live_parameters": "auto"}}',
            Zero(3),
        ),
        ('{"zero_optimization": {"stage": 3, "offload_param": null}}', Zero(3)),
        ('{"zero_optimization": {"stage3_max_live_parameters": 1e9}}', Zero(1, live=10**9)),
        ('{"zero_optimization": {"stage": "3"}}', "zero_optimization.stage must be"),
        ('{"zero_optimization": {"stage": 7}}', "zero_optimization.stage must be"),
    ],
)
def test_the_deepspeed_file_is_read_as_in_training(tmp_path, text, found):
    file = tmp_path / "zero.json"
    file.write_text(text)
    config = load_config(None, [f"train.deepspeed={file}", "train.zero_stage=1"])
    if isinstance(found, Zero):
        assert read_zero(config) == found
    else:
        with pytest.raises(UserError, match=rf"zero\.json: {found}"):
            read_zero(config)


@pytest.mark.parametrize(
    ("overrides", "zero"),
    [
        (["train.zero_stage=2", "train.offload=optimizer"], Zero(2, offload_optimizer=True)),
        (["train.zero_stage=3", "train.offload=optimizer"], Zero(3, offload_optimizer=True)),
        (["train.zero_stage=3", "train.offload=all"], Zero(3, True, True)),
    ],
)
def test_offloading_by_the_configuration(overrides, zero):
    assert read_zero(load_config(None, overrides)) == zero


def test_weights_on_the_host_are_not_there_while_caching():
    whole, waiting = (
        make_plan(nano("train.zero_stage=3", f"train.offload={where}"), machine(1), DATA)
        for where in ("none", "all")
    )
    frozen = whole.trace.frozen_bytes
    assert whole.bytes_in_caching - waiting.bytes_in_caching == frozen > 0


def test_plan_of_nano():
    plan = make_plan(nano("train.global_batch=8", "train.accumulation=2"), machine(2), DATA)
    assert plan.micro_batch == 2
    assert plan.fits
    assert plan.seconds == 2 * plan.trace.flops / 50e12
    assert plan.bytes_in_step == sum(plan.memory.values()) + 2 * 2**30
    each = cache_bytes(plan.base, plan.shape, plan.config)
    assert disk_bytes(plan)["images"] == 150 * each["image"]
    assert each["image"] == 4 * torch.Size(plan.shape.latent).numel()


def test_gathering_takes_the_link():
    plan = make_plan(nano("train.zero_stage=3", "train.global_batch=4"), machine(4), DATA)
    weights = plan.trace.frozen_bytes + 4 * plan.trace.trainable
    assert plan.seconds_gathering == pytest.approx(2 * weights * 3 / 4 / 50e9)
    assert plan.seconds == max(plan.seconds_gathering, plan.seconds_computing)


def test_remedies_are_planned_and_help():
    plan = make_plan(nano("train.global_batch=8"), machine(memory=2.0), DATA)
    assert not plan.fits
    found = {remedy.setting: remedy.plan.bytes_in_step for remedy in remedies(plan)}
    assert {"train.gradient_checkpointing=true", "train.accumulation=8"} <= found.keys()
    assert all(size < plan.bytes_in_step for size in found.values())
    again = retraced(plan, changed(plan.config, "train", gradient_checkpointing=True))
    assert found["train.gradient_checkpointing=true"] == again.bytes_in_step


def test_data_without_a_manifest_is_said():
    found = read_data(nano("data.manifest=nowhere"))
    assert found.samples is None
    assert "no manifest" in found.note


def test_chips():
    assert chip("H100").teraflops == 989
    assert chip_of("NVIDIA A100-SXM4-80GB") == CHIPS["a100"]
    assert chip_of("NVIDIA A100-SXM4-40GB") == CHIPS["a100-40"]
    assert chip_of("NVIDIA H100 PCIe") == CHIPS["h100-pcie"]
    assert chip_of("NVIDIA L40S") == CHIPS["l40s"]
    assert chip_of("NVIDIA L4") == CHIPS["l4"]
    assert chip_of("NVIDIA GeForce RTX 4090") == CHIPS["4090"]
    assert chip_of("NVIDIA GeForce RTX 4090 Laptop GPU") is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["base.dtype=float16"], "base.dtype: float16 overflows"),
        (["train.global_batch=6"], "train.global_batch=6 does not divide by 4 GPUs"),
        (["base.name=someone/else"], "base.name=someone/else: only the sizes of"),
        (["base.name=./nowhere"], "no such folder"),
        (["supervision.layers=[double.99]"], "double.99"),
        (["train.deepspeed=nowhere.json"], "nowhere.json"),
    ],
)
def test_bad_settings(overrides, said):
    with pytest.raises(UserError, match=said.replace(".", r"\.")):
        make_plan(nano("train.global_batch=4", *overrides), machine(4), DATA)


def test_unknown_chip():
    with pytest.raises(UserError, match="did you mean h100"):
        chip("h10")
