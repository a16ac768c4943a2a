"""LoRA files of strangers: imported as what they are, or refused with the reason."""

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from regionroute.adapters import adapter_layers, import_lora, save_experts
from regionroute.adapters.files.lora_file import read_lora_file, write_tensors
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError

MODULE = "transformer_blocks.0.attn.to_q"
HEADER = "lora_adapter_metadata"


def weights(rank=2, width=32, **changes):
    torch.manual_seed(1)
    state = {
        f"transformer.{MODULE}.lora_A.weight": torch.randn(rank, width),
        f"transformer.{MODULE}.lora_B.weight": torch.randn(width, rank),
    }
    return state | changes


@pytest.fixture
def write(tmp_path):
    def write(state=None, header=None, name="style.safetensors"):
        path = tmp_path / name
        save_file(weights() if state is None else state, path, header)
        return path

    return write


def scale(model):
    """What the scale of the imported layer comes to."""
    layer, state = adapter_layers(model)[MODULE], weights()
    delta = layer.alpha / layer.rank * layer.lora_B[0] @ layer.lora_A[0]
    expected = (
        state[f"transformer.{MODULE}.lora_B.weight"] @ state[f"transformer.{MODULE}.lora_A.weight"]
    )
    return float((delta.detach() / expected).median())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused(adapted, write, value, dtype):
    state = {key: tensor.to(dtype) for key, tensor in weights().items()}
    next(iter(state.values()))[0, 0] = value
    with pytest.raises(UserError, match=r"lora_A.*not finite"):
        import_lora(write(state), adapted, 0)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.int8, torch.int64])
def test_weights_that_are_no_real_numbers_are_refused(adapted, write, dtype):
    state = {key: tensor.to(dtype) for key, tensor in weights().items()}
    with pytest.raises(UserError, match="expected floating-point numbers"):
        import_lora(write(state), adapted, 0)


@pytest.mark.parametrize(
    ("alpha", "reason"),
    [
        (torch.tensor(float("nan")), "not finite"),
        (torch.ones(3), "must be one number, it has 3"),
        (torch.ones(0), "must be one number, it has 0"),
        (torch.tensor(True), "is of type bool"),
        (torch.tensor(1j), "is of type complex64"),
    ],
)
def test_alphas_that_are_none(adapted, write, alpha, reason):
    with pytest.raises(UserError, match=reason):
        import_lora(write(weights(**{f"transformer.{MODULE}.alpha": alpha})), adapted, 0)


@pytest.mark.parametrize("alpha", [torch.tensor(4), torch.tensor([4.0]), torch.tensor([[4]])])
def test_alphas_of_any_shape_of_one_number(adapted, write, alpha):
    import_lora(write(weights(**{f"transformer.{MODULE}.alpha": alpha})), adapted, 0)
    assert scale(adapted) == pytest.approx(2, rel=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ((0, 32), (32, 0), "rank 0"),
        ((2, 32), (32, 3), r"\[2, 32\] and \[32, 3\], expected \[rank, in\]"),
        ((2, 32, 1, 1), (32, 2), "expected"),
        ((32,), (32, 2), "expected"),
        ((2, 0), (0, 2), "no size"),
    ],
)
def test_shapes_that_are_none(adapted, write, a, b, reason):
    for prefix in (f"transformer.{MODULE}", "lora_unet_double_blocks_0_img_attn_qkv"):
        state = {f"{prefix}.lora_A.weight": torch.ones(a), f"{prefix}.lora_B.weight": torch.ones(b)}
        with pytest.raises(UserError, match=reason):
            import_lora(write(state), adapted, 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "must be a JSON object"),
        ('"text"', "must be a JSON object"),
        ("7", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 50_000, "cannot be read"),
        ('{"a":' * 50_000, "cannot be read"),
        ("[" * 500 + "]" * 500, "nested more than 100"),
        ('{"r": 1' + "0" * 5000 + "}", "cannot be read"),
    ],
)
def test_headers_that_are_none(adapted, write, text, reason):
    with pytest.raises(UserError, match=reason):
        import_lora(write(header={HEADER: text}), adapted, 0)


SETTINGS = [
    ({"lora_alpha": "4"}, "lora_alpha must be a number, not '4'"),
    ({"lora_alpha": [4]}, "lora_alpha must be a number"),
    ({"lora_alpha": {}}, "lora_alpha must be a number"),
    ({"lora_alpha": True}, "lora_alpha must be a number"),
    ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number"),
    ({"lora_alpha": 10**400}, "lora_alpha must be a finite number"),
    ({"alpha_pattern": []}, None),
    ({"alpha_pattern": [1]}, "alpha_pattern must be an object"),
    ({"alpha_pattern": "x"}, "alpha_pattern must be an object"),
    ({"alpha_pattern": {"to_q": "4"}}, "alpha_pattern of 'to_q' must be a number"),
    ({"alpha_pattern": {"to_q": None}}, "alpha_pattern of 'to_q' must be a number"),
    ({"alpha_pattern": {"(": 4}}, "the pattern '\\(' of modules cannot be used"),
    ({"use_rslora": "yes"}, "use_rslora must be true or false"),
    ({"use_dora": True}, "this is a DoRA"),
]


