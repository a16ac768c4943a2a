"""Alignment with a vision network: what it draws, where it reads, what stays out of the base."""

import pytest
import torch
from safetensors.torch import save_file

from regionroute.diffusion.flow import predict_velocity
from regionroute.errors import UserError
from regionroute.models.loading import load_base
from train.pretrain.alignment import LAYER, Alignment
from train.pretrain.config import AlignmentConfig


@pytest.fixture(scope="module")
def vgg(tmp_path_factory, vgg_weights):
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(vgg_weights(), path)
    return path


@pytest.fixture
def transformer(tiny_base):
    return load_base(str(tiny_base)).transformer


def called(transformer, context):
    """One call with a context of [1,C,h,w]."""
    generator = torch.Generator().manual_seed(1)
    width = transformer.config.joint_attention_dim, transformer.config.pooled_projection_dim
    texts = torch.randn(len(context), 6, width[0], generator=generator)
    pooled = torch.randn(len(context), width[1], generator=generator)
    noisy = torch.randn(context.shape, generator=generator)
    return predict_velocity(
        transformer, noisy, context, texts, pooled, torch.full((len(context),), 0.9), 1.0
    )


def latents_of(transformer, count=1):
    channels = transformer.config.in_channels // 4
    return torch.randn(count, channels, 4, 6, generator=torch.Generator().manual_seed(2))


def test_it_reads_the_contexts_tokens_alone(transformer, vgg):
    alignment = Alignment(AlignmentConfig(vgg=str(vgg), block=0), transformer)
    called(transformer, latents_of(transformer))
    states = alignment._states

    # 4x6 latents are 2x3 tokens, of the noisy picture and then of the context.
    target = alignment.teacher[0](torch.rand(1, 3, 32, 48), [LAYER])[0]
    assert target.shape[2:] == (2, 3)
    seen = []
    alignment.project.register_forward_hook(lambda _, given, result: seen.append(given[0]))
    alignment.loss(torch.rand(1, 3, 32, 48), (2, 3))
    assert torch.equal(seen[0], states[:, -6:])


def test_states_that_are_the_features_cost_nothing(transformer, vgg):
    alignment = Alignment(AlignmentConfig(vgg=str(vgg), block=0, weight=2.0), transformer)
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    features = alignment.teacher[0](picture, [LAYER])[0]
    mean, std = features.mean((0, 2, 3), keepdim=True), features.std((0, 2, 3), keepdim=True)
    perfect = ((features - mean) / std).flatten(2).transpose(1, 2)

    alignment.project = torch.nn.Identity()
    for states, cost in ((perfect, 0), (-perfect, 4)):
        alignment._states = states
        assert alignment.loss(picture, (4, 4)).item() == pytest.approx(cost, abs=1e-3)


def test_it_teaches_the_blocks_before_it_and_nothing_after(transformer, vgg):
    transformer.requires_grad_(True)
    alignment = Alignment(AlignmentConfig(vgg=str(vgg), block=0), transformer)
    called(transformer, latents_of(transformer))
    alignment.loss(torch.rand(1, 3, 32, 48), (2, 3)).backward()

    assert transformer.single_transformer_blocks[0].proj_out.weight.grad.abs().max() > 0
    assert transformer.proj_out.weight.grad is None
    assert transformer.x_embedder.weight.grad.abs().max() > 0
    assert all("teacher" not in name for name in alignment.state_dict())
    assert not any(p.requires_grad for p in alignment.teacher[0].parameters())


def test_what_cannot_be_aligned_is_one_sentence(transformer, vgg, tmp_path):
    with pytest.raises(UserError, match=r"base\.alignment\.vgg=.*none"):
        Alignment(AlignmentConfig(vgg=str(tmp_path / "none")), transformer)
    with pytest.raises(UserError, match=r"base\.alignment\.block=9"):
        Alignment(AlignmentConfig(vgg=str(vgg), block=9), transformer)
