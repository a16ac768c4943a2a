"""The opposite styles that questions 3 and 4 ask about.

The paper leaves "opposite style" undefined. Here an opposite is never photographic: the background
of an untouched photo must get a "no" to question 4, whose yes-rate counts against a method.
"""

import re

from eval.style_names import style_key

OPPOSITES = {
    "pixel-art": "flowing watercolour wash",
    "line-art": "richly coloured oil-painting",
    "cyberpunk": "pastel watercolour",
    "expressionist": "fine black-and-white line-art",
    "posterised": "soft pencil-drawing",
    "neon": "pale pencil-drawing",
    "blueprint": "richly coloured oil-painting",
    "risograph": "thickly painted oil-painting",
    "ink-drawing": "richly coloured oil-painting",
    "pop-art": "pale pencil-drawing",
    "starry-night": "pixel-art",
    "watercolour": "pixel-art",
    "woodcut": "soft pastel watercolour",
    "ukiyo-e": "thickly painted oil-painting",
    "red-chalk": "neon cyberpunk",
    "fauvist": "fine black-and-white line-art",
    "impressionist": "pixel-art",
    "stained-glass": "soft pencil-drawing",
    "crayon": "blueprint",
    "mosaic": "flowing watercolour wash",
    "lacquer": "pale pencil-drawing",
    "cubist": "flowing watercolour wash",
    "sketch": "richly coloured oil-painting",
}
# For styles outside the table; the second for those that have a word in common with the first.
DEFAULT_OPPOSITE = "fine black-and-white line-art"
ALTERNATIVE_OPPOSITE = "richly coloured oil-painting"

_PHOTO = re.compile(
    r"photo|realis|lifelike|true[- ]to[- ]life|high[- ]resolution|camera|film\b|cinematic|unedited"
    r"|raw\b|natural\b|3d|render",
    re.IGNORECASE,
)


def looks_like_a_photo(style: str) -> bool:
    """Whether an untouched photo could count as being in this style, judged by its words.

    A judge that is asked about such a style says "yes" of an unedited photo, so that questions 3
    and 4 would punish what they are there to reward.
    """
    return bool(_PHOTO.search(style))


def opposite_of(style: str, table: dict[str, str], default: str, alternative: str) -> str:
    """The opposite of a style, by its name in any spelling of :func:`eval.style_names.style_key`.

    Args:
        style: its name.
        table: style -> opposite.
        default: for styles outside the table.
        alternative: for those of them that have a word in common with the default.
    """
    keys = {style_key(name): opposite for name, opposite in table.items()}
    found = keys.get(style_key(style))
    if found is not None:
        return found
    return alternative if _words(style) & _words(default) else default


def in_table(style: str, table: dict[str, str]) -> bool:
    """Whether a style has an opposite of its own."""
    return style_key(style) in {style_key(name) for name in table}


def _words(text: str) -> set[str]:
    return {style_key(word) for word in re.findall(r"[^\W_]+", text)} - {style_key("style")}
