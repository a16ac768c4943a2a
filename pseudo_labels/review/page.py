"""The review page: all samples of a data set and all rejections; a click excludes a sample."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader

from pseudo_labels.job import write_keeping_mtime
from pseudo_labels.review.exclusions import read_excluded
from pseudo_labels.segment.given import Rejection
from regionroute.data.manifest import EditSample
from regionroute.files import write_text

FILE_NAME = "review.html"


def write_review(out: Path, samples: Sequence[EditSample], rejected: Sequence[Rejection]) -> Path:
    """Write the page; it needs nothing but the images in the folder of the data set.

    Args:
        out: folder of the data set.
        samples: its samples.
        rejected: what is not in it, and why.

    Returns:
        Path of the page.
    """
    cards = [_card(sample) for sample in samples]
    page = (
        Environment(
            loader=PackageLoader("pseudo_labels"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        .get_template(FILE_NAME)
        .render(
            samples=cards,
            photos=len({sample.context for sample in samples}),
            styles=_each(region.style for sample in samples for region in sample.regions),
            words=_each(region.object for sample in samples for region in sample.regions),
            rejected=rejected,
            excluded=sorted(read_excluded(out)),
        )
    )
    write_keeping_mtime(out / FILE_NAME, write_text, page)
    return out / FILE_NAME


def _card(sample: EditSample) -> dict[str, Any]:
    pairs = [(region.object, region.style) for region in sample.regions]
    return {
        "id": sample.id,
        "context": quote(sample.context),
        "masks": [quote(region.mask) for region in sample.regions],
        "target": quote(sample.target),
        "word": ", ".join(word for word, _ in pairs),
        "style": ", ".join(style for _, style in pairs),
        "caption": ", ".join(f"{word} · {style}" for word, style in pairs),
        "split": sample.split,
        "facts": _facts(sample),
    }


def _facts(sample: EditSample) -> str:
    """Provenance and measurements, in one line."""
    facts = sample.provenance
    parts = [str(facts.get("photo", "")), str(facts.get("mask_source", ""))]
    for name, value in facts.get("checks", {}).items():
        parts.append(f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}")
    if facts.get("caption"):
        parts.append(str(facts["caption"]))
    return " · ".join(part for part in parts if part)


def _each(names: Any) -> list[str]:
    return sorted(set(names))
