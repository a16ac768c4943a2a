"""The validation loss: the same pairs, noise and noise levels in every run and at every step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regionroute.data.manifest import manifest_file
from regionroute.errors import UserError
from train.data.dataset import TrainingData, TrainingExample, seeded
from train.data.selection import split_parts
from train.engine import distributed
from train.step import Batch, StepLosses, training_step

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig
    from regionroute.data.manifest import EditSample, Manifest, StyleSpec
    from train.data.cache import Cache
    from train.data.references import References
    from train.engine.distributed import Ranks

SPLITS = ("val", "test")
ONLY_INSIDE = 1e6  # weight of the mask against 1 outside
LOGGED = ("flow", "focus", "cover", "total", "iou")


def choose_held_out(
    manifest: Manifest, config: RunConfig, styles: Sequence[StyleSpec]
) -> list[EditSample]:
    """The samples of the validation loss, evenly spread over the held-out split.

    Args:
        manifest: of the run.
        config: its data and train parts are read.
        styles: that are trained.

    Returns:
        At most ``train.validation_samples``, each of one style; none without validation.

    Raises:
        UserError: no such sample, or the split is the one that is trained on.
    """
    train = config.train
    if not train.validate_every:
        return []
    if train.validation_split == config.data.split:
        raise UserError(
            f"train.validation_split={train.validation_split} is the split that is trained on: "
            "name a held-out one"
        )
    names = {style.name for style in styles}
    for split in (train.validation_split,) if train.validation_split else SPLITS:
        if split == config.data.split:
            continue
        found = [p for p in split_parts(manifest, split)[0] if p.regions[0].style in names]
        if found:
            count = min(len(found), train.validation_samples)
            return [found[i * len(found) // count] for i in range(count)]
    wanted = train.validation_split or " or ".join(SPLITS)
    raise UserError(
        f"train.validate_every: {manifest_file(config.data.manifest)} has no sample of a trained "
        f"style in split {wanted}: set train.validation_split, or train.validate_every=0"
    )


@dataclass
class Validation:
    """Losses without training, comparable between steps, runs and numbers of processes.

    Every pair is seen at noise levels (i+.5)/L with noise that depends on its id alone; one pair
    at all levels is a batch, whoever computes it.

    Attributes:
        config: the run's.
        examples: the held-out pairs.
        cache: holds their tensors.
        references: example images, where they choose the experts.
    """

    config: RunConfig
    examples: Sequence[TrainingExample]
    cache: Cache
    references: References | None = None

    def __post_init__(self) -> None:
        # Samples of this split show the object restyled alone; with whole targets the model paints
        # all, so they are compared inside the mask.
        weight = ONLY_INSIDE if self.config.data.whole_targets else 1.0
        flow = self.config.flow.model_copy(update={"mask_weight": weight})
        experts = self.config.experts.model_copy(update={"load_balance": 0.0})
        self._plain = self.config.model_copy(update={"flow": flow, "experts": experts})

    @property
    def levels(self) -> list[float]:
        """The noise levels, in (0,1]."""
        count = self.config.train.validation_levels
        if isinstance(count, list):
            return count
        return [(i + 0.5) / count for i in range(count)]

    def run(self, model: Any, ranks: Ranks) -> dict[str, float]:
        """Means over pairs and levels; all processes must call it, and all get the same.

        Args:
            model: the engine, or the adapted transformer.
            ranks: this process's place.

        Returns:
            "val_flow" (unweighted; with whole targets inside the mask), "val_focus", "val_cover",
            "val_total" (with the run's weights of the supervision, not capped), "val_iou" of the
            maps, and "val_flow@<level>".
        """
        count = len(self.examples)
        turns = math.ceil(count / ranks.world)
        model.eval()
        # Under ZeRO-3 all processes must run equally often: the last pair is repeated.
        places = [min(turn * ranks.world + ranks.rank, count - 1) for turn in range(turns)]
        rows = torch.stack([self._losses(model, place, ranks) for place in places])
        model.train()
        parts = distributed.gather_rows(rows.flatten(1), ranks)  # [world,turns,L*8]
        table = parts.transpose(0, 1).flatten(0, 1)[:count].unflatten(1, (len(self.levels), -1))
        means = dict(zip(StepLosses.NAMES, table.flatten(0, 1).nanmean(0).tolist(), strict=True))
        numbers = {f"val_{name}": means[name] for name in LOGGED if not math.isnan(means[name])}
        by_level = table[..., StepLosses.NAMES.index("flow")].mean(0).tolist()
        return numbers | {
            f"val_flow@{level:g}": loss for level, loss in zip(self.levels, by_level, strict=True)
        }

    @torch.no_grad()
    def _losses(self, model: Any, place: int, ranks: Ranks) -> Tensor:
        """One pair at all levels: [L,8] in the order of `StepLosses.NAMES`."""
        batch = self.batch(self.examples[place]).to(ranks.device)
        with training_step(model, batch, self._plain, measure=True) as losses:
            return losses.rows()

    def batch(self, example: TrainingExample) -> Batch:
        """One pair at all levels, on the CPU."""
        count = len(self.levels)
        data = TrainingData(
            [example] * count, self.cache, seed=0, global_batch=count, flow=self.config.flow,
            references=self.references,
        )  # fmt: skip
        batch = data.batch(0, range(count))
        shape = batch.noise.shape[1:]
        noise = [
            torch.randn(shape, generator=seeded("validation", example.id, level))
            for level in range(count)
        ]
        return dataclasses.replace(batch, noise=torch.stack(noise), sigma=torch.tensor(self.levels))
