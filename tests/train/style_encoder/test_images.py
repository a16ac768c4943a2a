"""Pictures of styles: where they are found, what is kept aside, and which pairs are drawn."""

import numpy as np
import pytest
import torch

from regionroute.data.images import write_image
from regionroute.errors import UserError
from train.style_encoder.images import (
    StylePicture,
    draw_pairs,
    hold_out,
    load_pixels,
    only_styles,
    read_style_pictures,
    styles_of,
)


def write(folder, *names):
    for i, name in enumerate(names):
        write_image(folder / name, torch.full((3, 8, 12), i / 10))
    return folder


@pytest.fixture
def styles(tmp_path):
    return write(
        tmp_path / "styles", "ink/a.png", "ink/b.png", "ink/c.png", "oil/a.png", "oil/b.png",
        "oil/c.png",
    )  # fmt: skip


def test_a_folder_a_style_and_a_stem_a_content(styles):
    (styles / "ink" / "notes.txt").write_text("not a picture")
    (styles / "loose.png").write_bytes(b"")
    pictures = read_style_pictures(styles)
    assert [(p.style, p.content) for p in pictures] == [
        (style, content) for style in ("ink", "oil") for content in "abc"
    ]
    assert pictures[0].read().shape == (3, 8, 12)


def test_restyled_objects_are_cut_out_of_a_manifest(tiny_manifest):
    pictures = read_style_pictures(tiny_manifest, split=None)
    assert styles_of(pictures)
    for picture in pictures[:3]:
        y0, x0, y1, x1 = picture.box
        assert picture.read().shape == (3, y1 - y0, x1 - x0)
    contexts = {picture.content for picture in pictures}
    assert len(contexts) > 1


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda p: p / "nowhere", "no such folder"),
        (lambda p: write(p / "empty", "x.png"), "has no images of styles"),
        (lambda p: write(p / "one", "ink/a.png"), "'ink' has images of one content only"),
    ],
)
def test_nothing_to_learn_from_is_said(tmp_path, prepare, message):
    with pytest.raises(UserError, match=message):
        read_style_pictures(prepare(tmp_path))


def test_an_unknown_split_of_a_manifest_is_said(tiny_manifest):
    with pytest.raises(UserError, match="split 'dev' has no images"):
        read_style_pictures(tiny_manifest, "dev")


def test_styles_are_chosen_and_missed(styles):
    pictures = read_style_pictures(styles)
    assert styles_of(only_styles(pictures, ["oil"], "here")) == ["oil"]
    with pytest.raises(UserError, match="here: no images of style 'oils', the nearest is 'oil'"):
        only_styles(pictures, ["oils"], "here")


def test_what_is_kept_aside_shows_other_things(styles):
    pictures = read_style_pictures(styles)
    training, held = hold_out(pictures, 0.3, seed=0)
    assert sorted([*training, *held]) == list(range(6))
    assert {pictures[i].content for i in training}.isdisjoint(pictures[i].content for i in held)
    assert hold_out(pictures, 0, seed=0) == (list(range(6)), [])
    with pytest.raises(UserError, match=r"pictures.held_out=0.7: style 'ink' has too few"):
        hold_out(pictures, 0.7, seed=0)


def test_the_bank_is_read_once_and_again_when_a_picture_changes(styles, tmp_path):
    pictures = read_style_pictures(styles)
    bank = load_pixels(pictures, 4, tmp_path / "bank.npy")
    assert bank.shape == (6, 3, 4, 4)
    assert bank[1].max() == round(255 * 0.1)
    [file] = tmp_path.glob("bank-*.npy")
    write_image(styles / "ink/b.png", torch.ones(3, 9, 9))
    assert load_pixels(read_style_pictures(styles), 4, tmp_path / "bank.npy")[1].min() == 255
    assert not file.exists()
    (styles / "oil" / "a.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"a\.png"):
        load_pixels(read_style_pictures(styles), 4, tmp_path / "bank.npy")


def test_a_pair_shares_its_style_and_never_its_content(tmp_path):
    pictures = [
        StylePicture(tmp_path / f"{style}-{content}-{n}.png", style, content)
        for style, contents in (("ink", "ab"), ("oil", "abcde"), ("pen", "cde"))
        for content in contents
        for n in range(2)
    ]
    everything, seen = range(len(pictures)), set()
    for seed in range(30):
        first, second = draw_pairs(pictures, everything, 8, np.random.default_rng(seed))
        assert len(first) == len(second) == 8
        for a, b in zip(first, second, strict=True):
            assert pictures[a].style == pictures[b].style
        # Not only row by row: no picture of one batch shows what one of the other shows alike.
        shown = [{(pictures[i].style, pictures[i].content) for i in x} for x in (first, second)]
        assert shown[0].isdisjoint(shown[1])
        counts = [sum(pictures[i].style == s for i in first) for s in styles_of(pictures)]
        assert max(counts) - min(counts) <= 1
        seen |= {*first, *second}
    assert seen == set(everything)


def test_pictures_of_every_format_but_hidden_ones_count(tmp_path):
    for name in ("oil/a.avif", "oil/b.HEIC", "oil/._a.avif", ".trash/a.png", ".trash/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [file.path.name for file in read_style_pictures(tmp_path)] == ["a.avif", "b.HEIC"]
    with pytest.raises(UserError, match=r"a\.avif: this is a file, give a folder"):
        read_style_pictures(tmp_path / "oil" / "a.avif")
