"""FLUX.2-klein: everything that is fed to the transformer equals the stock pipeline's."""

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from PIL import Image

from regionroute.adapters import (
    RouteContext,
    adapter_layers,
    experts_from_loras,
    inject,
    load_experts,
    routed,
    save_experts,
    target_names,
)
from regionroute.adapters.files.formats import read_blend, write_lora
from regionroute.attention import AttentionPlan, AttentionRecorder
from regionroute.data.images import from_pil
from regionroute.data.manifest import StyleSpec
from regionroute.diffusion.families import family_of
from regionroute.diffusion.flow import predict_velocity, sample
from regionroute.diffusion.flux2_klein import FAMILY as KLEIN
from regionroute.diffusion.flux2_klein import patchify, unpatchify
from regionroute.diffusion.flux_kontext import FAMILY as KONTEXT
from regionroute.diffusion.latents import pack
from regionroute.errors import UserError
from regionroute.models.loading import load_base, load_skeleton

PROMPT = "make the dog in pixel-art style, keep other area unchanged"
PROMPTS = [PROMPT, "zebra"]
HEIGHT, WIDTH = 64, 96  # the stock pipeline takes nothing smaller
CHANNELS = 4
LAYERS = ["double.0", "double.1", "single.0"]


@pytest.fixture
def photo():
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(0, 256, (HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(values.numpy())


@pytest.fixture
def image(photo):
    return from_pil(photo)[None]


def run_stock(stock, photo, noise, **changes):
    """The stock pipeline at the picture's own size; [B,3,H,W] in [0,1]."""
    arguments = {
        "image": photo,
        "prompt": PROMPT,
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "latents": None if noise is None else patchify(noise),
        "max_sequence_length": 64,
        "output_type": "pt",
    }
    return stock(**(arguments | changes)).images


def run_ours(base, image, noise, guidance=2.5, **changes):
    """Our sampler with the arguments of `run_stock`."""
    embeds, pooled = base.encode_prompts([PROMPT])
    latents = sample(
        base.transformer, base.scheduler, base.encode_images(image), embeds, pooled,
        **({"steps": 3, "guidance": guidance, "noise": noise} | changes),
        negative=base.negative(guidance),
    )  # fmt: skip
    return base.decode_latents(latents)


@pytest.fixture
def noise(klein):
    return klein.draw_noise((1, CHANNELS, HEIGHT // 2, WIDTH // 2), seed=1)


def test_text_states_equal_the_stock_pipelines(klein, stock_klein):
    with torch.no_grad():
        states, _ = stock_klein.encode_prompt(PROMPTS, max_sequence_length=64)
    ours, pooled = klein.encode_prompts(PROMPTS)
    torch.testing.assert_close(ours, states)
    assert ours.shape == (2, 64, 48)
    assert pooled.shape == (2, 0)


def test_latents_are_the_stock_pipelines_and_come_back(klein, stock_klein, image):
    with torch.no_grad():
        theirs = stock_klein._encode_vae_image(image * 2 - 1, None)
    ours = klein.encode_images(image)
    torch.testing.assert_close(patchify(ours), theirs)
    torch.testing.assert_close(pack(ours), stock_klein._pack_latents(theirs))
    assert torch.equal(unpatchify(patchify(ours)), ours)
    plain = klein.vae.encode(image * 2 - 1).latent_dist.mode()
    assert (ours - plain).abs().max() > 0.1  # the statistics matter
    with torch.no_grad():
        decoded = klein.vae.decode(plain).sample
    torch.testing.assert_close(
        klein.decode_latents(ours), (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0
    )


def test_the_transformer_gets_what_the_stock_pipeline_gives_it(
    klein, stock_klein, photo, image, noise, spy
):
    """Training calls ``predict_velocity``: so its input is compared, tensor by tensor."""
    theirs, ours = spy(stock_klein.transformer), spy(klein.transformer)
    run_stock(stock_klein, photo, noise)
    stock_call = theirs[0]
    embeds, pooled = klein.encode_prompts([PROMPT])
    with torch.no_grad():
        predict_velocity(
            klein.transformer, noise, klein.encode_images(image), embeds, pooled,
            stock_call["timestep"], guidance=2.5,
        )  # fmt: skip
    tensors = {"hidden_states", "timestep", "encoder_hidden_states", "txt_ids", "img_ids"}
    for call in (stock_call, ours[0]):
        assert {key for key, value in call.items() if isinstance(value, torch.Tensor)} == tensors
        assert call["guidance"] is None
    for key in tensors:
        torch.testing.assert_close(ours[0][key], stock_call[key], atol=1e-5, rtol=0, msg=key)
    frames = ours[0]["img_ids"][0, :, 0]
    tokens = frames.numel() // 2
    assert frames.tolist() == [0] * tokens + [10] * tokens
    assert ours[0]["txt_ids"][0, :, 3].tolist() == list(range(64))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_every_call_gets_the_pipelines_timestep_and_text(
    klein, stock_klein, photo, image, noise, spy, guidance
):
    theirs, ours = spy(stock_klein.transformer), spy(klein.transformer)
    run_stock(stock_klein, photo, noise, guidance_scale=guidance)
    run_ours(klein, image, noise, guidance)
    assert len(theirs) == len(ours) == (3 if guidance == 1 else 6)
    for call, other in zip(ours, theirs, strict=True):
        for key in ("timestep", "encoder_hidden_states"):
            torch.testing.assert_close(call[key], other[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_pictures_equal_the_stock_pipelines(klein, stock_klein, photo, image, noise, guidance):
    theirs = run_stock(stock_klein, photo, noise, guidance_scale=guidance)
    ours = run_ours(klein, image, noise, guidance)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    assert theirs.std() > 0.02  # a constant picture would prove nothing
    assert (ours - run_ours(klein, image, noise, 4.0)).abs().max() > 1e-3


def test_a_distilled_base_is_not_guided(distilled_folder, load_stock, photo, image, noise):
    base, stock = load_base(str(distilled_folder)), load_stock(distilled_folder)
    theirs = run_stock(stock, photo, noise, guidance_scale=2.5)
    torch.testing.assert_close(run_ours(base, image, noise), theirs, atol=2e-5, rtol=0)
    assert base.negative(2.5) is None


def test_a_seed_means_the_same_noise_as_in_the_stock_pipeline(klein, stock_klein, photo, image):
    generator = torch.Generator().manual_seed(7)
    theirs = run_stock(stock_klein, photo, None, generator=generator)
    noise = klein.draw_noise((1, CHANNELS, HEIGHT // 2, WIDTH // 2), seed=7)
    torch.testing.assert_close(run_ours(klein, image, noise), theirs, atol=2e-5, rtol=0)


def test_the_empty_prompt_is_kept_when_the_encoder_is_gone(klein):
    kept = klein.negative(4.0)
    klein.text_encoder = torch.nn.Module()
    assert klein.negative(2.0) is kept
    assert klein.negative(1.0) is None


@pytest.mark.parametrize("text", [PROMPT, "user im_start assistant the pixel-art dog"])
def test_tokens_of_a_phrase_are_found_through_the_chat(klein, text):
    start = text.index("pixel-art")
    found = klein.token_indices(text, (start, start + len("pixel-art")))
    chat = klein.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}],
        tokenize=False, add_generation_prompt=True, enable_thinking=False,
    )  # fmt: skip
    ids = klein.tokenizer(chat, padding="max_length", max_length=64).input_ids
    assert klein.tokenizer.decode([ids[i] for i in found]).strip() == "pixel-art"


def test_tokens_are_found_behind_padding_on_the_left(klein):
    span = (PROMPT.index("dog"), PROMPT.index("dog") + 3)
    right = klein.token_indices(PROMPT, span)
    klein.tokenizer.padding_side = "left"
    left = klein.token_indices(PROMPT, span)
    ids = klein.tokenizer(
        "".join(klein.tokenizer.apply_chat_template(
            [{"role": "user", "content": PROMPT}], tokenize=False, add_generation_prompt=True,
            enable_thinking=False)),
        padding="max_length", max_length=64,
    ).input_ids  # fmt: skip
    assert klein.tokenizer.decode([ids[i] for i in left]).strip() == "dog"
    assert left != right


def test_a_phrase_that_is_cut_off_is_named_with_the_users_own_prompt(klein):
    text = "picture of the area " * 20 + "dog"
    with pytest.raises(UserError, match="'dog' lies beyond the 64 tokens") as error:
        klein.token_indices(text, (len(text) - 3, len(text)))
    assert "im_start" not in str(error.value)


def test_a_template_that_changes_the_prompt_is_refused(klein):
    klein.tokenizer.chat_template = "{{ messages[0].content | upper }}"
    with pytest.raises(UserError, match="chat template changes it"):
        klein.token_indices("a dog", (2, 5))


def test_recorded_blocks_compute_the_same_and_their_maps_are_the_softmax(
    klein, image, noise, monkeypatch
):
    base, seen = klein, []
    stock = torch.nn.functional.scaled_dot_product_attention

    def spied(query, key, value, **options):
        seen.append((query, key))
        return stock(query, key, value, **options)

    embeds, pooled = base.encode_prompts([PROMPT])
    arguments = (base.transformer, noise, base.encode_images(image), embeds, pooled)
    sigma = torch.tensor([0.7])
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spied)
        plain = predict_velocity(*arguments, sigma, 1.0)
    grid = (HEIGHT // 4, WIDTH // 4)
    tokens = base.token_indices(PROMPT, (16, 25))
    plan = AttentionPlan(
        torch.tensor([[tokens]]), torch.ones(1, 1, *grid), torch.ones(1, 1, dtype=torch.bool),
        64, grid[0] * grid[1],
    )  # fmt: skip
    recorder = AttentionRecorder(queries="both")
    with torch.no_grad(), recorder.recording(base.transformer, plan):
        recorded = predict_velocity(*arguments, sigma, 1.0)
    torch.testing.assert_close(recorded, plain, atol=1e-6, rtol=0)
    rows = {"target": slice(64, 64 + plan.image_len), "context": slice(64 + plan.image_len, None)}
    for layer, (query, key) in zip(LAYERS, seen, strict=True):
        attention = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        for name, part in rows.items():
            expected = attention[0, :, part][..., tokens].mean((0, 2)).view(grid)
            found = recorder.maps()[f"{layer}.{name}"][0, 0]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
    assert (recorder.maps()["single.0.target"].std() / found.mean()) > 0.01  # not all even


def test_gradients_pass_the_recorded_single_block(klein, noise, image):
    inject(klein.transformer, "regionroute", 1, 2, 2.0)
    for layer in adapter_layers(klein.transformer).values():
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    embeds, pooled = klein.encode_prompts([PROMPT])
    grid = (HEIGHT // 4, WIDTH // 4)
    plan = AttentionPlan(
        torch.tensor([[[13]]]), torch.ones(1, 1, *grid), torch.ones(1, 1, dtype=torch.bool),
        64, grid[0] * grid[1],
    )  # fmt: skip
    recorder = AttentionRecorder(["single.0"])
    klein.transformer.enable_gradient_checkpointing()
    klein.transformer.train()
    route = RouteContext(torch.zeros(1, dtype=torch.long))
    with routed(klein.transformer, route), recorder.recording(klein.transformer, plan):
        predict_velocity(
            klein.transformer, noise, klein.encode_images(image), embeds, pooled,
            torch.tensor([0.5]), 1.0,
        )  # fmt: skip
        recorder.maps()["single.0"].sum().backward()
    fused = adapter_layers(klein.transformer)["single_transformer_blocks.0.attn.to_qkv_mlp_proj"]
    assert fused.lora_B.grad.abs().sum() > 0


def test_presets_name_the_familys_own_layers(klein):
    names = target_names(klein.transformer, "regionroute")
    assert "single_transformer_blocks.0.attn.to_qkv_mlp_proj" in names
    assert "transformer_blocks.1.attn.to_out.0" in names
    assert "single_transformer_blocks.0.attn.to_out" not in names
    assert len(names) == 2 * 4 + 1
    wide = target_names(klein.transformer, "styleexpert")
    assert len(wide) == 2 * 12 + 2
    assert not [name for name in wide if "transformer_blocks" not in name]
    every = target_names(klein.transformer, "all")
    linears = [n for n, m in klein.transformer.named_modules() if isinstance(m, torch.nn.Linear)]
    assert set(linears) - set(every) == {n for n in linears if n.startswith("time_guidance_embed.")}
    assert set(every) - set(wide) >= {"x_embedder", "double_stream_modulation_txt.linear"}


def test_presets_fit_the_published_sizes():
    with torch.device("meta"):
        model = Flux2Transformer2DModel(
            num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680,
            guidance_embeds=False,
        )  # fmt: skip
    assert 3.8e9 < model.num_parameters() < 4.1e9
    assert len(target_names(model, "regionroute")) == 5 * 4 + 20


@pytest.fixture(params=["styleexpert", "all"])
def experts(klein, tmp_path, request):
    """Two random experts saved for the base, whose transformer has them."""
    inject(klein.transformer, request.param, num_experts=2, rank=2, alpha=4.0)
    generator = torch.Generator().manual_seed(5)
    for layer in adapter_layers(klein.transformer).values():
        layer.lora_B.data = torch.randn(layer.lora_B.shape, generator=generator) * 0.2
    save_experts(
        tmp_path / "experts", klein.transformer, [StyleSpec("pixel-art"), StyleSpec("line-art")],
        base_name=klein.name, base_fingerprint=klein.fingerprint,
    )  # fmt: skip
    return tmp_path / "experts"


# From ComfyUI's names diffusers does not read the modulation.
@pytest.mark.parametrize(
    ("experts", "form"),
    [("styleexpert", "diffusers"), ("styleexpert", "comfyui"), ("all", "diffusers")],
    indirect=["experts"],
)
def test_an_expert_in_the_stock_pipeline_gives_our_picture(
    klein, stock_klein, experts, tmp_path, photo, image, noise, form
):
    with routed(klein.transformer, RouteContext(torch.tensor([1]))):
        ours = run_ours(klein, image, noise)
    before = run_stock(stock_klein, photo, noise)
    file = write_lora(read_blend(experts, {"line-art": 1.0}), tmp_path, "line-art", form)
    stock_klein.load_lora_weights(file.parent if form == "diffusers" else file)
    theirs = run_stock(stock_klein, photo, noise)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert (theirs - before).abs().max() > 1e-2


@pytest.mark.parametrize("form", ["diffusers", "peft", "comfyui"])
def test_an_experts_file_comes_back_in_every_form(klein, experts, tmp_path, tiny_klein, form):
    file = write_lora(read_blend(experts, {"line-art": 1.0}), tmp_path, "line-art", form)
    again = load_skeleton(str(tiny_klein))
    assert set(experts_from_loras(again, [file])) == set(adapter_layers(klein.transformer))
    layers = adapter_layers(again)
    for name, layer in adapter_layers(klein.transformer).items():
        wanted, found = (one.expert_state_dict(i) for one, i in ((layer, 1), (layers[name], 0)))
        update = wanted["lora_B.weight"] @ wanted["lora_A.weight"] * layer.alpha / layer.rank
        again_scale = layers[name].alpha / layers[name].rank
        torch.testing.assert_close(
            found["lora_B.weight"] @ found["lora_A.weight"] * again_scale, update
        )


def test_experts_load_again_and_fit_the_distilled_base(
    experts, distilled_folder, tiny_klein, klein, noise, image
):
    for folder in (tiny_klein, distilled_folder):
        base = load_base(str(folder))
        load_experts(experts, base)
        assert base.fingerprint == klein.fingerprint


def test_experts_of_the_other_family_are_refused(experts, tiny_base):
    with pytest.raises(UserError, match="these experts were trained on base"):
        load_experts(experts, load_base(str(tiny_base)))


def test_each_transformer_knows_its_family(klein, tiny_base):
    assert family_of(klein.transformer) is KLEIN
    assert family_of(load_base(str(tiny_base)).transformer) is KONTEXT
    with pytest.raises(ValueError, match="no FluxTransformer2DModel or Flux2Transformer2DModel"):
        family_of(torch.nn.Linear(2, 2))


def test_settings_are_the_families_unless_a_base_says_its_own(tiny_klein, distilled_folder):
    for folder, steps, guidance in ((tiny_klein, 50, 4.0), (distilled_folder, 4, 1.0)):
        base = load_base(str(folder))
        assert (base.settings.steps, base.settings.guidance) == (2, 4.0)
        assert base.family.defaults(base.distilled)["steps"] == steps
        assert base.family.defaults(base.distilled)["guidance"] == guidance
