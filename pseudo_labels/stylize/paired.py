"""Targets that exist already: a folder of restyled photos with the names of the photos."""

import math
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import Field
from torch import Generator, Tensor

from pseudo_labels.stylize.base import Stylizer
from regionroute.config.base import Section
from regionroute.data.image_files import images_in
from regionroute.data.images import from_pil, read_image, to_pil
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError
from regionroute.files import file_hash, settings_hash

_ASPECT = 0.02  # largest relative difference of the two images' proportions


class PairedSettings(Section):
    """Settings of `PairedStylizer`."""

    after: str | Path = Field(
        description="folder of restyled photos; each has the name of its photo, with any ending"
    )


class PairedStylizer(Stylizer[PairedSettings]):
    """Takes the restyled photo of the same name.

    Args:
        settings: where they are.

    Raises:
        UserError: no such folder, no image in it, or two of one name.
    """

    kind = "pairs"
    settings_class = PairedSettings

    def __init__(self, settings: PairedSettings) -> None:
        self._files = images_by_stem(Path(settings.after))
        facts = sorted((stem, file_hash(file)) for stem, file in self._files.items())
        super().__init__(settings, settings_hash(facts))

    def stylize_photo(
        self,
        path: Path,
        content: Tensor,
        style: StyleSpec,
        *,
        mask: Tensor | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """The restyled photo at the photo's working size, see `Stylizer.stylize_photo`.

        Raises:
            UserError: there is none of that name, or it has other proportions.
        """
        folder = self.settings.after
        if path.stem not in self._files:
            raise UserError(f"{folder}: no restyled photo is named {path.stem}, like {path.name}")
        file = self._files[path.stem]
        restyled, (height, width) = to_pil(read_image(file)), content.shape[-2:]
        if abs(math.log(restyled.width * height / (restyled.height * width))) > _ASPECT:
            raise UserError(
                f"{file}: {restyled.width}x{restyled.height} has other proportions than its photo "
                f"{path.name}: crop both alike"
            )
        return from_pil(restyled.resize((width, height), Image.Resampling.LANCZOS))

    def stylize(self, image: Tensor, style: StyleSpec, **unused: Any) -> Tensor:
        """Refused: which photo an image is, only its file says."""
        raise UserError("a pairs style restyles photos that are files, see `regionroute label`")


def images_by_stem(folder: Path) -> dict[str, Path]:
    """The images of a folder by their names without endings.

    Raises:
        UserError: no such folder, no image in it, or two of one name.
    """
    files = images_in(folder)
    found = {file.stem: file for file in files}
    if not files:
        raise UserError(f"{folder}: there is no image in this folder")
    if len(found) < len(files):
        twice = next(file for file in files if found[file.stem] != file)
        raise UserError(f"{folder}: {twice.name} and {found[twice.stem].name} have one name")
    return found
