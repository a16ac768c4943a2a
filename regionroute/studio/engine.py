"""The studio's engine: loads each base once, runs one edit at a time, writes its files."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionroute.adapters import read_registry
from regionroute.data.image_files import opened
from regionroute.data.images import LoadedImage, open_image, read_image, to_pil, write_image
from regionroute.editing.outputs import Destination, enlarge_map, write_edit
from regionroute.errors import UserError, nearest
from regionroute.files import check_input_file, shown_path
from regionroute.models.bundled import find_bundled_experts
from regionroute.models.devices import pick_device, quiet_libraries
from regionroute.studio.device import DeviceThread
from regionroute.studio.jobs import AUTO, NONE, EditJob, EditRecord, command_line, region_name
from regionroute.studio.settings import StudioSettings

if TYPE_CHECKING:
    from torch import Tensor

    from regionroute.pipeline import RegionRoutePipeline

MOST_LOADED = 2  # pipelines that stay in memory; the one used longest ago goes first
SHOWN_AS_IS = ("PNG", "JPEG", "WEBP", "GIF")  # what every browser shows
StepCallback = Callable[[int, int], None]


class Cancelled(Exception):
    """Ends a run whose user pressed Cancel."""


class Engine:
    """Runs edits on one device, one at a time.

    Args:
        settings: bases, experts, device and limits.
        folder: for the files of edits.

    Attributes:
        device: the thread on which everything that runs a network is done.
        bases: the bases that may be chosen, by the names that users see; the first is the default.
    """

    def __init__(self, settings: StudioSettings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder
        self.device = DeviceThread()
        self.bases = {_public_base(base): base for base in settings.bases}
        self._pipelines: OrderedDict[tuple[str, str], RegionRoutePipeline] = OrderedDict()
        self._running: str | None = None
        self._cancelled: set[str] = set()

    @property
    def experts(self) -> list[str]:
        """The experts that may be chosen."""
        return [AUTO, NONE, *self.settings.experts]

    def styles(self, base: str, experts: str = AUTO) -> list[str]:
        """Names of the styles of a base and its experts, without loading them; empty: any words.

        Raises:
            UserError: a base or experts that are not offered, or that cannot be read.
        """
        folder = self._experts_folder(self._known_base(base), experts)
        return [] if folder is None else read_registry(folder).style_names

    def load(self, base: str = "", experts: str = AUTO) -> RegionRoutePipeline:
        """The pipeline of a base and its experts, loaded at most once.

        Call it on the device's thread, or before the first request.

        Raises:
            UserError: they are not offered, or cannot be loaded.
        """
        import torch

        from regionroute.pipeline import RegionRoutePipeline

        key = (self._known_base(base), experts)
        folder = self._experts_folder(*key)
        if key not in self._pipelines:
            while len(self._pipelines) >= MOST_LOADED:
                self._pipelines.popitem(last=False)
            quiet_libraries()
            self._pipelines[key] = RegionRoutePipeline.from_pretrained(
                key[0],
                experts="auto" if experts == AUTO else folder,
                torch_dtype=getattr(torch, self.settings.dtype),
                quantize=self.settings.quantize,  # type: ignore[arg-type]
                device=pick_device(self.settings.device),
            )
        self._pipelines.move_to_end(key)
        return self._pipelines[key]

    def run(
        self, job: EditJob, session: str = "", on_step: StepCallback | None = None
    ) -> EditRecord:
        """Edit and write the files.

        Args:
            job: what to do.
            session: whose job it is, for `cancel`.
            on_step: called after each step with the steps done and their number.

        Raises:
            UserError: something of the job that cannot be used; no path of this machine is in
                the sentence.
            Cancelled: by `cancel`.
        """

        def work() -> EditRecord:
            self._cancelled.discard(session)
            self._running = session
            try:
                return self._run(job, session, on_step)
            except UserError as error:
                raise UserError(self.public(str(error))) from error
            finally:
                self._running = None

        return self.device.do(work)

    def cancel(self, session: str) -> bool:
        """End the session's running edit after its current step; False if none is running."""
        running = self._running == session
        if running:
            self._cancelled.add(session)
        return running

    def public(self, text: str) -> str:
        """A text without folders of this machine: of uploads, edits, bases and experts."""
        text = re.sub(rf"{re.escape(str(self.folder))}/(?:edits/)?(?:[0-9a-f]+/)?", "", text)
        places = [*self.settings.experts.values(), *self.settings.bases]
        for place in sorted(filter(os.path.isdir, places), key=len, reverse=True):
            text = text.replace(f"{place}/", "").replace(place, Path(place).name)
        return text

    def new_folder(self) -> Path:
        """An empty folder of its own for files that a browser may fetch."""
        folder = self.folder / "edits" / secrets.token_hex(8)
        folder.mkdir(parents=True)
        return folder

    def _run(self, job: EditJob, session: str, on_step: StepCallback | None) -> EditRecord:
        _check(job, self.settings)
        for file in filter(None, (job.photo, job.style_image)):
            check_upload(file, self.settings)
        loaded = open_image(job.photo)
        how = job.options
        pipe = self.load(how.base, how.experts)
        steps = how.steps or pipe.backbone.settings.steps
        started = time.perf_counter()

        def after_step(pipe: RegionRoutePipeline, step: int, timestep: Tensor, state: Any) -> None:
            if session in self._cancelled:
                raise Cancelled(f"Cancelled after step {step + 1} of {steps}.")
            if on_step is not None:
                on_step(step + 1, steps)

        style_images = None
        if job.style_image is not None:
            style_images = [read_image(job.style_image)] * len(job.objects)
        out = pipe(
            loaded.rgb,
            list(job.objects),
            () if style_images else list(job.styles),
            style_image=style_images,
            prompt=how.prompt,
            strength=how.strength,
            region_mask=list(job.regions) or None,
            mode=how.mode,
            num_inference_steps=how.steps,
            guidance_scale=how.guidance,
            seed=how.seed,
            instance=how.instance,
            refine_crop=how.refine_crop,
            sparse=how.sparse,
            sparse_quality=how.sparse_quality,
            force=how.force,
            callback_on_step_end=after_step,
            output_type="pt",
        )
        seconds = time.perf_counter() - started
        return self._write(job, loaded, out, seconds)

    def _write(self, job: EditJob, loaded: LoadedImage, out: Any, seconds: float) -> EditRecord:
        [edited], [region_map], [metadata] = out.images, out.region_maps, out.metadata
        [masks] = out.region_masks
        folder = self.new_folder()
        image = folder / f"{job.photo.stem[:60]}-edit.png"
        facts = {"image": job.photo.name}
        if job.style_image is not None:
            facts["style_image"] = job.style_image.name
        settings = facts | self._public_names(job, metadata)
        write_edit(Destination(image), loaded, edited, None, settings, regions=job.regions)
        maps = None
        if region_map is not None:
            maps = folder / "map.png"
            write_image(maps, enlarge_map(region_map, *edited.shape[-2:]))
        regions = [folder / region_name(index) for index in range(len(masks))]
        for path, mask in zip(regions, masks, strict=True):
            write_image(path, mask[None])
        return EditRecord(
            image, image.with_suffix(".json"), _shown(job.photo, loaded, folder), maps,
            tuple(regions), job.photo, settings, seconds, command_line(job),
        )  # fmt: skip

    def _public_names(self, job: EditJob, metadata: dict[str, Any]) -> dict[str, Any]:
        """The metadata with the names of the settings in place of folders of this machine."""
        changed = dict(metadata)
        if job.options.experts not in (AUTO, NONE):
            changed["experts"] = job.options.experts
        for key in ("base", "experts"):
            if isinstance(changed[key], str):
                changed[key] = self.public(changed[key])
        return changed

    def _known_base(self, base: str) -> str:
        if not base:
            return self.settings.bases[0]
        if base not in self.bases:
            raise UserError(
                f"base {base!r}: this server offers {', '.join(self.bases)}; did you mean "
                f"{nearest(base, self.bases)}?"
            )
        return self.bases[base]

    def _experts_folder(self, base: str, experts: str) -> Path | None:
        if experts == NONE:
            return None
        if experts == AUTO:
            return find_bundled_experts(base)
        if experts not in self.settings.experts:
            raise UserError(f"experts {experts!r}: this server offers {', '.join(self.experts)}")
        return Path(self.settings.experts[experts])


