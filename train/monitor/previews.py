"""Edits a few held-out samples while training runs: source | target | edit | map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from regionroute.adapters import routed
from regionroute.attention import mean_map, region_map
from regionroute.data.buckets import fitted
from regionroute.data.images import from_pil, to_pil, write_image
from regionroute.data.region_scores import edit_scores
from regionroute.diffusion.flow import sample as sample_latents
from train.data.selection import one_style_each, samples_of, target_of
from train.monitor.preview_pairs import file_id, windows, write_pairs
from train.step import Batch, recorder_of

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig
    from regionroute.data.manifest import EditSample, Manifest, StyleSpec
    from regionroute.models.backbone import Backbone
    from train.monitor.logs import Reporter

FOLDER = "previews"
SPLITS = ("val", "test", "train")
TITLES = ("source", "target", "edit", "map")
CELL, GAP, LINE = 192, 8, 18  # pixels


def choose(manifest: Manifest, styles: Sequence[StyleSpec], count: int) -> list[EditSample]:
    """The samples to show: of the first of `SPLITS` that has any, the styles taking turns.

    Each image is shown once as long as there are others.
    """
    names = [style.name for style in styles]
    for split in SPLITS:
        queues: list[list[EditSample]] = [[] for _ in names]
        parts = (
            part
            for sample in samples_of(manifest, split)
            for part in one_style_each(sample, manifest.root)
        )
        for part in parts:
            if part.regions[0].style in names:
                queues[names.index(part.regions[0].style)].append(part)
        if any(queues):
            return _in_turns(queues, count)
    return []


def _in_turns(queues: list[list[EditSample]], count: int) -> list[EditSample]:
    """One sample of each queue after another, those of new images first."""
    seen = Counter[str]()
    chosen: list[EditSample] = []
    for queue in cycle(queues):
        if len(chosen) == count or not any(queues):
            return chosen
        if queue:
            sample = min(queue, key=lambda one: seen[one.context])
            queue.remove(sample)
            seen[sample.context] += 1
            chosen.append(sample)
    return chosen


@dataclass
class Previews:
    """The same samples and the same noise each time, so that previews can be compared.

    Attributes:
        config: the run's.
        backbone: its scheduler and settings, and on the first process its autoencoder.
        manifest: where the images are.
        samples: by id.
        batch: of these samples, on the CPU; its noise is where sampling starts.
    """

    config: RunConfig
    backbone: Backbone
    manifest: Manifest
    samples: dict[str, EditSample]
    batch: Batch
    _paired: bool = field(default=False, init=False)

    def write(self, model: Any, step: int, reporter: Reporter) -> Path | None:
        """Edits the samples with the experts as they are and writes the sheet.

        All processes must call it: under ZeRO-3 each holds a part of every weight. The first
        one writes the sheet, and the edits one by one in a folder beside it, where
        ``eval/rses.py`` finds them (see `train.monitor.preview_pairs`).

        Returns:
            The sheet's file on the first process, None on the others.
        """
        model.eval()
        edits, maps = self._edit(model)
        model.train()
        if not reporter.main:
            return None
        pictures = self.backbone.decode_latents(edits).cpu()
        scores = edit_scores(pictures, *self._exact((pictures.shape[2], pictures.shape[3])))
        reporter.scores(step, {f"preview_{name}": value for name, value in scores.items()})
        image = self._sheet(pictures, maps.cpu(), step)
        path = Path(self.config.output) / FOLDER / f"step-{step:06d}.png"
        write_image(path, image)
        self._save(path.with_suffix(""), pictures)
        reporter.picture("preview", image, step)
        return path

    def _save(self, folder: Path, edits: Tensor) -> None:
        """The edits one by one, and beside their folder the pairs: for ``eval/rses.py``."""
        for name, edit in zip(self.batch.ids, edits, strict=True):
            write_image(folder / f"{file_id(name)}.png", edit)
        if not self._paired:
            size = (edits.shape[2], edits.shape[3])
            shown = [self.samples[name] for name in self.batch.ids]
            write_pairs(folder.parent, self.manifest, shown, size)
            self._paired = True

    def _exact(self, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Sources and targets [B,3,*size], and masks [B,1,*size] of all objects."""
        samples = [self.samples[name] for name in self.batch.ids]
        sources = [fitted(self.manifest.context(sample)[None], size) for sample in samples]
        targets = [fitted(target_of(self.manifest, sample)[None], size) for sample in samples]
        masks = [windows(self.manifest.masks(sample).amax(0)[None], size) for sample in samples]
        return torch.cat(sources), torch.cat(targets), torch.cat(masks)

    def _edit(self, model: Any) -> tuple[Tensor, Tensor]:
        """Latents [B,C,h,w] of the edits and region maps [B,S,h/2,w/2]."""
        batch = self.batch.to(next(model.parameters()).device)
        recorder, seen = recorder_of(self.config), []

        @contextmanager
        def observe(step: int) -> Iterator[None]:
            with recorder.recording(model, batch.plan):
                yield
            seen.append(mean_map(recorder.maps()))

        with routed(model, batch.route):
            latents = sample_latents(
                model,
                self.backbone.scheduler,
                batch.context,
                batch.prompt_embeds,
                batch.pooled,
                steps=self.backbone.settings.steps,
                guidance=self.backbone.settings.guidance,
                noise=batch.noise,
                observe=observe,
                negative=self.backbone.negative(self.backbone.settings.guidance),
            )
        return latents, region_map(torch.stack(seen).mean(0))

    def _sheet(self, edits: Tensor, maps: Tensor, step: int) -> Tensor:
        """One row a sample under the column titles, [3,H,W] in [0,1]."""
        rows = []
        for number, name in enumerate(self.batch.ids):
            sample, size = self.samples[name], (edits.shape[2], edits.shape[3])
            source = fitted(self.manifest.context(sample)[None], size)[0]
            target = fitted(target_of(self.manifest, sample)[None], size)[0]
            shown = maps[number][self.batch.plan.valid[number]].amax(0)  # several objects in one
            heat = F.interpolate(shown[None, None], size)[0].expand(3, -1, -1)
            objects = ", ".join(region.object for region in sample.regions)
            label = f"{name}: {objects}, {sample.regions[0].style}"
            rows.append((label, [source, target, edits[number], heat]))
        return draw_sheet(f"step {step}", rows)


def draw_sheet(title: str, rows: Sequence[tuple[str, Sequence[Tensor]]]) -> Tensor:
    """Pictures in rows of `TITLES`.

    Args:
        title: in the corner.
        rows: label and images [3,H,W] in [0,1] of each row.

    Returns:
        [3,H',W'] in [0,1].
    """
    width = GAP + len(TITLES) * (CELL + GAP)
    sheet = Image.new("RGB", (width, LINE + len(rows) * (CELL + LINE + GAP)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for column, name in enumerate(TITLES):
        draw.text((GAP + column * (CELL + GAP), 2), name, "black", font)
    draw.text((width - GAP, 2), title, "black", font, anchor="ra")
    for number, (label, pictures) in enumerate(rows):
        top = LINE + number * (CELL + LINE + GAP)
        for column, picture in enumerate(pictures):
            cell = to_pil(picture)
            cells_visible = TITLES[column] == "map"
            kind = Image.Resampling.NEAREST if cells_visible else Image.Resampling.LANCZOS
            sheet.paste(cell.resize(_fit(cell.size), kind), (GAP + column * (CELL + GAP), top))
        draw.text((GAP, top + CELL + 2), label, "black", font)
    return from_pil(sheet)


def _fit(size: tuple[int, int]) -> tuple[int, int]:
    scale = CELL / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
