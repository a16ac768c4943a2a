import dataclasses

import pytest
import torch
from PIL import Image

from regionroute.config.run import FlowConfig, load_config
from regionroute.data.images import read_image, resize
from regionroute.data.manifest import load_manifest, write_manifest
from regionroute.diffusion.latents import mask_to_grid
from regionroute.errors import UserError
from regionroute.models.loading import load_base
from regionroute.models.tiny import build_tiny
from train.data.cache import Cache
from train.data.dataset import TrainingData, members_of, pad_token_index, stream
from train.data.encode import Encoder, identity, model_size
from train.data.order import SampleOrder

SIZE = (32, 32)


@pytest.fixture(scope="module")
def backbone(tiny_base):
    return load_base(str(tiny_base))


@pytest.fixture
def manifest(tiny_manifest):
    return load_manifest(tiny_manifest)


def config_for(manifest, *overrides):
    return load_config(None, [f"data.manifest={manifest.root}", *overrides])


def prepared(backbone, manifest, folder, samples=None):
    """Training data of all samples, its cache filled."""
    encoder = Encoder(backbone, manifest, SIZE)
    styles = ["line-art", "pixel-art"]
    examples = [
        encoder.example(sample, styles.index(sample.regions[0].style))
        for sample in samples or manifest.samples
    ]
    cache = Cache(folder / "cache")
    cache.fill(encoder.entries(samples or manifest.samples))
    return TrainingData(examples, cache, seed=0, global_batch=3, flow=FlowConfig())


def rewrite(manifest, change):
    """The manifest with some samples changed."""
    write_manifest(manifest.root, [change(sample) for sample in manifest.samples])
    return load_manifest(manifest.root)


def test_an_image_encoder_sees_the_image_itself(manifest):
    base, size = load_base("nano-photos"), (128, 128)
    sample = manifest.samples[0]
    found = Encoder(base, manifest, size).needs(sample).context.make()["latents"]
    image = read_image(manifest.root / sample.context)[None]
    assert image.shape[-2:] != size
    assert torch.equal(found, base.encode_images(image, size)[0])
    own = base.vae.pixel_channels
    fitted = base.encode_images(resize(image, size))[0]
    assert torch.equal(found[:own], fitted[:own])
    assert not torch.equal(found[own:], fitted[own:])


