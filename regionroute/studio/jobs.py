"""What one edit of the studio asks for, and what is kept of it on disk."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from regionroute.config.choices import Instance, Mode, SparseQuality
from regionroute.data.image_files import opened
from regionroute.data.prompts import build_prompt, object_words
from regionroute.editing.metadata import mask_from_text
from regionroute.errors import UserError
from regionroute.files import parse_json, read_json

AUTO, NONE = "bundled", "none"  # names of experts besides those of the settings
PARAMETERS = "parameters"  # key of the PNG's text
MOST_SETTINGS = 32 * 2**20  # bytes of a JSON file; stored regions are the large part


class Sampling(BaseModel):
    """How an edit is made, as of `regionroute.editing.request.EditOptions`, and its seed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    seed: int = 0
    strength: float = 1.0
    steps: int | None = None
    guidance: float | None = None
    mode: Mode | None = None
    instance: Instance = "all"
    refine_crop: bool | None = None
    sparse: bool | None = None
    sparse_quality: SparseQuality = "balanced"
    force: bool = False


class JobOptions(Sampling):
    """Everything of an edit that has a default; None stands for that of the base.

    Attributes:
        prompt: own wording, see `RegionRoutePipeline.__call__`.
        base: one of the settings' bases; empty: the first.
        experts: `AUTO`, `NONE`, or a name of the settings.
    """

    prompt: str | None = None
    base: str = ""
    experts: str = AUTO


@dataclass(frozen=True)
class EditJob:
    """One edit.

    Attributes:
        photo: file of the image to edit.
        objects: word or phrase of each object.
        styles: name or phrase of each object's style; empty with a style image.
        style_image: file of a reference image of the style, for all objects.
        options: everything else.
        regions: where each object is restyled, [H,W] in [0,1]; empty: found from the words.
    """

    photo: Path
    objects: tuple[str, ...]
    styles: tuple[str, ...] = ()
    style_image: Path | None = None
    options: JobOptions = field(default_factory=JobOptions)
    regions: tuple[Tensor, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class EditRecord:
    """The files of a finished edit; nothing of it stays in memory.

    Attributes:
        image: the edit, a PNG that carries its settings.
        settings: the same settings as JSON.
        before: the photo as browsers can show it.
        map: attention map as a grey PNG of the photo's size, if there is one.
        regions: where each object was restyled, grey PNGs of the photo's size.
        photo: the file that was edited.
        metadata: the settings and warnings.
        seconds: the edit took.
        command: the same edit on the command line.
    """

    image: Path
    settings: Path
    before: Path
    map: Path | None
    regions: tuple[Path, ...]
    photo: Path
    metadata: dict[str, Any]
    seconds: float
    command: str

    @property
    def caption(self) -> str:
        """The edit in a few words."""
        words, names = (_listed(self.metadata[key]) for key in ("object", "style"))
        pairs = ", ".join(f"{a}: {b}" for a, b in zip(words, names, strict=True))
        return f"{pairs} · seed {self.metadata['seed']} · strength {self.metadata['strength']:g}"


class SavedSettings(Sampling):
    """The settings of an edit as its PNG or JSON holds them; other keys are ignored."""

    model_config = ConfigDict(extra="ignore")

    object: str | list[str]
    style: str | list[str]
    prompt: str | list[str] = ""
    base: str = ""
    experts: str | None = None
    style_image: str | None = None
    region_masks: list[str] = []

    @property
    def objects(self) -> list[str]:
        """Each object's phrase."""
        return _listed(self.object)

    @property
    def styles(self) -> list[str]:
        """Each object's style."""
        return _listed(self.style)

    @property
    def own_prompt(self) -> str:
        """The prompt, if it is not the template's."""
        if not isinstance(self.prompt, str) or not self.prompt:
            return ""
        template = build_prompt([(object_words(self.objects[0]), "any")])
        start, end = template.style_spans[0]
        before, after = template.text[:start], template.text[end:]
        of_template = self.prompt.startswith(before) and self.prompt.endswith(after)
        return "" if of_template else self.prompt

    def regions(self) -> tuple[Tensor, ...]:
        """The regions that were given, [H,W] in [0,1] each.

        Raises:
            UserError: one is damaged.
        """
        return tuple(mask_from_text(text) for text in self.region_masks)


def read_settings(path: Path) -> SavedSettings:
    """The settings of an edit, from the text of its PNG or from its JSON file.

    Raises:
        UserError: the file has none, or others.
    """
    name = path.name
    if path.suffix.lower() == ".json":
        if path.stat().st_size > MOST_SETTINGS:
            raise UserError(f"{name}: too large for the settings of an edit")
        found = read_json(path)
    else:
        with opened(path) as image:
            text = image.info.get(PARAMETERS) if isinstance(image, Image.Image) else None
        if not isinstance(text, str):
            raise UserError(
                f"{name}: this image carries no settings: choose a PNG that RegionRoute wrote, "
                "or the JSON file next to it"
            )
        found = parse_json(text, name)
    try:
        saved = SavedSettings.model_validate(found)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"]) or "the file"
        raise UserError(f"{name}: these are not the settings of an edit ({key})") from None
    if len(saved.objects) != len(saved.styles) or not saved.objects:
        raise UserError(f"{name}: its settings need one style for each object")
    return saved


def command_line(job: EditJob) -> str:
    """The same edit as a command."""
    words = ["regionroute", "edit", job.photo.name]
    for index, name in enumerate(job.objects):
        words += ["--object", name]
        if job.style_image is not None:
            words += ["--style-image", job.style_image.name]
        else:
            words += ["--style", job.styles[index]]
        if job.regions:
            words += ["--region-map", region_name(index)]
    how = job.options
    given = {
        "prompt": how.prompt, "steps": how.steps, "guidance": how.guidance, "mode": how.mode,
        "strength": None if how.strength == 1 else f"{how.strength:g}",
        "instance": None if how.instance == "all" else how.instance,
        "sparse-quality": None if how.sparse_quality == "balanced" else how.sparse_quality,
        "seed": how.seed or None, "base": how.base or None,
        "experts": how.experts if how.experts not in (AUTO, NONE) else None,
    }  # fmt: skip
    for key, value in given.items():
        words += [] if value is None else [f"--{key}", str(value)]
    flags = {"refine-crop": how.refine_crop, "sparse": how.sparse}
    words += [f"--{'' if on else 'no-'}{key}" for key, on in flags.items() if on is not None]
    words += ["--zero-shot"] if how.experts == NONE else []
    words += ["--force"] if how.force else []
    return shlex.join([*words, "--out", "out.png"])


def region_name(index: int) -> str:
    """File name of the region of an object, as the command and the downloads have it."""
    return f"region-{index + 1}.png"


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
