"""Score attention maps of labelled images, read at the first step of an edit.

Shape legend: C sites, P images, B images of a batch, h w the token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regionroute.attention import combine_maps, map_scores
from regionroute.config.sites import AttentionSite, MapChoice
from regionroute.data.manifest import EditSample, Manifest
from regionroute.diffusion.latents import mask_to_grid
from regionroute.editing.editor import Editor
from regionroute.editing.inputs import size_batches
from regionroute.editing.request import EditRequest
from regionroute.routing.calibration import Row, Scores


@dataclass(frozen=True)
class LabelledEdit:
    """A labelled image: a sample's first region as an edit of its own.

    Attributes:
        sample: with a mask.
        request: the edit.
        size: (H, W) of the image.
    """

    sample: EditSample
    request: EditRequest
    size: tuple[int, int]


class HeadScan:
    """Reads the same images repeatedly, each time at other sites.

    Args:
        editor: the base with or without experts; its attention sites are changed.
        manifest: of the examples.
        examples: P of them.
        batch_size: images of one size at a time.
        advance: called with the number of images read, for progress.
    """

    def __init__(
        self,
        editor: Editor,
        manifest: Manifest,
        examples: Sequence[LabelledEdit],
        batch_size: int,
        advance: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.editor, self.manifest, self.examples = editor, manifest, list(examples)
        self.advance = advance
        self.batches = size_batches([example.size for example in self.examples], batch_size)

    def scores(self, choice: MapChoice, *, bare: bool = False) -> Scores:
        """Score each site of the choice; `bare`: without the experts.

        Raises:
            UserError: a image, a mask or a phrase that cannot be used.
        """
        found = []
        sites: list[AttentionSite] = []
        for maps, masks in self._read(choice, bare):
            sites = list(maps)
            found.append(map_scores(torch.stack(list(maps.values())), masks))
        iou, share = (self._in_order(part) for part in zip(*found, strict=True))
        return Scores(sites, iou, share)

    def row(self, name: str, choice: MapChoice, *, bare: bool = False) -> Row:
        """Score the combined map of the choice; `bare`: without the experts.

        Raises:
            UserError: see `scores`.
        """
        found = [
            map_scores(combine_maps(list(maps.values()), choice.combine), masks)
            for maps, masks in self._read(choice, bare)
        ]
        iou, share = (self._in_order(part) for part in zip(*found, strict=True))
        return Row(name, choice.layers, iou, share)

    def maps(self, choice: MapChoice) -> tuple[list[AttentionSite], list[Tensor], list[Tensor]]:
        """The sites, and for each image their maps [C,h,w] and the soft mask [h,w].

        Raises:
            UserError: see `scores`.
        """
        sites: list[AttentionSite] = []
        maps: list[Tensor] = [torch.empty(0)] * len(self.examples)
        masks = list(maps)
        for numbers, (found, grids) in zip(self.batches, self._read(choice, False), strict=True):
            sites = list(found)
            stacked = torch.stack(list(found.values()), dim=1)  # [B,C,h,w]
            for number, image, mask in zip(numbers, stacked, grids, strict=True):
                maps[number], masks[number] = image, mask
        return sites, maps, masks

    def _read(
        self, choice: MapChoice, bare: bool
    ) -> Iterator[tuple[dict[AttentionSite, Tensor], Tensor]]:
        """For each batch the maps by site and the masks, [B,h,w] each."""
        self.editor.read_maps(choice)
        for numbers in self.batches:
            members = [self.examples[number] for number in numbers]
            images = [self.manifest.context(example.sample) for example in members]
            maps = self.editor.site_maps(images, [one.request for one in members], bare=bare)
            grid = next(iter(maps.values())).shape[-2:]
            masks = [mask_to_grid(self.manifest.masks(one.sample)[0], *grid) for one in members]
            yield maps, torch.stack(masks).to(next(iter(maps.values())))
            self.advance(len(numbers))

    def _in_order(self, parts: Sequence[Tensor]) -> np.ndarray:
        """Values [...,B] of the batches as [...,P]."""
        values = torch.cat([part.double().cpu() for part in parts], dim=-1).numpy()
        order = np.argsort([number for numbers in self.batches for number in numbers])
        return values[..., order]