def _public_base(base: str) -> str:
    """The name of a base that users see: of a folder its last part."""
    return Path(base).name if os.path.isdir(base) else base


def _check(job: EditJob, settings: StudioSettings) -> None:
    """Refuse what the pipeline cannot know: empty rows and the server's limits."""
    count = len(job.objects)
    if not 1 <= count <= settings.max_objects:
        raise UserError(f"name 1 to {settings.max_objects} objects, such as cat; got {count}")
    for number, words in enumerate(job.objects, 1):
        if not words.strip():
            raise UserError(f"object {number} is empty: say what to restyle, such as cat")
    if job.style_image is None:
        if len(job.styles) != count:
            raise UserError(f"{count} objects and {len(job.styles)} styles: give one for each")
        for words, style in zip(job.objects, job.styles, strict=True):
            if not style.strip():
                raise UserError(f"the style of {words!r} is empty: choose one, such as neon")
    steps = job.options.steps
    if steps is not None and not 1 <= steps <= settings.max_steps:
        raise UserError(f"steps {steps}: this server allows 1 to {settings.max_steps}")


def _shown(photo: Path, loaded: LoadedImage, folder: Path) -> Path:
    """The photo if browsers can show it, else a PNG of it."""
    with opened(photo) as image:
        if image.format in SHOWN_AS_IS:
            return photo
    path = folder / "before.png"
    to_pil(loaded.rgb).save(path)
    return path