@pytest.mark.parametrize(("settings", "reason"), SETTINGS)
@pytest.mark.parametrize("place", ["header", "file"])
def test_settings_that_are_none(adapted, write, tmp_path, settings, reason, place):
    if place == "header":
        text = json.dumps({f"transformer.{key}": value for key, value in settings.items()})
        path = write(header={HEADER: text})
    else:
        path = write(name="adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    if settings == {"alpha_pattern": []}:
        reason = "alpha_pattern must be an object"
    with pytest.raises(UserError, match=reason):
        import_lora(path, adapted, 0)


@pytest.mark.parametrize("text", ["[]", "5", "null", '"x"', "[" * 50_000, "\udcff"])
def test_config_files_that_are_none(adapted, write, tmp_path, text):
    path = write(name="adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        import_lora(path, adapted, 0)


def test_settings_of_other_programs_are_read(adapted, write):
    text = json.dumps({"transformer.lora_alpha": 6, "transformer.alpha_pattern": None})
    import_lora(write(header={HEADER: text}), adapted, 0)
    assert scale(adapted) == pytest.approx(3, rel=1e-4)


def test_weights_of_the_text_encoder_are_skipped_with_one_line(adapted, write, caplog):
    kohya = {
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(2, 32),
        "lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": torch.ones(32, 2),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 9),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(9, 2),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(2.0),
        "text_encoder.text_model.encoder.layers.0.q.lora_A.weight": torch.ones(2, 9),
    }
    assert import_lora(write(kohya), adapted, 0) == ["transformer_blocks.0.attn.to_out.0"]
    (line,) = caplog.messages
    assert "4 weights of the text encoder are skipped" in line
    only = {key: tensor for key, tensor in kohya.items() if "te1" in key}
    with pytest.raises(UserError, match="all its weights are of the text encoder"):
        import_lora(write(only), adapted, 0)


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("double_blocks.0.processor.qkv_lora1.down.weight", "an XLabs LoRA"),
        ("single_blocks.0.processor.proj_lora.up.weight", "an XLabs LoRA"),
        ("lora_unet_x.hada_w1_a", "a LoHa"),
        ("lora_unet_x.lokr_w1", "a LoKr"),
        ("lora_unet_x.dora_scale", "a DoRA"),
        (f"transformer.{MODULE}.lora_magnitude_vector", "a DoRA"),
    ],
)
def test_other_kinds_are_named(adapted, write, key, kind):
    with pytest.raises(UserError, match=f"this is {kind}"):
        import_lora(write(weights(**{key: torch.ones(2, 2)})), adapted, 0)


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    (tmp_path / "deep.safetensors").write_bytes(struct.pack("<Q", 50_000) + b"[" * 50_000)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError, match=path.name):
            read_lora_file(path)


def test_experts_with_weights_that_are_not_finite_are_refused(adapted, tmp_path):
    write_tensors(tmp_path / "router.safetensors", {"x": torch.tensor([float("nan")])}, {})
    with pytest.raises(UserError, match=r"router\.safetensors: \"x\" holds values that are not"):
        read_lora_file(tmp_path / "router.safetensors")


def test_equal_experts_are_equal_bytes(adapted, tmp_path):
    styles = [StyleSpec(name) for name in ("a", "b", "c")]
    contents = []
    for run in range(6):
        folder = tmp_path / str(run)
        save_experts(folder, adapted, styles, base_name="tiny", base_fingerprint="x")
        contents.append(
            [path.read_bytes() for path in sorted(folder.rglob("*.*")) if path.is_file()]
        )
    assert all(content == contents[0] for content in contents)
    assert len(contents[0]) == 5


def test_a_sorted_header_is_still_a_safetensors_file(tmp_path):
    header = {f"kéy{n}": 'välue "quoted" \\ \n \u2028 ' * n for n in range(20)}
    state = {f"w.{n}": torch.randn(n, 3, dtype=torch.float64) for n in range(1, 9)}
    for n in range(3):
        write_tensors(tmp_path / f"{n}.safetensors", state, header)
    loaded = load_file(tmp_path / "0.safetensors")
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())
    first, *others = ((tmp_path / f"{n}.safetensors").read_bytes() for n in range(3))
    assert all(other == first for other in others)


def test_every_weight_that_nothing_takes_is_named(adapted, write):
    strange = {f"strange.{i}": torch.zeros(1) for i in range(3)}
    with pytest.raises(UserError) as refused:
        import_lora(write(weights(**strange)), adapted, 0)
    assert all(f'"{name}"' in str(refused.value) for name in strange)
    layers = {
        f"transformer.transformer_blocks.{i}.attn.to_q.lora_{side}.weight": torch.ones(
            (2, 32) if side == "A" else (32, 2)
        )
        for i in range(20, 31)
        for side in "AB"
    }
    with pytest.raises(UserError, match=r'"transformer_blocks\.20\.attn\.to_q", .* and 3 more'):
        import_lora(write(weights() | layers), adapted, 0)
