"""Descriptions and what they mean, with the packaged word vectors."""

import pytest
import torch

from pseudo_labels.stylemamba.bank.words import FAR, style_scores, style_weights
from regionroute.errors import UserError

STYLES = {
    "impressionist": ("impressionist", "claude monet", "loose impressionist brush strokes"),
    "impasto": ("impasto", "thick oil paint", "oil painting"),
    "line-art": ("line art", "outlines on white paper"),
    "neon": ("neon", "glowing tubes in the dark"),
}


def weights(request):
    found, score = style_weights(request, STYLES)
    return dict(zip(STYLES, found.tolist(), strict=True)), score


@pytest.mark.parametrize("words", ["line art", "Line-Art", "outlines on white paper!"])
def test_a_known_description_is_one_style(words):
    assert weights(words) == ({"impressionist": 0, "impasto": 0, "line-art": 1, "neon": 0}, 1.0)


def test_two_styles_in_one_description_are_blended():
    found, score = weights("a loose impressionist oil painting")
    assert score > FAR
    assert found["impressionist"] > 0.2 < found["impasto"]
    assert found["line-art"] == found["neon"] == 0
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "style"),
    [
        ("a luminous tube at night", "neon"),
        ("manet", "impressionist"),
    ],
)
def test_unseen_wording_falls_near(words, style):
    found, _ = weights(words)
    assert max(found, key=found.get) == style


def test_nonsense_is_far():
    assert weights("xqzt")[1] < FAR


def test_filler_words_do_not_count():
    plain, filled = (
        style_scores(text, STYLES) for text in ("neon", "a picture in the style of neon")
    )
    assert torch.equal(plain, filled)


@pytest.mark.parametrize("words", ["", "  ", "!?"])
def test_no_words_are_refused(words):
    with pytest.raises(UserError, match="the words are empty"):
        style_weights(words, STYLES)
