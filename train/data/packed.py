"""A packed manifest's samples, from its columns: no row is parsed, no image is opened.

The results are those of the rows (`train.data.selection`, `train.data.encode`), which the tests
compare. Rows with no or several objects are parsed, as their columns do not say all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from regionroute.data.buckets import crop_window
from regionroute.data.manifest import EditSample, Region
from regionroute.data.startup.columns import Columns
from regionroute.files import settings_text
from train.data.examples import TrainingExample, TrainingExamples, hexadecimal

if TYPE_CHECKING:
    from train.data.encode import Encoder
    from train.data.selection import Chosen

HASH = "0" * 16  # in place of a content hash
HASHED = 100_000  # contents that are hashed at once


def style_words(columns: Columns, rows: np.ndarray) -> Iterator[tuple[str, str]]:
    """Styles and the words that prompts have for them, each pair once or more.

    Args:
        columns: of the manifest.
        rows: with one object, [k].
    """
    start, end = (columns.numbers[name][rows] for name in ("span_start", "span_end"))
    codes = [columns.codes[name][rows] for name in ("style", "prompt")]
    for place in _first_of_each(*codes, start, end)[0]:
        if start[place] >= 0:
            style, prompt = (
                columns.texts[name][codes[n][place]] for n, name in enumerate(("style", "prompt"))
            )
            yield style, prompt[start[place] : end[place]].casefold()


def sizes_of(columns: Columns, rows: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """The sizes (H,W) of some rows' images, and the number of each row's among them."""
    height, width = (columns.numbers[name][rows] for name in ("height", "width"))
    first, numbers = _first_of_each(height, width)
    return [(int(height[place]), int(width[place])) for place in first], numbers


def in_view(
    columns: Columns, rows: np.ndarray, size_of: Callable[[int, int], tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Whether something of each object is in the window that the model sees, and what is cut off.

    Args:
        columns: of the manifest.
        rows: with one object, [k].
        size_of: the size (H,W) at which the model sees an image of some size.

    Returns:
        [k] bool, and the share of the image outside the window, [k].
    """
    own, number = sizes_of(columns, rows)
    windows = [crop_window(*size, size_of(*size)) for size in own]
    parts = ("top", "left", "height", "width")
    top, left, height, width = (
        np.array([getattr(window, part) for window in windows], np.int64)[number] for part in parts
    )
    y0, x0, y1, x1 = (columns.numbers[name][rows] for name in ("top", "left", "bottom", "right"))
    seen = (y0 < top + height) & (y1 > top) & (x0 < left + width) & (x1 > left)
    return seen, np.array([window.lost for window in windows])[number]


def packed_examples(
    encoder: Encoder, samples: Chosen, columns: Columns, experts: Mapping[str, int]
) -> TrainingExamples:
    """The examples of some samples, as `Encoder.example` makes each.

    Args:
        encoder: of the run.
        samples: the selection's.
        columns: of its manifest.
        experts: {style: number of its expert}.

    Raises:
        UserError: a style phrase cannot be found, or an image of a row with several objects.
    """
    plain = columns.numbers["regions"][samples.rows] == 1
    rows = samples.rows[plain]
    own, number = sizes_of(columns, rows)
    pictures = [_image_keys(encoder, columns.numbers[name][rows], own, number)
                for name in ("context", "target")]  # fmt: skip
    tokens, token_codes = _tokens(encoder, columns, rows)
    styles = np.array([experts.get(style, -1) for style in columns.texts["style"]], np.int32)
    made = TrainingExamples.of_columns(
        ids=columns.ids.take(rows),
        contents=columns.contents.take(rows),
        experts=styles[columns.codes["style"][rows]],
        pictures=np.stack(pictures, 1),
        texts=_prompt_keys(encoder, columns, rows),
        masks=_mask_keys(encoder, columns.numbers["mask"][rows], own, number),
        tokens=(tokens, token_codes),
        sizes=([encoder.size_of(*size) for size in own], number),
    )
    if plain.all():
        return made
    quick = iter(made)

    def example(place: int) -> TrainingExample:
        sample = samples[place]
        return encoder.example(sample, experts[sample.regions[0].style])

    # Rows with several objects are few, or nothing is gained.
    return TrainingExamples(
        next(quick) if whole else example(place) for place, whole in enumerate(plain.tolist())
    )


