"""Small offline vocabularies for the real T5, CLIP and Qwen tokenizer classes.

A known word is one token, any other word falls back to its letters, so every prompt can be
encoded and every phrase has tokens. The classes rebuild their rules from their own code when
they load, keeping only vocabulary, merges and character map: whatever is special here has to
live in those three.
"""

from __future__ import annotations

import io
import re
import string
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer, Qwen2TokenizerFast, T5TokenizerFast

from regionroute.compat import t5_text_map

WORD_START = "▁"  # sentencepiece's mark of a word's beginning
WORD_END = "</w>"  # CLIP's mark of a word's end
QWEN_SPACE = "Ġ"  # how byte-level BPE writes a space
# Unigram scores are log probabilities: one whole word must beat any split of it.
WORD_SCORE, PIECE_SCORE, LETTER_SCORE = -4.0, -5.0, -10.0
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
QWEN_PAD, QWEN_START, QWEN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Qwen3's chat without tools and earlier answers, to the letter.
QWEN_CHAT = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)


def build_t5_tokenizer(
    words: Sequence[str], max_length: int, pieces: Sequence[str] = ()
) -> T5TokenizerFast:
    """A T5 tokenizer (Unigram) that knows ``words`` and falls back to letters.

    Upper case and accents are folded ("PIXEL-Art" and "pixel-art" are the same tokens) while
    offsets still point into the original text.

    Args:
        words: whole pieces without spaces, for example "square" or "pixel-art".
        max_length: ``model_max_length``.
        pieces: parts of words, without spaces, that may follow another; they come before letters.

    Returns:
        A tokenizer that ``T5TokenizerFast.from_pretrained`` reloads unchanged.
    """
    characters = string.ascii_lowercase + string.digits + string.punctuation
    known = [WORD_START + word.lower() for word in dict.fromkeys(words)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (WORD_START, LETTER_SCORE)]
    vocabulary += [(character, LETTER_SCORE) for character in characters]
    vocabulary += [(piece, WORD_SCORE) for piece in dict.fromkeys(known)]
    vocabulary += [(piece, PIECE_SCORE) for piece in dict.fromkeys(pieces) if len(piece) > 1]
    return T5TokenizerFast(
        vocab=vocabulary,
        extra_ids=0,
        model_max_length=max_length,
        **t5_text_map(_case_folding_map()),
    )


def build_clip_tokenizer(words: Sequence[str], max_length: int) -> CLIPTokenizer:
    """A CLIP tokenizer (byte-level BPE, lower-casing by itself) that knows ``words``.

    Args:
        words: as for :func:`build_t5_tokenizer`; "pixel-art" counts as "pixel" and "art"
            because CLIP splits at punctuation.
        max_length: ``model_max_length``; prompts are padded and cut to it.

    Returns:
        A tokenizer that ``CLIPTokenizer.from_pretrained`` reloads unchanged. The end token has
        the highest id, as in the original vocabulary.
    """
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = alphabet + [character + WORD_END for character in alphabet]
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys(
        part for text in words for part in re.findall("[a-z]+", text.lower())
    ):
        merges += _merges_for(word, vocabulary, merges)
    ids = {piece: index for index, piece in enumerate([*vocabulary, CLIP_START, CLIP_END])}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=max_length)


def build_qwen_tokenizer(words: Sequence[str], max_length: int) -> Qwen2TokenizerFast:
    """A Qwen tokenizer (byte-level BPE, minds case) with Qwen3's chat template.

    Args:
        words: as for :func:`build_clip_tokenizer`; known with a space before them and, after a
            hyphen, without.
        max_length: ``model_max_length``.

    Returns:
        A tokenizer that ``Qwen2TokenizerFast.from_pretrained`` reloads unchanged.
    """
    vocabulary = sorted(ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for text in dict.fromkeys(words):
        first, *others = re.findall("[a-z]+", text.lower())
        for word in (QWEN_SPACE + first, *others):
            merges += _merges_for(word, vocabulary, merges, end="")
    ids = {piece: index for index, piece in enumerate([*vocabulary, QWEN_PAD])}
    return Qwen2TokenizerFast(
        vocab=ids,
        merges=merges,
        model_max_length=max_length,
        chat_template=QWEN_CHAT,
        additional_special_tokens=[QWEN_START, QWEN_END, "<think>", "</think>"],
    )


def _merges_for(
    word: str, vocabulary: list[str], merges: list[tuple[str, str]], end: str = WORD_END
) -> list[tuple[str, str]]:
    """Merges that make ``word`` one token when appended; their pieces join ``vocabulary``.

    Each joins the word's first two pieces. Appended merges rank last, so words that were whole
    before are finished before a new merge could touch them.
    """
    added: list[tuple[str, str]] = []
    while True:
        ids = {piece: index for index, piece in enumerate(vocabulary)}
        model = BPE(vocab=ids, merges=[*merges, *added], end_of_word_suffix=end)
        pieces = Tokenizer(model).encode(word).tokens
        if len(pieces) == 1:
            return added
        added.append((pieces[0], pieces[1]))
        vocabulary.append(pieces[0] + pieces[1])


def _case_folding_map() -> bytes:
    """Sentencepiece's compiled map from Latin letters to their plain lower-case letter.

    The library compiles such maps only while training, hence the throw-away model.
    """
    rules = []
    for code in range(ord("A"), 0x250):  # up to the end of Latin Extended-B
        folded = unicodedata.normalize("NFKD", chr(code))[0].lower()
        if folded in string.ascii_lowercase and folded != chr(code):
            rules.append(f"{code:x}\t{ord(folded):x}\n")
    trained = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "folding.tsv"
        table.write_text("".join(rules))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b"]),
            model_writer=trained,
            vocab_size=8,
            hard_vocab_limit=False,
            normalization_rule_tsv=str(table),
            minloglevel=2,
        )
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(trained.getvalue())
    return model.normalizer_spec.precompiled_charsmap
