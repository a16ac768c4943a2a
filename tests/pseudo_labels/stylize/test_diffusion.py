"""Global restylers over small random pipelines of the real classes."""

import pickle

import pytest
import torch
from PIL import Image

from pseudo_labels.stylize.diffusion import DiffusionStylizer
from pseudo_labels.stylize.registry import load_styles
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError

SPEC = StyleSpec("neon")
PICTURE = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def img2img(networks, tmp_path_factory):
    """A Stable Diffusion pipeline, which is saved as text-to-image and used on images."""
    return str(networks.save_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd"))


@pytest.fixture(params=["sd", "kontext"])
def model(request, img2img, tiny_base):
    return img2img if request.param == "sd" else str(tiny_base)


def test_shape_range_seed_and_an_untouched_content(model):
    stylizer = DiffusionStylizer.build(model=model, steps=2, strength=0.9)
    before = PICTURE.clone()
    styled = stylizer.stylize(PICTURE, SPEC, generator=seeded())
    assert styled.shape == PICTURE.shape
    assert styled.dtype == torch.float32
    assert 0 <= styled.min() <= styled.max() <= 1
    assert torch.equal(PICTURE, before)
    assert torch.equal(styled, stylizer.stylize(PICTURE, SPEC, generator=seeded()))
    assert not torch.equal(styled, stylizer.stylize(PICTURE, SPEC, generator=seeded(1)))


def test_it_goes_to_another_process_as_settings_alone(model):
    stylizer = DiffusionStylizer.build(model=model, steps=1)
    data = pickle.dumps(stylizer)
    assert len(data) < 2000
    other = pickle.loads(data)
    assert other.fingerprint == stylizer.fingerprint
    first, second = (s.stylize(PICTURE, SPEC, generator=seeded()) for s in (stylizer, other))
    assert torch.equal(first, second)


def test_the_style_is_named_in_the_pipelines_own_manner(model, monkeypatch):
    from pseudo_labels.stylize import diffusion

    pipeline, _ = diffusion._pipeline(model, "float32", "cpu")
    said = []
    original = type(pipeline).__call__

    def listening(self, *args, **kwargs):
        said.append((kwargs["prompt"], kwargs["image"].size))
        return original(self, *args, **kwargs)

    # The signature tells what a pipeline takes.
    listening.__signature__ = __import__("inspect").signature(original)
    monkeypatch.setattr(type(pipeline), "__call__", listening)
    DiffusionStylizer.build(model=model, steps=1).stylize(PICTURE, SPEC, generator=seeded())
    own = DiffusionStylizer.build(model=model, steps=1, size=80, prompt="{style}!")
    own.stylize(PICTURE, SPEC, generator=seeded())
    usual = "a picture in neon style" if "sd" in model else "make the image in neon style"
    assert [prompt for prompt, _ in said] == [usual, "neon!"]
    assert said[1][1][0] > said[0][1][0]


class TestLora:
    @pytest.fixture(scope="class")
    def lora(self, tmp_path_factory, tiny_base):
        """A LoRA file in diffusers' form for the tiny Kontext base, of some size."""
        from diffusers import FluxKontextPipeline
        from peft import LoraConfig, get_peft_model_state_dict

        torch.manual_seed(0)
        pipeline = FluxKontextPipeline.from_pretrained(tiny_base, local_files_only=True)
        config = LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
        pipeline.transformer.add_adapter(config)
        state = {k: 5 * v for k, v in get_peft_model_state_dict(pipeline.transformer).items()}
        folder = tmp_path_factory.mktemp("lora")
        FluxKontextPipeline.save_lora_weights(folder, transformer_lora_layers=state)
        return str(folder / "pytorch_lora_weights.safetensors")

    def test_it_is_switched_on_and_off_in_one_pipeline(self, tiny_base, lora):
        plain, styled, weak = (
            DiffusionStylizer.build(model=str(tiny_base), steps=2, **settings)
            for settings in ({}, {"lora": lora}, {"lora": lora, "lora_scale": 0.0})
        )
        without = plain.stylize(PICTURE, SPEC, generator=seeded())
        with_lora = styled.stylize(PICTURE, SPEC, generator=seeded())
        assert (without - with_lora).abs().max() > 0.01
        assert torch.equal(plain.stylize(PICTURE, SPEC, generator=seeded()), without)
        assert torch.equal(styled.stylize(PICTURE, SPEC, generator=seeded()), with_lora)
        assert torch.allclose(weak.stylize(PICTURE, SPEC, generator=seeded()), without, atol=0.01)
        assert len({s.fingerprint for s in (plain, styled, weak)}) == 3

    def test_several_are_added_up_with_their_scales(self, tiny_base, lora, tmp_path):
        from safetensors.torch import load_file, save_file

        state = {key: value.flip(-1) for key, value in load_file(lora).items()}
        other = str(tmp_path / "other.safetensors")
        save_file({key: value.contiguous() for key, value in state.items()}, other)

        def styled(*loras, **settings):
            rows = [{"file": file, "scale": scale} for file, scale in loras]
            stylizer = DiffusionStylizer.build(
                model=str(tiny_base), steps=2, loras=rows, **settings
            )
            return stylizer.stylize(PICTURE, SPEC, generator=seeded()), stylizer.fingerprint

        both, name = styled((lora, 1.0), (other, 1.0))
        single, _ = styled((lora, 1.0))
        assert torch.equal(single, styled(lora=lora)[0])
        assert (both - single).abs().max() > 0.01
        assert torch.allclose(styled((lora, 1.0), (other, 0.0))[0], single, atol=0.01)
        assert (styled((lora, 1.0), (other, 0.5))[0] - both).abs().max() > 0.01
        names = {name, styled((lora, 1.0), (other, 0.5))[1], styled((other, 1.0), (lora, 1.0))[1]}
        assert len(names) == 3

    def test_a_styles_file_names_them_relative_to_itself(self, tiny_base, lora, tmp_path):
        (tmp_path / "beside.safetensors").symlink_to(lora)
        (tmp_path / "styles.yaml").write_text(
            "styles:\n  both:\n    stylizer: diffusion\n    settings:\n      model: some/model\n"
            "      loras: [{file: beside.safetensors}, {file: hub/lora, scale: 0.5}]\n"
        )
        [entry] = load_styles(tmp_path / "styles.yaml")
        files = [(item.file, item.scale) for item in entry.build().settings.loras]
        assert files == [(str(tmp_path / "beside.safetensors"), 1.0), ("hub/lora", 0.5)]

    def test_files_that_are_no_lora_of_this_pipeline(self, tiny_base, tmp_path):
        from safetensors.torch import save_file

        (tmp_path / "text.safetensors").write_text("no weights")
        save_file({"unet.other.lora_A.weight": torch.ones(4, 4)}, tmp_path / "other.safetensors")
        for name in ("text", "other", "none"):
            stylizer = DiffusionStylizer.build(
                model=str(tiny_base), lora=str(tmp_path / f"{name}.safetensors")
            )
            with pytest.raises(UserError, match="this LoRA"):
                stylizer.load()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": ""}, "model of a diffusion style is ''"),
        ({"strength": 0}, "strength of a diffusion style is 0"),
        ({"steps": 0}, "steps of a diffusion style is 0"),
        ({"size": 8}, "size of a diffusion style is 8"),
        ({"dtype": "int8"}, "dtype of a diffusion style is 'int8'"),
        ({"prompt": "neon"}, "must contain {style}"),
        ({"lora": "a", "loras": [{"file": "b"}]}, "'lora' or 'loras', not both"),
        ({"loras": [{"file": "b"}, {"file": "b"}]}, "names a file twice"),
        ({"loras": [{"scale": 1}]}, "needs 'loras.file'"),
    ],
)
def test_wrong_settings(settings, told):
    with pytest.raises(UserError, match=told):
        DiffusionStylizer.build(**({"model": "some/model"} | settings))


def test_models_that_cannot_be_had(tmp_path, networks):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text('{"_class_name": "NoPipeline"}')
    for name, told in (
        (tmp_path / "empty", "no model_index.json"),
        (tmp_path / "broken", "does not hold a pipeline"),
        ("/no/such/folder", "no such folder"),
    ):
        with pytest.raises(UserError, match=told) as error:
            DiffusionStylizer.build(model=str(name)).load()
        assert "\n" not in str(error.value)


def test_a_styles_file_names_folders_beside_it_or_hub_ids(tmp_path, img2img):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "model").symlink_to(img2img)
    (tmp_path / "styles.yaml").write_text(
        "styles:\n"
        "  here: {stylizer: diffusion, settings: {model: model, steps: 1}}\n"
        "  hub: {stylizer: diffusion, settings: {model: some/model, steps: 1}}\n"
    )
    here, hub = load_styles(tmp_path / "styles.yaml")
    assert here.settings["model"] == str(tmp_path / "model")
    assert hub.settings["model"] == "some/model"
    assert here.build().stylize(PICTURE, SPEC, generator=seeded()).shape == PICTURE.shape
