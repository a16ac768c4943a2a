"""What a rehearsal is of, and where its files are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from regionroute.config.choices import Quantize
from regionroute.errors import UserError
from regionroute.files import read_json, write_json
from regionroute.rehearsal.bases import Shape

FILE = "rehearsal.json"


@dataclass(frozen=True)
class Settings:
    """A rehearsal.

    Attributes:
        folder: of everything it writes.
        name: of the base.
        shape: sizes of images, prompts and edits.
        quantize: how the transformer's blocks are stored.
        seed: of weights, scenes and noise.
    """

    folder: Path
    name: str
    shape: Shape
    quantize: Quantize | None = None
    seed: int = 0

    @property
    def base(self) -> Path:
        """The base's folder."""
        return self.folder / "base"

    @property
    def pairs(self) -> Path:
        """The training pairs."""
        return self.folder / "pairs"

    @property
    def run(self) -> Path:
        """Output of the training."""
        return self.folder / "run"

    @property
    def exported(self) -> Path:
        """The exported expert."""
        return self.folder / "exported"

    @property
    def photo(self) -> Path:
        """The image that is edited: the first held-out one."""
        return self.sample().context

    def edited(self, how: str) -> Path:
        """An edit's file."""
        return self.folder / f"edit-{how}.png"

    def sample(self) -> Sample:
        """The held-out pair that is edited."""
        from regionroute.data.manifest import load_manifest

        manifest = load_manifest(str(self.pairs))
        first = next(sample for sample in manifest.samples if sample.split == "test")
        region = first.regions[0]
        return Sample(
            manifest.path(first.context), manifest.path(region.mask), region.object, region.style
        )


@dataclass(frozen=True)
class Sample:
    """An image, the mask of its object, the object's word and a style."""

    context: Path
    mask: Path
    word: str
    style: str


def write_settings(settings: Settings) -> None:
    """Writes a rehearsal's settings into its folder.

    Raises:
        UserError: the folder holds another rehearsal.
    """
    values = asdict(settings)
    del values["folder"]
    file = settings.folder / FILE
    if file.is_file() and read_json(file) != values:
        raise UserError(f"{file}: this folder holds another rehearsal, choose another --out")
    write_json(file, values)


def read_settings(folder: Path) -> Settings:
    """The settings that `write_settings` wrote."""
    values = read_json(folder / FILE)
    return Settings(folder, **(values | {"shape": Shape(**values["shape"])}))
