import pytest
import torch

from regionroute.data.object_bank import ObjectBank
from regionroute.errors import UserError
from train.pretrain.config import PhotoPairsConfig
from train.pretrain.photo_pairs import TASKS, PairMaker


@pytest.fixture(scope="module")
def bank(bank_case, tmp_path_factory):
    return ObjectBank(bank_case.make_bank(tmp_path_factory.mktemp("bank")))


def maker(bank, **settings):
    return PairMaker(bank, "train", 32, PhotoPairsConfig(**settings))


def drawn(number):
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize("task", TASKS)
def test_a_pair_is_what_its_task_says(bank, task):
    for number in range(6):
        pair = maker(bank).pair(drawn(number), task)

        assert pair.task == task
        assert pair.context.shape == pair.target.shape == (3, 32, 32)
        changed = (pair.context - pair.target).abs().amax(0) > 1e-6
        if task in ("copy", "absent"):
            assert not changed.any()
        if task == "highlight":
            assert set(pair.target.unique().tolist()) <= {0.0, 1.0}
            assert 0 < pair.target.mean() < 0.9
        if task == "recolour":
            assert 0 < changed.float().mean() < 0.9
        if task in ("style", "tint"):
            assert changed.float().mean() > 0.9


def test_a_pair_depends_on_its_generator_alone(bank):
    first, again, other = (maker(bank).pair(drawn(number)) for number in (3, 3, 4))

    assert first.prompt == again.prompt
    assert torch.equal(first.target, again.target)
    assert not torch.equal(first.context, other.context)


def test_the_named_object_alone_is_recoloured_among_several(bank):
    pairs = [
        maker(bank, pasted=(0, 1, 0), pasted_size=(0.4, 0.4)).pair(drawn(number), "recolour")
        for number in range(12)
    ]
    # Objects are the only red things; where a pair changes, its context is red.
    for pair in pairs:
        changed = (pair.context - pair.target).abs().amax(0) > 0.1
        red = (pair.context[0] > 0.6) & (pair.context[1] < 0.3)
        assert (changed & ~red).float().mean() < 0.1
    both = [
        pair
        for pair in pairs
        if ((pair.context - pair.target).abs().amax(0) < 0.01)[
            (pair.context[0] > 0.6) & (pair.context[1] < 0.3)
        ].any()
    ]
    assert both  # in some pictures another red object was left as it was


def test_photos_are_scaled_down_as_far_as_they_fill_the_picture(bank):
    only_whole = {"pasted": (1, 0, 0), "tasks": {"highlight": 1}}
    cropped, scaled, no_further = (
        maker(bank, least_scale=scale, **only_whole) for scale in (1, 0.8, 0.1)
    )

    assert {cropped._crop(drawn(number)) for number in range(20)} == {32}
    assert {scaled._crop(drawn(number)) for number in range(99)} == set(range(32, 41))
    assert max(no_further._crop(drawn(number)) for number in range(99)) == bank.side
    pairs = [scaled.pair(drawn(number)) for number in range(8)]
    assert set(torch.stack([pair.target for pair in pairs]).unique().tolist()) == {0.0, 1.0}


def test_twins_show_the_same_picture_and_name_another_object(bank):
    pairs = maker(bank, twins=1, pasted=(0, 1, 0), tasks={"recolour": 1}).pairs(drawn(1), 8)
    for first, twin in zip(pairs[::2], pairs[1::2], strict=True):
        assert torch.equal(first.context, twin.context)
        assert first.word != twin.word
        assert (twin.task == "absent") == torch.equal(twin.context, twin.target)
    assert len(maker(bank, twins=1).pairs(drawn(2), 5)) == 5


def test_a_twin_of_a_highlighted_object_may_be_dark(bank):
    settings = {"twins": 1, "pasted": (0.5, 0.5, 0), "tasks": {"highlight": 1}}
    pairs = maker(bank, **settings).pairs(drawn(4), 24)
    assert {pair.task for pair in pairs} == {"highlight"}
    for first, twin in zip(pairs[::2], pairs[1::2], strict=True):
        assert first.target.any()
        assert not (first.target * twin.target).any()  # one is where the other is not
    assert any(not twin.target.any() for twin in pairs[1::2])
    assert any(twin.target.any() for twin in pairs[1::2])


def test_absent_words_are_words_of_other_photos(bank):
    pairs = [
        maker(bank, pasted=(1, 0, 0)).pair(drawn(number), task)
        for number in range(8)
        for task in ("absent", "recolour")
    ]
    named = [next(word for word in ("dog", "cup") if word in pair.prompt) for pair in pairs]
    assert all(absent != present for absent, present in zip(named[::2], named[1::2], strict=True))


def test_a_style_is_composed_as_the_photo_is(bank):
    """Where a photo lies whole in the picture, its style does too."""
    pair = maker(bank, pasted=(1, 0, 0)).pair(drawn(0), "style")
    name = "pixel-art" if "pixel" in pair.prompt else "cyberpunk"
    windows = [
        bank.image(name, photo)[:, top : top + 32, left : left + 32]
        for photo in bank.split("train")
        for top in range(9)
        for left in range(9)
    ]
    assert any(
        torch.equal(pair.target, window) or torch.equal(pair.target, window.flip(-1))
        for window in windows
    )


def test_a_bank_that_gives_no_such_pairs_is_one_sentence(bank):
    with pytest.raises(UserError, match="make a bank with --size 64"):
        PairMaker(bank, "train", 64, PhotoPairsConfig())
    with pytest.raises(UserError, match="'validation'"):
        PairMaker(bank, "validation", 32, PhotoPairsConfig())


def test_a_bank_of_photos_only_is_refused(bank, monkeypatch):
    monkeypatch.setattr(bank, "names", lambda kind: [])
    with pytest.raises(UserError, match="without --photos-only"):
        PairMaker(bank, "train", 32, PhotoPairsConfig())


def test_highlighted_pictures_may_have_other_colours_and_the_same_mask(bank):
    for number in range(6):
        plain = maker(bank).pair(drawn(number), "highlight")
        other = maker(bank, other_colours=1.0).pair(drawn(number), "highlight")

        assert torch.equal(plain.target, other.target)
        assert plain.prompt == other.prompt
        assert not torch.equal(plain.context, other.context)
        assert 0 <= other.context.min() <= other.context.max() <= 1
