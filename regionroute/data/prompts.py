"""Prompts: their wording, and which tokens are the object's and which the style's.

Spans are half-open character ranges of the very string that is encoded; tokens come from the
tokenizer's offset mapping of that string, never from searching for pieces.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regionroute.errors import UserError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

Span = tuple[int, int]

TEMPLATE = "make the {object} in {style} style, keep other area unchanged"
RESTYLE_TEMPLATE = "make the image in {style} style"
REFERENCE = "reference"  # says the style where an example picture shows it
_CLAUSE = "the {object} in {style} style"
_ARTICLES = re.compile(r"^(?:(?:the|an|a)\s+)+(?=\S)", re.IGNORECASE)
_MARKED = re.compile(r"\[[^\[\]{}]*\]|\{[^\[\]{}]*\}")
_EXAMPLES = {"object": '"dog"', "style": '"pixel-art"'}


@dataclass(frozen=True)
class Prompt:
    """A text with the phrases that matter, one (object, style) pair for each region.

    Attributes:
        text: what is encoded.
        object_spans: characters of each region's object phrase.
        style_spans: characters of each region's style phrase, aligned with ``object_spans``.
    """

    text: str
    object_spans: tuple[Span, ...]
    style_spans: tuple[Span, ...]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(object phrase, style phrase) of each region."""
        spans = zip(self.object_spans, self.style_spans, strict=True)
        return [(self.text[slice(*o)], self.text[slice(*s)]) for o, s in spans]


def build_prompt(pairs: Sequence[tuple[str, str]]) -> Prompt:
    """The template's prompt for one or several (object, style) pairs.

    Args:
        pairs: (object phrase, style phrase), for example ``[("dog", "pixel-art")]``. Two objects
            may share a style: each clause has its own spans.

    Returns:
        "make the dog in pixel-art style and the cup in line-art style, keep other area
        unchanged", with spans.

    Raises:
        UserError: no pair, an empty phrase, or one without letters.

    >>> build_prompt([("dog", "pixel-art"), ("cup", "line-art")]).text
    'make the dog in pixel-art style and the cup in line-art style, keep other area unchanged'
    """
    if not pairs:
        raise UserError("a prompt needs at least one object and style")
    before, after = TEMPLATE.split(_CLAUSE)
    text, objects, styles = before, [], []
    for index, (object_phrase, style_phrase) in enumerate(pairs):
        object_phrase = _phrase(object_phrase, "object")
        style_phrase = _phrase(style_phrase, "style")
        text += " and the " if index else "the "
        objects.append((len(text), len(text) + len(object_phrase)))
        text += object_phrase + " in "
        styles.append((len(text), len(text) + len(style_phrase)))
        text += style_phrase + " style"
    return Prompt(text + after, tuple(objects), tuple(styles))


def object_words(phrase: str) -> str:
    """The words of an object phrase as the template takes them, after its own "the".

    Leading articles go, hyphens and underscores become blanks, blanks are single and letters
    small: "The teddy-bear" becomes "teddy bear". Plurals are left as they are: "two dogs" names
    instances, and no rule turns every plural ("glasses", "scissors") into the right singular.

    For requests only: prompts of training pairs keep the words of their labels.

    Args:
        phrase: what the user wrote.

    Returns:
        The words; empty if the phrase has none.

    >>> object_words("The teddy-bear")
    'teddy bear'
    """
    words = " ".join(phrase.replace("_", " ").split()).lower()
    return " ".join(re.sub(r"[-\u2010\u2011]", " ", _ARTICLES.sub("", words)).split())


def with_style(prompt: Prompt, style: str) -> Prompt:
    """The prompt with other words for all its styles."""
    edges = sorted({*prompt.style_spans, *prompt.object_spans})
    text, moved, last = "", {}, 0
    for start, end in edges:
        words = style if (start, end) in prompt.style_spans else prompt.text[start:end]
        text += prompt.text[last:start]
        moved[start, end] = (len(text), len(text) + len(words))
        text, last = text + words, end
    return Prompt(
        text + prompt.text[last:],
        tuple(moved[span] for span in prompt.object_spans),
        tuple(moved[span] for span in prompt.style_spans),
    )


def restyle_prompt(style: str) -> str:
    """The prompt that restyles the whole picture.

    Raises:
        UserError: empty style.
    """
    return RESTYLE_TEMPLATE.format(style=_phrase(style, "style"))


