"""Which styles a description means, by the word vectors of the default base.

The vectors are those of all-MiniLM-L6-v2 for single words (`train.pretrain.word_table`). Each word
of a request is compared with all words that describe a style and counts with the most similar one;
a style's score is the mean over the request's words. No network runs, nothing is downloaded.
"""

import functools
import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor

from regionroute.errors import UserError
from regionroute.models.embedded import PHOTOS, nano_folder

TABLE = "shared.weight"  # of the T5 encoder
TEMPERATURE = 0.1  # of the softmax over the scores, which are cosines
MOST = 3  # styles that are blended
SMALLEST = 0.1  # weights below are dropped
FAR = 0.5  # best scores below say that no style is near
# Words that say nothing about a style, unless they are all there is.
FILLER = frozenset(
    re.findall(
        r"\w+",
        "a an and art artwork as at by for from image in it like made manner of on photo picture "
        "style the this to with",
    )
)


def style_weights(request: str, styles: Mapping[str, Sequence[str]]) -> tuple[Tensor, float]:
    """Weights of a bank's styles for a description.

    Args:
        request: words such as "a loose impressionist oil painting", or a style's name.
        styles: descriptions of each style.

    Returns:
        Weights [S] ≥ 0 with sum 1, at most `MOST` of them above 0; and the best score in [-1, 1],
        near when at least `FAR`. A style's own name or description has all the weight.

    Raises:
        UserError: the request has no words.
    """
    asked = " ".join(_words(request))
    if not asked:
        raise UserError("--style: the words are empty, describe the style, e.g. 'woodcut'")
    exact = [
        asked in {" ".join(_words(text)) for text in (name, *texts)}
        for name, texts in styles.items()
    ]
    if any(exact):
        return torch.tensor(exact).float() / sum(exact), 1.0
    scores = style_scores(request, styles)
    weights = (scores / TEMPERATURE).softmax(0)
    lowest = weights.topk(min(MOST, len(weights))).values[-1]
    weights = torch.where((weights >= lowest) & (weights >= SMALLEST), weights, 0)
    if not weights.any():
        weights = F.one_hot(scores.argmax(), len(scores)).float()
    return weights / weights.sum(), float(scores.max())


def style_scores(request: str, styles: Mapping[str, Sequence[str]]) -> Tensor:
    """Score of every style for a description, [S] in [-1, 1]."""
    asked = _vectors(request)
    found = []
    for name, texts in styles.items():
        known = torch.cat([_vectors(text) for text in (name, *texts)])
        found.append((asked @ known.T).amax(1).mean())
    return torch.stack(found)


def _words(text: str) -> list[str]:
    """Its words in lower case, without filler words if others are left."""
    words = re.findall(r"[^\W_]+", text.lower())
    return [word for word in words if word not in FILLER] or words


def _vectors(text: str) -> Tensor:
    """Unit vectors of the words and pieces of words, [n, D]."""
    tokenizer, table = _table()
    ids = [
        number
        for word in _words(text)
        for number in tokenizer.encode(word, add_special_tokens=False).ids
    ]
    return F.normalize(table[ids].float(), dim=1)


@functools.cache
def _table() -> tuple[Tokenizer, Tensor]:
    """The tokenizer and the word vectors of the default base."""
    folder = nano_folder(PHOTOS)
    with safe_open(folder / "text_encoder_2" / "model.safetensors", framework="pt") as file:
        table = file.get_tensor(TABLE)
    return Tokenizer.from_file(str(folder / "tokenizer_2" / "tokenizer.json")), table
