"""One key for the spellings of a style's name: "Watercolor", "water-colour" and "watercolour"."""

import re
import unicodedata

_SPELLINGS = (("color", "colour"), ("gray", "grey"), ("ized", "ised"))
_ENDINGS = re.compile(r"(?:isms?|ists?|istic)$")  # expressionism, expressionist, expressionistic


def style_key(name: str) -> str:
    """The form in which style names are compared.

    Case, hyphens, spaces, underscores, a final "style", American spelling and the endings of
    "-ism" and "-ist" do not count. Letters of every script do.

    Args:
        name: of a style, as a manifest, a file or a table spells it.
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    words = re.findall(r"[^\W_]+", text)
    if len(words) > 1 and words[-1] == "style":
        words.pop()
    key = "".join(_ENDINGS.sub("ist", word) for word in words)
    for other, ours in _SPELLINGS:
        key = key.replace(other, ours)
    return key
