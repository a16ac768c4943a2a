"""The word-aligned image encoder: shapes, zero-shot part, scores, state."""

import copy

import pytest
import torch
import torch.nn.functional as F

from regionroute.models.image_encoder import CLIP, DOUBT, SEEN, SUREST, ImageEncoder


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = ImageEncoder(channels=12, width=8, words=16, zoom=3)
    torch.nn.init.normal_(encoder.class_vectors)
    torch.nn.init.normal_(encoder.word_map)
    return encoder.eval().requires_grad_(False)


def test_one_clipped_vector_for_every_eight_pixels(encoder):
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = encoder(images, (32, 48))
    assert features.shape == (2, 12, 4, 6)
    assert not torch.equal(features[0], features[1])

    encoder.mean.fill_(1000.0)
    assert torch.equal(encoder(images, (32, 48)), torch.full_like(features, -CLIP))


def test_channels_are_standardised(encoder):
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    raw = encoder.head(*encoder.views(images, (32, 32)))
    encoder.mean.copy_(raw.mean((0, 2, 3)))
    encoder.deviation.copy_(raw.std((0, 2, 3)))
    features = encoder(images, (32, 32))
    assert features.mean((0, 2, 3)).abs().max() < 0.1
    assert features.std((0, 2, 3)) == pytest.approx(torch.ones(12), abs=0.1)
    assert torch.allclose(encoder.raw(features), raw, atol=1e-4) or features.abs().max() == CLIP


def test_without_a_trained_head_features_are_the_class_evidence(encoder):
    torch.nn.init.zeros_(encoder.out.weight)
    torch.nn.init.zeros_(encoder.out.bias)
    torch.nn.init.zeros_(encoder.zero_shot.weight)
    encoder.zero_shot.weight[:, :11] = torch.eye(11)[:, :, None, None]
    near, middle, far, evidence = encoder.views(torch.rand(1, 3, 32, 32) * 2 - 1, (32, 32))
    assert near.shape[-2:] == middle.shape[-2:] == (4, 4)
    assert far.shape[-2:] == evidence.shape[-2:] == (3, 3)

    raw = encoder.head(near, middle, far, evidence)
    expected = torch.nn.functional.interpolate(evidence[:, :11], (4, 4), mode="bilinear")
    assert torch.allclose(raw[:, :11], expected, atol=1e-5)
    assert raw[:, 11].abs().max() == 0  # no objectness without training


def test_a_score_is_the_mapped_words_product_plus_objectness(encoder):
    raw, words = torch.randn(2, 12, 3, 3), torch.randn(2, 5, 16)
    encoder.bias.fill_(0.5)
    scores = encoder.scores(raw, words)
    assert scores.shape == (2, 5, 3, 3)
    expected = raw[1, :11, 2, 0] @ encoder.word_map @ words[1, 4] + raw[1, 11, 2, 0] + 0.5
    assert scores[1, 4, 2, 0] == pytest.approx(float(expected), abs=1e-4)


def test_the_state_holds_the_head_alone(encoder):
    state = encoder.state_dict()
    assert not any("backbone" in name for name in state)
    assert sum(value.numel() for value in state.values()) < 50_000
    again = ImageEncoder(**encoder.sizes)
    again.load_state_dict(state)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    again.eval().requires_grad_(False)
    assert torch.equal(again(images, (32, 32)), encoder(images, (32, 32)))


@pytest.mark.parametrize("size", [(32, 48), (24, 40), (8, 16)])  # (8, 16): two positions
def test_presence_asks_scores_and_class_evidence_and_doubts_words_it_learned(encoder, size):
    images, words = torch.rand(2, 3, *size) * 2 - 1, torch.randn(2, 2, 16)
    phrases = [["dog", "grey dog"], ["Dog", "cup"]]
    *maps, evidence = encoder.views(images, size)
    known = torch.einsum("bdhw,bnd->bnhw", evidence, words)
    raw = encoder.head(*maps, evidence)
    known = F.interpolate(known, raw.shape[-2:], mode="bilinear", align_corners=False)
    surest = (encoder.scores(raw, words) + known).flatten(2) - DOUBT
    surest = surest.topk(min(SUREST, surest.shape[2])).values
    assert torch.allclose(encoder.presence(images, size, words, phrases), surest.sigmoid().mean(2))

    encoder.vocabulary = ("dog", "cat")
    surest[:, 0] -= SEEN
    assert torch.allclose(encoder.presence(images, size, words, phrases), surest.sigmoid().mean(2))


def test_a_photo_is_seen_in_its_own_detail(encoder):
    photo = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    small = F.interpolate(photo, (32, 32), mode="bilinear", antialias=True)
    sharp, blurred = encoder(photo, (32, 32)), encoder(small, (32, 32))
    assert sharp.shape == blurred.shape
    assert not torch.allclose(sharp, blurred, atol=0.1)


def test_low_precision_leaves_the_shared_backbone_as_it_is(encoder):
    images, words = torch.rand(1, 3, 32, 32) * 2 - 1, F.normalize(torch.randn(1, 2, 16), dim=-1)
    F.normalize(encoder.class_vectors, dim=-1, out=encoder.class_vectors)
    before = encoder(images, (32, 32)), encoder.presence(images, (32, 32), words, [["dog", "cup"]])
    low = copy.deepcopy(encoder).bfloat16()
    found = low.presence(images.bfloat16(), (32, 32), words.bfloat16(), [["dog", "cup"]])
    assert (found - before[1]).abs().max() < 0.05
    assert torch.equal(encoder(images, (32, 32)), before[0])
