"""Flow matching: noise path, draws, and a sampler equal to the stock Kontext pipeline's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline
from torch import Tensor

from regionroute.diffusion.flow import (
    add_noise,
    draw_noise,
    draw_sigmas,
    predict_velocity,
    sample,
    velocity_target,
)
from regionroute.diffusion.latents import pack
from regionroute.models.backbone import Backbone

PROMPT = "make the dog in pixel-art style, keep other area unchanged"
HEIGHT, WIDTH = 16, 24


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(3))


def run_stock(stock: FluxKontextPipeline, image: Tensor, noise: Tensor, **changes: Any) -> Tensor:
    """The stock pipeline at the picture's own size; [B,3,H,W] in [0,1]."""
    arguments: dict[str, Any] = {
        "image": image,
        "prompt": PROMPT,
        "height": image.shape[2],
        "width": image.shape[3],
        "max_area": image.shape[2] * image.shape[3],
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "latents": pack(noise),
        "max_sequence_length": 32,
        "output_type": "pt",
        "_auto_resize": False,
    }
    return stock(**(arguments | changes)).images


def test_the_path_goes_from_picture_to_noise() -> None:
    picture, noise = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
    ends = add_noise(picture, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(ends[0], picture[0])
    assert torch.equal(ends[1], noise[1])


def test_the_target_is_the_paths_derivative() -> None:
    picture, noise = torch.randn(1, 4, 2, 2).double(), torch.randn(1, 4, 2, 2).double()
    low, high = torch.tensor([0.3]), torch.tensor([0.5])
    slope = (add_noise(picture, noise, high) - add_noise(picture, noise, low)) / (high - low)
    torch.testing.assert_close(slope, velocity_target(picture, noise), atol=1e-6, rtol=0)


def test_uniform_sigmas_cover_the_range_without_zero() -> None:
    sigmas = draw_sigmas(4000, generator=torch.Generator().manual_seed(0))
    assert 1e-3 <= sigmas.min() < 0.01
    assert 0.99 < sigmas.max() <= 1
    assert abs(sigmas.mean() - 0.5) < 0.02


def test_logit_normal_sigmas_have_the_asked_logit() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = draw_sigmas(4000, "logit_normal", mean=1.5, std=0.5, generator=generator).logit()
    assert abs(logits.mean() - 1.5) < 0.05
    assert abs(logits.std() - 0.5) < 0.05


def test_sigmas_follow_their_generator() -> None:
    draws = [draw_sigmas(5, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_unknown_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="logit_normal"):
        draw_sigmas(1, "cosine")  # type: ignore[arg-type]


def test_the_transformer_gets_what_the_stock_pipeline_gives_it(
    stock: FluxKontextPipeline,
    tiny_backbone: Backbone,
    image: Tensor,
    spy: Callable[[torch.nn.Module], list[dict[str, Any]]],
) -> None:
    """Training calls ``predict_velocity``: so its input is compared, tensor by tensor."""
    noise = draw_noise((1, 4, HEIGHT // 2, WIDTH // 2), seed=1)
    theirs, ours = spy(stock.transformer), spy(tiny_backbone.transformer)
    run_stock(stock, image, noise)
    stock_call = theirs[0]
    sigma = stock_call["timestep"]  # the pipeline hands over time / 1000

    embeds, pooled = tiny_backbone.encode_prompts([PROMPT])
    context = tiny_backbone.encode_images(image)
    with torch.no_grad():
        predict_velocity(
            tiny_backbone.transformer, noise, context, embeds, pooled, sigma, guidance=2.5
        )
    tensors = {
        "hidden_states",
        "timestep",
        "guidance",
        "pooled_projections",
        "encoder_hidden_states",
        "txt_ids",
        "img_ids",
    }
    assert tensors <= stock_call.keys()
    assert {key for key, value in ours[0].items() if isinstance(value, Tensor)} == tensors
    for key in tensors:
        torch.testing.assert_close(ours[0][key], stock_call[key], atol=1e-6, rtol=0, msg=key)
    # What the released trainer had wrong, stated outright: the context is frame 1.
    frames = ours[0]["img_ids"][:, 0]
    tokens = frames.numel() // 2
    assert frames.tolist() == [0.0] * tokens + [1.0] * tokens


def test_every_step_gets_the_pipelines_timestep(
    stock: FluxKontextPipeline,
    tiny_backbone: Backbone,
    image: Tensor,
    spy: Callable[[torch.nn.Module], list[dict[str, Any]]],
) -> None:
    noise = draw_noise((1, 4, HEIGHT // 2, WIDTH // 2), seed=1)
    theirs, ours = spy(stock.transformer), spy(tiny_backbone.transformer)
    run_stock(stock, image, noise)
    run_ours(tiny_backbone, image, noise)
    stock_times = torch.cat([call["timestep"] for call in theirs])
    torch.testing.assert_close(torch.cat([call["timestep"] for call in ours]), stock_times)
    assert len(set(stock_times.tolist())) == 3


def run_ours(base: Backbone, image: Tensor, noise: Tensor, **changes: Any) -> Tensor:
    """Our sampler with the arguments of ``run_stock``."""
    embeds, pooled = base.encode_prompts([PROMPT])
    latents = sample(
        base.transformer,
        base.scheduler,
        base.encode_images(image),
        embeds,
        pooled,
        **({"steps": 3, "guidance": 2.5, "noise": noise} | changes),
    )
    return base.decode_latents(latents)


def test_pictures_equal_the_stock_pipelines(
    stock: FluxKontextPipeline, tiny_backbone: Backbone, image: Tensor
) -> None:
    noise = draw_noise((1, 4, HEIGHT // 2, WIDTH // 2), seed=1)
    theirs = run_stock(stock, image, noise)
    torch.testing.assert_close(run_ours(tiny_backbone, image, noise), theirs, atol=1e-5, rtol=0)
    assert theirs.std() > 0.05  # a constant picture would prove nothing


def test_a_seed_means_the_same_noise_as_in_the_stock_pipeline(
    stock: FluxKontextPipeline, tiny_backbone: Backbone, image: Tensor
) -> None:
    noise = draw_noise((1, 4, HEIGHT // 2, WIDTH // 2), seed=7)
    generator = torch.Generator().manual_seed(7)
    theirs = run_stock(stock, image, noise, latents=None, generator=generator)
    torch.testing.assert_close(run_ours(tiny_backbone, image, noise), theirs, atol=1e-5, rtol=0)


def test_guidance_and_its_absence_are_like_the_pipelines(
    tiny_plain: Backbone, stock_plain: FluxKontextPipeline, tiny_backbone: Backbone, image: Tensor
) -> None:
    noise = draw_noise((1, 4, HEIGHT // 2, WIDTH // 2), seed=1)
    theirs = run_stock(stock_plain, image, noise)
    torch.testing.assert_close(run_ours(tiny_plain, image, noise), theirs, atol=1e-5, rtol=0)
    strong = run_ours(tiny_backbone, image, noise, guidance=9.0)
    assert (strong - run_ours(tiny_backbone, image, noise)).abs().max() > 1e-4


def test_a_batch_is_its_rows(tiny_backbone: Backbone, image: Tensor) -> None:
    noise = draw_noise((2, 4, HEIGHT // 2, WIDTH // 2), seed=1)
    embeds, pooled = tiny_backbone.encode_prompts([PROMPT, "make the cup in line-art style"])
    context = tiny_backbone.encode_images(torch.cat([image, image.flip(-1)]))
    arguments = {"steps": 2, "guidance": 3.5}

    def run(rows: slice) -> Tensor:
        return sample(
            tiny_backbone.transformer,
            tiny_backbone.scheduler,
            context[rows],
            embeds[rows],
            pooled[rows],
            noise=noise[rows],
            **arguments,
        )

    both = run(slice(0, 2))
    torch.testing.assert_close(both, torch.cat([run(slice(0, 1)), run(slice(1, 2))]))


def test_sampling_leaves_the_scheduler_alone_and_reports_each_step(
    tiny_backbone: Backbone, image: Tensor
) -> None:
    before = tiny_backbone.scheduler.sigmas.clone()
    steps: list[tuple[int, float]] = []
    surrounded: list[int] = []

    @contextmanager
    def observe(step: int) -> Iterator[None]:
        yield
        surrounded.append(step)

    noise = draw_noise((1, 4, HEIGHT // 2, WIDTH // 2), seed=1)
    run_ours(
        tiny_backbone,
        image,
        noise,
        callback=lambda step, sigma, latents: steps.append((step, sigma)),
        observe=observe,
    )
    assert torch.equal(tiny_backbone.scheduler.sigmas, before)
    assert [step for step, _ in steps] == surrounded == [0, 1, 2]
    assert steps[0][1] == 1.0
    assert steps[1][1] > steps[2][1] > 0