def check_upload(path: Path, settings: StudioSettings) -> tuple[int, int]:
    """The (height, width) of an uploaded image, from its header.

    Raises:
        UserError: no image of a known format, or more bytes or pixels than the limits.
    """
    check_input_file(path, "image")
    if path.stat().st_size > settings.max_upload_mb * 2**20:
        raise UserError(
            f"{path.name}: the file is larger than {settings.max_upload_mb:g} MB, scale it down"
        )
    with opened(path) as image:
        width, height = image.size
    if width * height > settings.max_pixels:
        raise UserError(
            f"{shown_path(path.name)}: {width}x{height} pixels are too many, this server takes "
            f"{settings.max_pixels / 1e6:g} million: scale it down"
        )
    return height, width


def seeds_of(text: str, most: int) -> list[int]:
    """Whole numbers of a text such as "0, 1, 5-8".

    Raises:
        UserError: something else, or too many.
    """
    found: list[int] = []
    for part in text.replace(";", ",").split(","):
        first, dash, last = part.strip().partition("-")
        if not first.strip().isdecimal() or (dash and not last.strip().isdecimal()):
            raise UserError(f"seeds {text!r}: write whole numbers such as 0, 1, 2 or 0-3")
        end = int(last) if dash else int(first)
        if end - int(first) >= most:
            raise UserError(f"seeds {text!r}: at most {most} edits at a time")
        found += range(int(first), end + 1)
    return _at_most(list(dict.fromkeys(found)), most)


def strengths_of(text: str, most: int) -> list[float]:
    """Numbers from 0 to 1 of a text such as "0.5, 1".

    Raises:
        UserError: something else, or too many.
    """
    try:
        found = [float(part) for part in text.replace(";", ",").split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= value <= 1 for value in found):
        raise UserError(f"strengths {text!r}: write numbers from 0 to 1 such as 0.5, 1")
    return _at_most(found, most)


def _at_most(values: Sequence[Any], most: int) -> list[Any]:
    if len(values) > most:
        raise UserError(f"{len(values)} values: at most {most} edits at a time")
    return list(values)
