"""Prompts and spans: the wording, marked phrases, tokens of a phrase, clear refusals."""

from __future__ import annotations

import pytest
from transformers import T5TokenizerFast

from regionroute.data.prompts import (
    Prompt,
    build_prompt,
    find_spans,
    object_words,
    parse_marked,
    restyle_prompt,
    token_indices,
)
from regionroute.errors import UserError
from regionroute.models.tiny import WORDS
from regionroute.models.tokenizers import build_clip_tokenizer, build_t5_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> T5TokenizerFast:
    return build_t5_tokenizer(WORDS, 32)


def phrases(prompt: Prompt) -> list[tuple[str, str]]:
    """The words each pair of spans covers."""
    pairs = zip(prompt.object_spans, prompt.style_spans, strict=True)
    return [(prompt.text[slice(*o)], prompt.text[slice(*s)]) for o, s in pairs]


def test_template_of_the_paper() -> None:
    prompt = build_prompt([("dog", "pixel-art")])
    assert prompt.text == "make the dog in pixel-art style, keep other area unchanged"
    assert phrases(prompt) == [("dog", "pixel-art")]


def test_several_clauses_keep_their_own_spans_even_with_one_style() -> None:
    prompt = build_prompt([("dog", "line-art"), ("red  cup", "line-art")])
    assert prompt.text == (
        "make the dog in line-art style and the red cup in line-art style, "
        "keep other area unchanged"
    )
    assert phrases(prompt) == [("dog", "line-art"), ("red cup", "line-art")]
    assert len(set(prompt.style_spans)) == 2


def test_object_and_style_may_be_the_same_word() -> None:
    prompt = build_prompt([("style", "style")])
    assert phrases(prompt) == [("style", "style")]
    assert prompt.object_spans != prompt.style_spans


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("dog", "dog"),
        ("the cat", "cat"),
        ("A  Dog ", "dog"),
        ("an\tapple", "apple"),
        ("the_red_cup", "red cup"),
        ("The the cat", "cat"),
        ("teddy-bear", "teddy bear"),
        ("teddy\u2011bear", "teddy bear"),
        ("a-frame", "a frame"),  # no article
        ("theatre", "theatre"),
        ("the", "the"),
        ("two dogs", "two dogs"),
        ("glasses", "glasses"),
        ("-", ""),
    ],
)
def test_object_words(written: str, words: str) -> None:
    assert object_words(written) == words


def test_training_prompts_keep_the_words_of_their_labels() -> None:
    prompt = build_prompt([("The teddy-bear", "pixel-art")])
    assert phrases(prompt) == [("The teddy-bear", "pixel-art")]


def test_restyle_prompt() -> None:
    assert restyle_prompt("line-art") == "make the image in line-art style"


@pytest.mark.parametrize("pairs", [[], [("", "pixel-art")], [("dog", " \t")]])
def test_empty_phrases_are_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(UserError, match=r"empty|at least one"):
        build_prompt(pairs)


@pytest.mark.parametrize("pair", [("...", "neon"), ("dog", "-_-")])
def test_phrases_without_letters_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(UserError, match="has no letters"):
        build_prompt([pair])


def test_marked_prompt_in_either_order() -> None:
    prompt = parse_marked("A {pixel-art} look for the [big dog]; {line-art} for the [cup].")
    assert prompt.text == "A pixel-art look for the big dog; line-art for the cup."
    assert phrases(prompt) == [("big dog", "pixel-art"), ("cup", "line-art")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("turn the [dog into {x}", "no partner"),
        ("turn the dog] into {x}", "no partner"),
        ("turn the [do[g]] into {x}", "no partner|nested"),
        ("turn the [{dog}] into {x}", "nested"),
        ("turn the [] into {x}", "marks nothing"),
        ("turn the [???] into {x}", "object '\\?\\?\\?' has no letters"),
        ("turn the [dog] into {-}", "style '-' has no letters"),
        ("turn the [dog] into x", "1 \\[objects\\] and 0 \\{styles\\}"),
        ("turn the [dog] and [cup] into {x}", "2 \\[objects\\] and 1 \\{styles\\}"),
        ("turn the dog into x", "0 \\[objects\\]"),
        ("", "0 \\[objects\\]"),
    ],
)
def test_badly_marked_prompts_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_marked(text)


