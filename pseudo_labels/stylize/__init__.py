"""Target generators: what turns a whole picture into a picture of a style.

A `Stylizer` never composites: pasting the object back is `pseudo_labels.compose`'s job, so that
"nothing changes outside the mask" is guaranteed in one place.
"""

from pathlib import Path
from typing import Protocol

import torch
from torch import Generator, Tensor

from pseudo_labels.stylize import filters, photo_filters
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError, nearest
from regionroute.files import file_hash


class Stylizer(Protocol):
    """Restyles whole pictures.

    One with a method `load()` is told to load its network before the first photo, in one process
    unless more are asked for: what is wrong with it is then one error.

    Attributes:
        needs: what it must be given, a subset of {"text", "images", "mask"}; a missing need is a
            `ValueError` before any work is done. With "mask" it is asked once an object, with the
            object's mask, else once a photo without.
        fingerprint: changes whenever the same picture would come out differently; products are
            cached under it.

    A stylizer may have a mapping `remarks` too: facts that go into every sample's provenance.
    """

    needs: frozenset[str]
    fingerprint: str

    def stylize(
        self,
        content: Tensor,
        style: StyleSpec,
        *,
        mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Restyle pictures.

        Args:
            content: [3, H, W] or [B, 3, H, W] in [0, 1]; never modified.
            style: the style asked for.
            mask: [1, H, W] or [B, 1, H, W], a hint where the object is; may be ignored.
            generator: the only source of randomness.

        Returns:
            A new tensor of content's shape in [0, 1].
        """
        ...


class FunctionalStylizer:
    """A style as exact arithmetic: no weights, nothing random, targets known to the last bit.

    Args:
        filter: a name in `filters.FILTERS` or `photo_filters.PHOTO_FILTERS`.

    Raises:
        UserError: no filter has this name.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, filter: str) -> None:
        known = filters.FILTERS | photo_filters.PHOTO_FILTERS
        if not isinstance(filter, str) or filter not in known:
            close = nearest(str(filter), list(known))
            raise UserError(f"unknown filter '{filter}', the nearest known one is '{close}'")
        self._filter = known[filter]
        modules = [filters] if filter in filters.FILTERS else [filters, photo_filters]
        hashes = [file_hash(Path(str(module.__file__))) for module in modules]
        self.fingerprint = " ".join(["filter", filter, *hashes])

    def stylize(
        self,
        content: Tensor,
        style: StyleSpec,
        *,
        mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """See `Stylizer.stylize`; style, mask and generator are not used."""
        if content.ndim == 3:
            return self._filter(content)
        return torch.stack([self._filter(picture) for picture in content])