def parse_marked(text: str) -> Prompt:
    """Free wording with its phrases marked.

    Args:
        text: object phrases in brackets, style phrases in braces, alternating in either order:
            "turn the [dog] into a {pixel-art} picture".

    Returns:
        The text without marks, and the spans in it.

    Raises:
        UserError: a mark without its partner, marks inside marks, an empty phrase or
            one without letters, or not one
            style for each object.
    """
    plain, end = "", 0
    objects: list[Span] = []
    styles: list[Span] = []
    for match in _MARKED.finditer(text):
        plain += text[end : match.start()]
        phrase, end = match[0][1:-1], match.end()
        if not phrase.strip():
            raise UserError(f"prompt {text!r}: {match[0]} marks nothing; put a phrase inside")
        is_object = match[0].startswith("[")
        _phrase(phrase, "object" if is_object else "style")
        spans = objects if is_object else styles
        spans.append((len(plain), len(plain) + len(phrase)))
        plain += phrase
    plain += text[end:]
    if stray := set(plain) & set("[]{}"):
        raise UserError(f"prompt {text!r}: {min(stray)!r} has no partner, or marks are nested")
    if len(objects) != len(styles) or not objects:
        raise UserError(
            f"prompt {text!r}: {len(objects)} [objects] and {len(styles)} {{styles}} are marked; "
            'mark one style for each object, as in "turn the [dog] into {pixel-art}"'
        )
    return Prompt(plain, tuple(objects), tuple(styles))


def find_spans(text: str, object_phrase: str, style_phrase: str) -> tuple[Span, Span]:
    """Finds both phrases in a prompt as whole words, whatever their case.

    Args:
        text: the prompt.
        object_phrase: for example "dog"; does not match "hotdog" or "dog-like".
        style_phrase: for example "pixel-art".

    Returns:
        (object span, style span).

    Raises:
        UserError: a phrase is empty, absent, or there more than once.
    """
    return _find(text, object_phrase, "object"), _find(text, style_phrase, "style")


def token_indices(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    span: Span,
    max_length: int,
    said: str | None = None,
) -> list[int]:
    """Positions of a phrase's tokens in the encoded prompt.

    Args:
        tokenizer: the one that encodes ``text`` for the model, a fast one (has offsets).
        text: the whole text that is encoded.
        span: characters of the phrase.
        max_length: tokens the model is given; the rest is cut.
        said: the prompt as the user knows it, where more is encoded than that; for errors.

    Returns:
        Ascending indices below ``max_length``, at least one.

    Raises:
        UserError: the phrase is cut off, wholly or partly, has no token, or one that ends or pads
            a text.
    """
    phrase, shown = _short(text[slice(*span)]), _short(said or text)
    encoded = tokenizer(text, return_offsets_mapping=True, verbose=False)
    whole = _overlapping(encoded, span)
    if not whole:
        raise UserError(f"prompt {shown!r}: {phrase!r} has no token in this base's vocabulary")
    special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    if special & {encoded["input_ids"][index] for index in whole}:
        raise UserError(f"prompt {shown!r}: {phrase!r} is no word to this base but a control token")
    encoded = tokenizer(text, return_offsets_mapping=True, truncation=True, max_length=max_length)
    if _overlapping(encoded, span) != whole:
        raise UserError(
            f"prompt {shown!r}: {phrase!r} lies beyond the {max_length} tokens this base reads; "
            "shorten the prompt or move the phrase forward"
        )
    return whole


def _overlapping(encoded: BatchEncoding, span: Span) -> list[int]:
    """Tokens with at least one character in the span; special tokens have none."""
    offsets = encoded["offset_mapping"]
    return [index for index, (a, b) in enumerate(offsets) if a < span[1] and b > span[0]]


def _short(text: str) -> str:
    return text if len(text) <= 120 else text[:119] + "…"


def _phrase(phrase: str, kind: str) -> str:
    stripped = " ".join(phrase.split())
    if stripped and not any(letter.isalnum() for letter in stripped):
        raise UserError(
            f"the {kind} {_short(stripped)!r} has no letters: give a word such as {_EXAMPLES[kind]}"
        )
    if not stripped:
        raise UserError(
            f"the {kind} is empty: give a word such as {_EXAMPLES[kind]}, or mark it in the "
            'prompt, as in "turn the [dog] into {pixel-art}"'
        )
    return stripped


def _find(text: str, phrase: str, kind: str) -> Span:
    words = r"\s+".join(re.escape(word) for word in _phrase(phrase, kind).split())
    # A hyphen belongs to the word: "dog" is not in "dog-like", nor "art" in "pixel-art".
    found = list(re.finditer(rf"(?<![\w-]){words}(?![\w-])", text, re.IGNORECASE))
    if len(found) == 1:
        return found[0].span()
    problem = "is not in it" if not found else f"is in it {len(found)} times"
    raise UserError(
        f"prompt {text!r}: the {kind} {phrase!r} {problem}; mark the phrases, as in "
        '"turn the [dog] into {pixel-art}"'
    )