def test_two_shuffled_epochs_give_each_id_its_own_tensors(backbone, manifest, tmp_path):
    data = prepared(backbone, manifest, tmp_path)
    by_id = {sample.id: sample for sample in manifest.samples}
    seen, orders = {name: 0 for name in by_id}, []
    for step in range(8):  # 24 samples: six epochs of four
        batch = data.batch(step, range(3))
        assert list(batch.ids) == data.ids(step)
        orders += batch.ids
        for row, name in enumerate(batch.ids):
            seen[name] += 1
            sample = by_id[name]
            for kind in ("context", "target"):
                image = resize(read_image(manifest.root / getattr(sample, kind))[None], SIZE)
                assert torch.equal(getattr(batch, kind)[row], backbone.encode_images(image)[0]), (
                    kind
                )
            states, pooled = backbone.encode_prompts([sample.prompt])
            assert torch.equal(batch.prompt_embeds[row], states[0])
            assert torch.equal(batch.pooled[row], pooled[0])
            mask = manifest.masks(sample)
            assert torch.equal(batch.plan.masks[row], mask_to_grid(mask, 8, 8))
            assert torch.equal(batch.inside[row], mask_to_grid(mask, 16, 16))
            style = sample.regions[0].style
            assert batch.expert_ids[row] == ["line-art", "pixel-art"].index(style)
            ids = backbone.tokenizer_2(sample.prompt)["input_ids"]
            positions = batch.plan.token_index[row, 0]
            words = backbone.tokenizer_2.decode([ids[i] for i in positions if i >= 0])
            assert words == style
    assert set(seen.values()) == {6}
    epochs = [orders[i : i + 4] for i in range(0, 24, 4)]
    assert all(sorted(epoch) == sorted(by_id) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_batches_do_not_depend_on_how_they_are_cut(backbone, manifest, tmp_path):
    data = prepared(backbone, manifest, tmp_path)
    whole = data.batch(5, range(3))
    for member in range(3):
        part = data.batch(5, [member])
        assert part.ids[0] == whole.ids[member]
        for name in ("target", "noise", "sigma", "prompt_embeds"):
            assert torch.equal(getattr(part, name)[0], getattr(whole, name)[member])
    again = data.batch(6, range(3))
    assert not torch.equal(again.noise, whole.noise)
    assert not torch.equal(again.sigma, whole.sigma)
    assert whole.noise.std() == pytest.approx(1, abs=0.1)


def test_reading_ahead_changes_nothing(backbone, manifest, tmp_path):
    data = prepared(backbone, manifest, tmp_path)
    schedule = [(step, range(3)) for step in range(5)]
    for one, other in zip(stream(data, schedule, 0), stream(data, schedule, 3), strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.noise, other.noise)


def test_a_file_renamed_keeps_its_key_and_a_file_changed_does_not(backbone, manifest):
    first = manifest.samples[0]
    key = Encoder(backbone, manifest, SIZE).example(first, 0).context
    (manifest.root / first.context).rename(manifest.root / "renamed.png")
    renamed = dataclasses.replace(first, context="renamed.png")
    assert Encoder(backbone, manifest, SIZE).example(renamed, 0).context == key
    assert Encoder(backbone, manifest, (48, 48)).example(renamed, 0).context != key
    other = (manifest.root / manifest.samples[1].context).read_bytes()
    (manifest.root / "renamed.png").write_bytes(other)
    assert Encoder(backbone, manifest, SIZE).example(renamed, 0).context != key


def test_bases_of_one_shape_and_other_weights_do_not_share_entries(backbone, manifest, tmp_path):
    other = load_base(str(build_tiny(tmp_path / "other", seed=1)))
    assert other.fingerprint == backbone.fingerprint
    assert identity(other.vae) != identity(backbone.vae)
    ours = Encoder(backbone, manifest, SIZE).example(manifest.samples[0], 0)
    theirs = Encoder(other, manifest, SIZE).example(manifest.samples[0], 0)
    assert ours.context != theirs.context
    assert ours.text != theirs.text
    assert ours.masks == theirs.masks


def test_without_buckets_one_aspect_is_kept_and_several_become_a_square(backbone):
    assert model_size(backbone, {(64, 64), (128, 128)}) == (32, 32)
    assert model_size(backbone, {(64, 128)}) == (24, 44)  # 2:1 as near as multiples of 4 allow
    assert model_size(backbone, {(64, 64), (64, 128)}) == (32, 32)


def test_a_phrase_that_is_cut_off_or_missing_names_its_sample(tiny_base, manifest):
    short = load_base(str(tiny_base))
    short.settings = dataclasses.replace(short.settings, max_text_length=5)
    with pytest.raises(UserError, match=r"manifest\.jsonl: sample 'pair-0': .*beyond the 5 tokens"):
        Encoder(short, manifest, SIZE).example(manifest.samples[0], 0)
    lost = dataclasses.replace(manifest.samples[0], prompt="make the square nice")
    with pytest.raises(UserError, match=r"sample 'pair-0': .*style 'pixel-art' is not in it"):
        Encoder(short, manifest, SIZE).example(lost, 0)


def test_a_missing_picture_or_a_mask_of_another_size_is_named(backbone, manifest, tmp_path):
    small, big = manifest.samples[0], manifest.samples[1]
    with pytest.raises(UserError, match=r"nowhere\.png: no such image"):
        Encoder(backbone, manifest, SIZE).example(
            dataclasses.replace(small, target="nowhere.png"), 0
        )
    Image.new("L", (8, 8), 255).save(manifest.root / big.regions[0].mask)
    encoder = Encoder(backbone, manifest, SIZE)
    with pytest.raises(UserError, match=r"1\.mask\.png: the mask is 8x8 pixels"):
        Cache(tmp_path / "cache").fill(encoder.entries([big]))


def test_several_regions_are_padded_not_pooled(backbone, manifest, tmp_path):
    one, two = manifest.samples[0], manifest.samples[1]
    prompt = (
        "make the square in pixel-art style and the circle in pixel-art style, keep other area "
        "unchanged"
    )
    regions = tuple(
        dataclasses.replace(region, style_span=(start, start + 9))
        for region, start in ((one.regions[0], 19), (two.regions[0], 53))
    )
    pair = dataclasses.replace(one, id="both", prompt=prompt, regions=regions)
    data = prepared(backbone, manifest, tmp_path, [pair, two])
    batch = data.batch(0, range(3))
    rows = {name: row for row, name in enumerate(batch.ids)}
    both, single = rows["both"], rows["pair-1"]
    assert batch.plan.valid[both].tolist() == [True, True]
    assert batch.plan.valid[single].tolist() == [True, False]
    assert batch.plan.token_index[both, 0, 0] < batch.plan.token_index[both, 1, 0]
    assert batch.plan.token_index[single, 1].eq(-1).all()
    union = batch.inside[both, 0]
    assert union.sum() > batch.inside[single, 0].sum()
    assert union.max() <= 1


def test_shares_of_the_global_batch_are_disjoint_and_complete():
    shares = [list(members_of(r, 2, m, 2, 8)) for m in range(2) for r in range(2)]
    assert [member for share in shares for member in share] == list(range(8))
    with pytest.raises(ValueError, match="8 samples for 3 processes"):
        members_of(0, 3, 0, 1, 8)


def test_order_is_a_permutation_an_epoch_and_depends_on_the_seed():
    order, other = SampleOrder(50, 0), SampleOrder(50, 1)
    first, second = [order[i] for i in range(50)], [order[i] for i in range(50, 100)]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != [other[i] for i in range(50)]
    assert first == [SampleOrder(50, 0)[i] for i in range(50)]


def test_token_positions_are_padded_with_minus_one():
    index = pad_token_index([[(3, 4)], [(5,), (6, 7)]])
    assert index.tolist() == [[[3, 4], [-1, -1]], [[5, -1], [6, 7]]]


def test_an_object_that_is_the_whole_picture_is_not_supervised(backbone, manifest, tmp_path):
    Image.new("L", (64, 64), 255).save(manifest.root / "0.mask.png")
    data = prepared(backbone, manifest, tmp_path)
    batch = data.batch(0, range(3))
    for row, name in enumerate(batch.ids):
        assert batch.plan.valid[row].tolist() == [name != "pair-0"]
    assert {"pair-0"} & {name for step in range(2) for name in data.batch(step, range(3)).ids}