def test_find_spans_ignores_case_and_longer_words() -> None:
    text = "Dog-like hotdog and the DOG in Pixel-Art style"
    (o0, o1), (s0, s1) = find_spans(text, "dog", "pixel-art")
    assert (text[o0:o1], text[s0:s1]) == ("DOG", "Pixel-Art")
    assert o0 == 24


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("make the cup in pixel-art style", "'dog' is not in it"),
        ("make the dog and the dog in pixel-art style", "'dog' is in it 2 times"),
        ("make the dog in pixel-artful style", "'pixel-art' is not in it"),
    ],
)
def test_find_spans_refuses_missing_and_ambiguous(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        find_spans(text, "dog", "pixel-art")


def test_tokens_of_known_and_spelled_out_phrases(tokenizer: T5TokenizerFast) -> None:
    prompt = build_prompt([("zebra", "pixel-art"), ("dog", "gouache")])
    tokens = tokenizer(prompt.text).tokens()

    def words(span: tuple[int, int]) -> list[str]:
        return [tokens[i] for i in token_indices(tokenizer, prompt.text, span, 64)]

    assert words(prompt.style_spans[0]) == ["▁pixel-art"]
    assert words(prompt.object_spans[0]) == ["▁", "z", "e", "b", "r", "a"]
    assert words(prompt.object_spans[1]) == ["▁dog"]
    assert words(prompt.style_spans[1]) == ["▁", *"gouache"]


def test_tokens_follow_the_encoded_string_whatever_its_case_and_spaces(
    tokenizer: T5TokenizerFast,
) -> None:
    prompt = parse_marked("  Make   the [DÓG] in {PIXEL-ART}  style")
    tokens = tokenizer(prompt.text).tokens()
    [index] = token_indices(tokenizer, prompt.text, prompt.style_spans[0], 32)
    assert tokens[index] == "▁pixel-art"


def test_a_token_shared_with_a_neighbour_still_counts(tokenizer: T5TokenizerFast) -> None:
    text = "make the dogs"
    assert token_indices(tokenizer, text, (12, 13), 32) == [3]
    assert tokenizer(text).tokens()[3] == "s"


def test_clip_offsets_work_too() -> None:
    clip = build_clip_tokenizer(WORDS, 77)
    text = "make the dog"
    assert token_indices(clip, text, (9, 12), 77) == [3]  # after the start token


def test_truncation_is_refused_at_its_exact_border(tokenizer: T5TokenizerFast) -> None:
    text = "make the dog in pixel-art"  # 5 tokens and the end
    span = (16, 25)
    assert token_indices(tokenizer, text, span, 6) == [4]
    with pytest.raises(UserError, match=r"'pixel-art' lies beyond the 5 tokens"):
        token_indices(tokenizer, text, span, 5)


def test_a_half_truncated_phrase_is_refused(tokenizer: T5TokenizerFast) -> None:
    text = "make the zebra"
    with pytest.raises(UserError, match="lies beyond the 6 tokens"):
        token_indices(tokenizer, text, (9, 14), 6)


def test_control_tokens_are_refused_and_unknown_words_are_not(tokenizer: T5TokenizerFast) -> None:
    with pytest.raises(UserError, match="'</s>' is no word to this base"):
        token_indices(tokenizer, "make the </s>", (9, 13), 32)
    assert token_indices(tokenizer, "make the ⸘", (9, 10), 32)


def test_a_long_prompt_is_not_told_in_full(tokenizer: T5TokenizerFast) -> None:
    text = "dog " * 1000
    with pytest.raises(UserError, match=r"dog…'") as error:
        token_indices(tokenizer, text, (len(text) - 4, len(text) - 1), 32)
    assert len(str(error.value)) < 300


def test_text_after_the_phrase_may_be_cut(tokenizer: T5TokenizerFast) -> None:
    prompt = build_prompt([("dog", "pixel-art")])
    assert token_indices(tokenizer, prompt.text, prompt.style_spans[0], 6) == [4]


def test_a_phrase_without_tokens_is_refused(tokenizer: T5TokenizerFast) -> None:
    with pytest.raises(UserError, match="has no token"):
        token_indices(tokenizer, "a   b", (2, 3), 32)
