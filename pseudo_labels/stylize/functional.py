"""Exact filters as a stylizer: no weights, nothing random, targets known to the last bit."""

from typing import Any

from pydantic import Field
from torch import Tensor

from pseudo_labels.stylize import filters, photo_filters
from pseudo_labels.stylize.base import Stylizer
from regionroute.config.base import Section
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError, nearest


class FilterSettings(Section):
    """Settings of `FunctionalStylizer`."""

    filter: str = Field(description="name in filters.FILTERS or photo_filters.PHOTO_FILTERS")


class FunctionalStylizer(Stylizer[FilterSettings]):
    """Applies one exact filter.

    Args:
        settings: which filter.

    Raises:
        UserError: no filter has this name.
    """

    kind = "filter"
    settings_class = FilterSettings

    def __init__(self, settings: FilterSettings) -> None:
        name, known = settings.filter, filters.FILTERS | photo_filters.PHOTO_FILTERS
        if name not in known:
            close = nearest(name, list(known))
            raise UserError(f"unknown filter '{name}', the nearest known one is '{close}'")
        self._filter = known[name]
        revisions = [filters.REVISION]
        if name not in filters.FILTERS:
            revisions.append(photo_filters.REVISION)
        super().__init__(settings, " ".join([name, *revisions]))

    def stylize(self, image: Tensor, style: StyleSpec, **unused: Any) -> Tensor:
        """See `Stylizer.stylize`; the style is not used."""
        return self._filter(image)