def _tokens(
    encoder: Encoder, columns: Columns, rows: np.ndarray
) -> tuple[list[tuple[tuple[int, ...], ...]], np.ndarray]:
    """Positions of the style phrases: those that occur, and the number of each row's."""
    start, end = (columns.numbers[name][rows] for name in ("span_start", "span_end"))
    names = ("prompt", "object", "style")
    codes = [columns.codes[name][rows] for name in names]
    first, number = _first_of_each(*codes, start, end)
    found = []
    for place in first.tolist():
        prompt, word, style = (
            columns.texts[name][code[place]] for name, code in zip(names, codes, strict=True)
        )
        span = (int(start[place]), int(end[place])) if start[place] >= 0 else None
        region = Region(word, style, "", (0, 0, 0, 0), style_span=span)
        name = columns.ids[int(rows[place])].as_py()
        found.append(encoder.tokens_of(EditSample(name, "", "", (region,), prompt)))
    return found, number


def _prompt_keys(encoder: Encoder, columns: Columns, rows: np.ndarray) -> np.ndarray:
    """Cache keys of the prompts, [k] uint64."""
    codes, number = np.unique(columns.codes["prompt"][rows], return_inverse=True)
    texts = (columns.texts["prompt"][code] for code in codes.tolist())
    return np.array([int(encoder.prompt(text).key, 16) for text in texts], np.uint64)[number]


def _image_keys(
    encoder: Encoder, contents: np.ndarray, own: Sequence[tuple[int, int]], number: np.ndarray
) -> np.ndarray:
    """Cache keys of images by content and size, [k] uint64."""
    facts = [encoder.image_facts(HASH, size, encoder.size_of(*size)) for size in own]
    return _keys(facts, contents, number)


def _mask_keys(
    encoder: Encoder, contents: np.ndarray, own: Sequence[tuple[int, int]], number: np.ndarray
) -> np.ndarray:
    """Cache keys of masks by content and the size of their image, [k] uint64."""
    facts = [encoder.mask_facts(HASH, size, encoder.size_of(*size)) for size in own]
    return _keys(facts, contents, number)


def _keys(facts: Sequence[Any], contents: np.ndarray, number: np.ndarray) -> np.ndarray:
    """`settings_hash` of facts with each content in the place of `HASH`.

    Args:
        facts: with `HASH` in them.
        contents: [k] uint64.
        number: which of the facts, [k].

    Returns:
        [k] uint64.
    """
    keys = np.empty(len(contents), np.uint64)
    for n, own in enumerate(facts):
        before, _, after = settings_text(own).encode().partition(HASH.encode())
        ours = number == n
        found, places = np.unique(contents[ours], return_inverse=True)
        parts = np.split(found, range(HASHED, len(found), HASHED))
        keys[ours] = np.concatenate([_hashes(before, part, after) for part in parts])[places]
    return keys


def _hashes(before: bytes, contents: np.ndarray, after: bytes) -> np.ndarray:
    """`settings_hash` of each content's digits between two texts, [k] uint64."""
    start, length = len(before), len(before) + len(HASH) + len(after)
    texts = np.empty((len(contents), length), np.uint8)
    texts[:, :start] = np.frombuffer(before, np.uint8)
    texts[:, start : start + len(HASH)] = hexadecimal(contents)
    texts[:, start + len(HASH) :] = np.frombuffer(after, np.uint8)
    sha256 = hashlib.sha256
    # The only loop over rows: SHA-256 has no form for arrays.
    digests = b"".join(
        [sha256(text).digest() for text in texts.view(f"S{length}").ravel().tolist()]
    )
    return np.frombuffer(digests, ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)


def _first_of_each(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each combination of whole numbers from -1 its first place, and each row's number."""
    joined = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        largest = int(column.max(initial=0)) + 2
        # Numbered anew where the product would not fit.
        if len(joined) and int(joined.max()) > np.iinfo(np.int64).max // largest - 1:
            joined = np.unique(joined, return_inverse=True)[1]
        joined = joined * largest + (column.astype(np.int64) + 1)
    _, first, number = np.unique(joined, return_index=True, return_inverse=True)
    return first, number
