"""A few samples spread over photos and styles, to check before the full run."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pseudo_labels.build import BuildReport, PhotoSource, build
from pseudo_labels.job import BuildSettings
from pseudo_labels.stylize.registry import StyleEntry
from regionroute.engines.base import EngineSettings

SIDE = 320  # pixels; enough to judge a preview by eye


def preview(
    source: PhotoSource,
    styles: Sequence[StyleEntry],
    out: Path,
    settings: BuildSettings,
    count: int,
) -> BuildReport:
    """Make a small data set of its own in OUT/preview.

    Args:
        source: all photos; some are taken, evenly spread.
        styles: all styles; the photos take turns.
        out: the data set's folder, which is not touched otherwise.
        settings: settings of the data set; the images are smaller.
        count: photos to show, each in one style (every object of it).

    Returns:
        What was made.

    Raises:
        UserError: not one sample could be made.
    """
    spread = _spread(len(source.photos), count)
    small = dataclasses.replace(settings, size=min(SIDE, settings.size), crops=0)
    return build(
        PhotoSource(source.name, [source.photos[i] for i in spread], []),
        styles,
        out / "preview",
        small,
        engine=EngineSettings(workers=1),
        styles_per_photo=1,
    )


def _spread(total: int, count: int) -> list[int]:
    """Up to `count` indices below `total`, evenly apart."""
    count = min(count, total)
    return [i * total // count for i in range(count)]
