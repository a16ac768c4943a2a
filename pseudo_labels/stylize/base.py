"""What all stylizers share: typed settings and a fingerprint.

A `Stylizer` never composites. `pseudo_labels.compose` pastes the restyled object back into its
photo, so that "nothing changes outside the mask" is guaranteed in one place.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import ValidationError
from torch import Generator, Tensor

from regionroute.config.base import Section
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError

# Settings that are fractions accept integers too and keep them: 1 and 1.0 are hashed differently,
# and fingerprints of styles files must not change.
Number = int | float
Settings = TypeVar("Settings", bound=Section)


class Stylizer(ABC, Generic[Settings]):
    """Restyles whole images.

    Subclasses name their `kind` and `settings_class` and implement `stylize`.

    Args:
        settings: checked settings; `build` checks plain values.
        key: changes whenever the same image would come out differently.
        remarks: facts for the provenance of every sample, such as networks with random weights.

    Attributes:
        kind: its name in styles files.
        settings_class: class of its settings.
        heavy: whether it loads a network that should not be loaded by several processes at once.
        needs: required inputs, a subset of {"text", "images", "mask"}. With "mask", `stylize` is
            called once per object with the object's mask, otherwise once per photo.
        settings: the settings.
        fingerprint: kind and key; products and records are cached under it.
        remarks: see above.
        networks: networks from the hub with the commits that were loaded, by setting; empty before
            `load` and for local files. Part of the names of products and of the provenance.
    """

    kind: ClassVar[str]
    settings_class: ClassVar[type[Section]]
    heavy: ClassVar[bool] = False
    needs: frozenset[str] = frozenset()

    def __init__(
        self, settings: Settings, key: str, remarks: Mapping[str, Any] | None = None
    ) -> None:
        self.settings: Settings = settings
        self.fingerprint = f"{self.kind} {key}"
        self.remarks = dict(remarks or {})
        self.networks: dict[str, str] = {}

    def product_key(self) -> list[Any]:
        """What files made by this stylizer depend on: the fingerprint, and commits of the hub."""
        return [self.fingerprint, self.networks] if self.networks else [self.fingerprint]

    @classmethod
    def build(cls, **values: Any) -> Self:
        """Make a stylizer from plain values, such as those of a styles file.

        Raises:
            UserError: an unknown setting, a value of the wrong type or out of range, or a file
                that cannot be used.
        """
        try:
            settings = cls.settings_class.model_validate(values, strict=True)
        except ValidationError as error:
            raise UserError(_first_problem(cls.kind, error)) from error
        return cls(settings)  # type: ignore[arg-type, call-arg]  # subclasses take their settings alone

    def load(self) -> None:  # most have nothing to load
        """Load networks now, so that a problem with them is reported before the first photo.

        Raises:
            UserError: a network is missing or damaged.
        """

    @abstractmethod
    def stylize(
        self,
        image: Tensor,
        style: StyleSpec,
        *,
        mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Restyle an image.

        Args:
            image: [3, H, W] in [0, 1]; never modified.
            style: the style.
            mask: [1, H, W] in {0, 1}, where the object is; may be ignored.
            generator: the only source of randomness.

        Returns:
            A new tensor of the image's shape in [0, 1].

        Raises:
            UserError: an input that the stylizer needs is missing, or its network is.
        """

    def stylize_photo(
        self,
        path: Path,
        content: Tensor,
        style: StyleSpec,
        *,
        mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """Restyle a photo whose file is known; all but one kind look at its pixels alone.

        Args:
            path: the photo's file.
            content: it at the working size, [3, H, W] in [0, 1].
            style: as for `stylize`.
            mask: as for `stylize`.
            generator: as for `stylize`.
        """
        return self.stylize(content, style, mask=mask, generator=generator)


def _first_problem(kind: str, error: ValidationError) -> str:
    """One sentence about the first wrong setting."""
    item = error.errors()[0]
    name = ".".join(str(part) for part in item["loc"] if isinstance(part, str) and part.islower())
    name = name.removesuffix(".int").removesuffix(".float")
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    if item["type"] == "missing":
        return f"a {kind} style needs '{name}'"
    if not name:
        return f"a {kind} style: {message}"
    return f"the {name} of a {kind} style is {item['input']!r}: {message}"
