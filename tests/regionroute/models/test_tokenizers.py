"""The small vocabularies: whole words, fallback to letters, offsets, reload, no collisions."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, T5TokenizerFast

from regionroute.models.tokenizers import build_clip_tokenizer, build_t5_tokenizer

WORDS = ["make", "the", "in", "style", "image", "banana", "pixel-art", "line-art", "bananas", "a"]
TEXT = "Make  the Dóg, in PIXEL-ART Style"


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> T5TokenizerFast:
    """Reloaded from disk: what a checkpoint would give."""
    folder = tmp_path_factory.mktemp("t5")
    build_t5_tokenizer(WORDS, 32).save_pretrained(folder)
    return T5TokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("clip")
    build_clip_tokenizer(WORDS, 16).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)


def test_t5_known_words_are_single_tokens_whatever_their_case(t5: T5TokenizerFast) -> None:
    assert pieces(t5, "MAKE the Pixel-Art bananas") == ["▁make", "▁the", "▁pixel-art", "▁bananas"]


def test_t5_other_words_fall_back_to_letters_without_unknowns(t5: T5TokenizerFast) -> None:
    assert pieces(t5, "zèbra?") == ["▁", "z", "e", "b", "r", "a", "?"]


def test_t5_offsets_point_into_the_original_text(t5: T5TokenizerFast) -> None:
    encoded = t5(TEXT, return_offsets_mapping=True, add_special_tokens=False)
    whole = {
        token: TEXT[start:end]
        for token, (start, end) in zip(encoded.tokens(), encoded.offset_mapping, strict=True)
    }
    assert whole["▁pixel-art"] == "PIXEL-ART"
    assert whole["▁style"] == "Style"
    assert whole["o"] == "ó"


def test_t5_pads_and_ends_like_t5(t5: T5TokenizerFast) -> None:
    ids = t5("make a", padding="max_length", max_length=5).input_ids
    assert t5.convert_ids_to_tokens(ids) == ["▁make", "▁a", "</s>", "<pad>", "<pad>"]
    assert ids[-1] == 0
    assert ids[-3] == 1


@pytest.mark.parametrize("word", ["make", "the", "image", "banana", "bananas", "style", "a"])
def test_clip_known_words_are_single_tokens(clip: CLIPTokenizer, word: str) -> None:
    assert pieces(clip, word.upper()) == [word + "</w>"]


def test_clip_encodes_anything_and_ends_with_the_highest_id(clip: CLIPTokenizer) -> None:
    encoded = clip("Zébra 7 日", padding="max_length", max_length=16, return_offsets_mapping=True)
    end = clip.convert_tokens_to_ids("<|endoftext|>")
    assert max(encoded.input_ids) == end == len(clip) - 1
    assert encoded.input_ids[1:].index(end) > 3
    assert len(encoded.input_ids) == 16
