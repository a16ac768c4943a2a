"""Training on FLUX.2-klein: the same command, from pairs to edits with the trained experts."""

import json

import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from regionroute.adapters import RouteContext, load_experts, routed
from regionroute.cli import main as cli
from regionroute.data.images import from_pil, read_image
from regionroute.diffusion.flow import sample
from regionroute.models.loading import load_base
from regionroute.models.tiny_klein import build_tiny_klein
from regionroute.pretrained import quiet
from train.run import main

PROMPT = "make the square in pixel-art style, keep other area unchanged"
STEPS = 6


@pytest.fixture
def trained(klein_runs):
    """Folder of a finished run with previews."""
    assert klein_runs("run", "train.preview_every=3", "base.max_text_length=64") == 0
    return klein_runs.output("run")


def test_a_run_leaves_experts_that_edit(trained, klein_runs, tiny_klein, tiny_manifest, tmp_path):
    rows = klein_runs.losses("run")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row["focus"] > 0 and row["cover"] > 0 for row in rows)
    assert (trained / "previews" / "step-000006.png").is_file()
    assert json.loads((trained / "run.json").read_text())["finished"]
    experts = klein_runs.experts("run")
    fused = "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_B.weight"
    assert experts[fused].abs().max() > 0

    photo = tiny_manifest / "0.context.png"
    arguments = ["edit", photo, "--object", "square", "--style", "pixel-art", "--base", tiny_klein]
    arguments += ["--experts", trained / "experts"]
    pictures = {}
    for mode in ("routed", "plain"):
        out = tmp_path / mode / "out.png"
        more = ["--mode", mode, "--out", out, "--map", tmp_path / mode / "map.png"]
        assert cli.main([*map(str, [*arguments, *more])]) == 0
        pictures[mode] = read_image(out)
        assert pictures[mode].shape == read_image(photo).shape
        assert (tmp_path / mode / "map.png").is_file()
    assert not torch.equal(pictures["routed"], pictures["plain"])
    assert not torch.equal(pictures["plain"], read_image(photo))


def test_the_stock_pipeline_paints_our_picture_with_a_trained_expert(
    trained, tiny_klein, tiny_manifest
):
    photo = Image.open(tiny_manifest / "0.context.png").convert("RGB")
    base = load_base(str(tiny_klein))
    registry = load_experts(trained / "experts", base)
    noise = base.draw_noise((1, 4, 32, 32), seed=4)
    embeds, pooled = base.encode_prompts([PROMPT])
    with routed(base.transformer, RouteContext(torch.tensor([registry.index("pixel-art")]))):
        latents = sample(
            base.transformer, base.scheduler, base.encode_images(from_pil(photo)[None]), embeds,
            pooled, steps=2, guidance=4.0, noise=noise, negative=base.negative(4.0),
        )  # fmt: skip
    with quiet():
        stock = Flux2KleinPipeline.from_pretrained(tiny_klein)
    stock.set_progress_bar_config(disable=True)
    call = {
        "image": photo, "prompt": PROMPT, "num_inference_steps": 2, "guidance_scale": 4.0,
        "max_sequence_length": 64, "output_type": "pt",
    }  # fmt: skip
    before = stock(**call, generator=torch.Generator().manual_seed(4)).images
    stock.load_lora_weights(trained / "experts" / "pixel-art")
    theirs = stock(**call, generator=torch.Generator().manual_seed(4)).images
    torch.testing.assert_close(base.decode_latents(latents), theirs, atol=5e-5, rtol=0)
    assert (theirs - before).abs().max() > 1e-3


def test_a_cached_run_is_the_same_and_accumulation_changes_no_loss(klein_runs):
    assert klein_runs("one") == 0
    assert klein_runs("again") == 0  # from the cache
    assert klein_runs.difference("one", "again") == 0
    rest = ["train.accumulation=2", "train.gradient_checkpointing=true"]
    assert klein_runs("two", *rest) == 0
    assert klein_runs.difference("one", "two") < 1e-5


def test_bfloat16_runs_stay_near(klein_runs):
    assert klein_runs("fp32", "train.steps=2") == 0
    assert klein_runs("bf16", "train.steps=2", "base.dtype=bfloat16") == 0
    assert 0 < klein_runs.difference("fp32", "bf16") < 0.1


def test_a_phrase_beyond_the_text_length_is_named(klein_runs, capsys):
    assert klein_runs("run", "base.max_text_length=12") == 2
    error = capsys.readouterr().err
    assert "lies beyond the 12 tokens this base reads" in error
    assert "im_start" not in error


def test_a_distilled_base_is_warned_of_with_the_reason(klein_runs, tmp_path, capsys):
    distilled = build_tiny_klein(tmp_path / "distilled", distilled=True)
    assert klein_runs("run", f"base.name={distilled}", "train.steps=1") == 0
    assert "is distilled to few steps" in capsys.readouterr().out
    assert klein_runs("plain", "train.steps=1") == 0
    assert "is distilled" not in capsys.readouterr().out


def test_a_cache_filled_alone_is_all_that_training_needs(klein_runs, capsys):
    assert main([*klein_runs.arguments("only"), "--cache-only"]) == 0
    assert not (klein_runs.output("only") / "experts").exists()
    capsys.readouterr()
    assert klein_runs("then", "train.steps=2") == 0
    assert "0 to encode" in capsys.readouterr().out
    whole = klein_runs.arguments("whole", "train.steps=2")
    assert main([*whole, f"data.cache={klein_runs.folder / 'other'}"]) == 0
    assert klein_runs.difference("then", "whole") == 0
