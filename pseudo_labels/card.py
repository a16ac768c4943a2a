"""The dataset card of a label folder: what the pairs are, in the form of the Hugging Face Hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from pseudo_labels.segment.given import Rejection
from regionroute.data.manifest import EditSample
from regionroute.files import write_text
from regionroute.markdown import table

CARD_FILE = "README.md"
TAG = "regionroute"
MOST = 30  # words or styles that are counted one by one
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
# Relative paths that belong to the data set; records and the review page stay at home.
UPLOADED = (
    CARD_FILE,
    "manifest*.jsonl",
    "manifest*.parquet",
    "metadata.jsonl",
    "images/*",
    "masks/*",
    "targets/*",
)


def write_card(
    folder: Path,
    samples: Sequence[EditSample],
    rejected: Sequence[Rejection] = (),
    license: str | None = None,
) -> Path | None:
    """Write the card, unless somebody else's README.md is in the folder.

    Args:
        folder: of the data set.
        samples: its rows, at least one.
        rejected: what was not used.
        license: of the photos and what was made of them, as the hub names it; None: not stated.

    Returns:
        The file, None if another is in its place.
    """
    path = folder / CARD_FILE
    if path.exists() and f"- {TAG}\n" not in path.read_text(encoding="utf-8", errors="replace"):
        return None
    text = card(samples, rejected, license)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return path


def card(
    samples: Sequence[EditSample],
    rejected: Sequence[Rejection] = (),
    license: str | None = None,
) -> str:
    """The card: Markdown with the hub's YAML header; arguments as in `write_card`."""
    regions = [region for sample in samples for region in sample.regions]
    photos = {sample.provenance.get("photo_hash", sample.context) for sample in samples}
    splits = Counter(sample.split for sample in samples)
    made = sorted({str(sample.provenance.get("stylizer", "not stated")) for sample in samples})
    facts = [
        ("pairs", f"{len(samples):,}"),
        ("photos", f"{len(photos):,}"),
        ("splits", ", ".join(f"{key} {count:,}" for key, count in sorted(splits.items()))),
        ("wholly restyled", f"{sum(sample.whole for sample in samples):,}"),
        ("restyled by", ", ".join(made)),
        ("rejected", f"{len(rejected):,}"),
    ]
    parts = [
        f"---\n{_header(len(samples), license)}---",
        "# Training pairs for regional style transfer",
        "Pairs of images: a photo, and the same photo with one object restyled and every other "
        "pixel unchanged. Made with `regionroute label`.",
        table(("", ""), facts),
        "## Columns\n\n`metadata.jsonl` is read by the image-folder loader of `datasets`: source, "
        "target and mask as images, `prompt`, `object`, `style`, `split`, `id`. `manifest.jsonl` "
        "holds the same rows with boxes, places in the prompt and provenance, for "
        "`regionroute train`.",
        "## Objects\n\n" + _counts("word", (region.object for region in regions)),
        "## Styles\n\n" + _counts("style", (region.style for region in regions)),
        "## Limits\n\nMasks that were predicted, and words, are not checked by people unless the "
        "review page was used. Targets are made by a program: they show its idea of a style. "
        "Photos may show people and places; whoever shares them answers for that.",
        f"## Licence\n\n{license}." if license else _NO_LICENCE,
    ]
    return "\n\n".join(parts) + "\n"


_NO_LICENCE = (
    "## Licence\n\nNot stated. The photos' owners may have rights; `regionroute label … --license "
    "NAME` states a licence."
)


def _header(count: int, license: str | None) -> str:
    header: dict[str, object] = {"license": license or "other"}
    if not license:
        header["license_name"] = "not-stated"
    size = next((text for limit, text in SIZES if count < limit), "n>1M")
    header |= {
        "task_categories": ["image-to-image"],
        "size_categories": [size],
        "tags": [TAG, "regional-style-transfer", "image-editing"],
    }
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _counts(title: str, names: Iterable[str]) -> str:
    counts = Counter(names).most_common()
    rows = [(name, f"{count:,}") for name, count in counts[:MOST]]
    if len(counts) > MOST:
        rest = sum(count for _, count in counts[MOST:])
        rows.append((f"{len(counts) - MOST} others", f"{rest:,}"))
    return table((title, "pairs"), rows)
