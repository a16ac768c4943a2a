"""The training loop: micro-batches through the engine, agreement on losses, saving, stopping."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regionroute.errors import UserError
from regionroute.files import write_json
from train.data.dataset import TrainingData, members_of, stream
from train.engine import checkpoint, distributed
from train.engine.checkpoint import TrainerState
from train.engine.distributed import Ranks, SharedMistake
from train.engine.engine import EngineModel, gradient_norm
from train.monitor.gradient_norms import measure_gradient_norms, seed_dropout, supervision_scale
from train.monitor.logs import Reporter
from train.monitor.loss_spike import LossSpikeGuard
from train.monitor.router_log import RouterLog
from train.step import Batch, StepLosses, training_step

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from regionroute.config.run import RunConfig
    from train.engine.ema import MovingAverage
    from train.monitor.previews import Previews
    from train.monitor.validation import Validation
    from train.perceptual import PerceptualLoss

BAD_BATCH_FILE = "bad_batch.json"
LOST = 255  # the code of a run whose output was deleted, above those of signals


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a wish that the loop reads; a second Ctrl-C ends at once.

    Attributes:
        code: exit code to end with (130 or 143), 0 while nobody has asked.
    """

    def __init__(self) -> None:
        self.code = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.code and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.code = self.code or 128 + number


@dataclass
class Trainer:
    """One run, from its first step or from a checkpoint to its last.

    Attributes:
        config: the run's.
        ranks: this process's place.
        engine: around the adapted transformer.
        data: the batches.
        state: the progress of the run; replaced after every step.
        reporter: bar and logs.
        write_experts: writes the experts and their registry into a folder.
        previews: None if there are to be none.
        average: of the experts; previews, validation and what is exported are then its.
        validation: None if there is to be none.
        perceptual: None if there is to be none.
    """

    config: RunConfig
    ranks: Ranks
    engine: DeepSpeedEngine
    data: TrainingData
    state: TrainerState
    reporter: Reporter
    write_experts: Callable[[Path], object]
    previews: Previews | None = None
    average: MovingAverage | None = None
    validation: Validation | None = None
    perceptual: PerceptualLoss | None = None

    def __post_init__(self) -> None:
        self.output = Path(self.config.output)
        self.model = EngineModel(self.engine)
        self.router = RouterLog(self.engine.module)
        self.guard = LossSpikeGuard(self.config.train.loss_spike)

    def run(self) -> int:
        """Trains to the end.

        Returns:
            0, or 130 / 143 after Ctrl-C / SIGTERM, when a checkpoint was written first.

        Raises:
            SharedMistake: a loss spike, a loss or gradient that is not finite, or an output folder
                that was deleted.
        """
        batches = stream(self.data, self._schedule(), self.config.data.workers)
        earlier, started = self.state.seconds, time.perf_counter()
        self.reporter.begin()
        with closing(batches), StopRequest() as request:
            for step in range(self.state.step, self.config.train.steps):
                if self._has_converged(step):
                    best = self.state.best_step
                    self.reporter.note(f"stopped at step {step}: the best was step {best}")
                    break
                row, code = self._step(step, batches, request)
                if code == LOST:
                    distributed.agree(self.reporter.check)
                seconds = earlier + time.perf_counter() - started
                self.state = replace(self.state, step=step + 1, seconds=seconds)
                self.reporter.step(step + 1, row)
                self._after_step(step + 1, stopping=code != 0)
                if code:
                    return code
        return 0

    def _has_converged(self, step: int) -> bool:
        """Whether the last `train.patience` validations had no lower loss."""
        train, best = self.config.train, self.state.best_step
        patience = train.patience * train.validate_every
        return bool(patience) and best is not None and step - best >= patience

    def _schedule(self) -> Iterator[tuple[int, range]]:
        """(step, members) of every micro-batch of this process."""
        train = self.config.train
        for step in range(self.state.step, train.steps):
            for micro in range(train.accumulation):
                yield step, self._members(self.ranks.rank, micro)

    def _members(self, rank: int, micro: int) -> range:
        train = self.config.train
        return members_of(rank, self.ranks.world, micro, train.accumulation, train.global_batch)

    def _step(
        self, step: int, batches: Iterator[Batch], request: StopRequest
    ) -> tuple[dict[str, float], int]:
        """One optimizer step (counted from 0): its row of numbers, and the agreed exit code."""
        micros = [next(batches) for _ in range(self.config.train.accumulation)]
        norms = self._gradient_norms(step, micros)
        scores, code = self._gather(self._backward(step, micros), self._wish(request))
        self._check_losses(step, scores)
        lr, norm = self.engine.get_lr()[0], gradient_norm(self.engine)
        self.engine.step()
        if norm is None:
            norm = float(self.engine.get_global_grad_norm())
        self._check_gradient(step, norm, scores)
        if self.average:
            self.average.update(step)
        means = dict(zip(StepLosses.NAMES, scores.nanmean(0).tolist(), strict=True))
        row = {name: value for name, value in means.items() if not math.isnan(value)}
        row |= self.router.report(step + 1, self.ranks, self.reporter)
        return row | {"lr": lr, "grad_norm": norm} | norms, code

    def _wish(self, request: StopRequest) -> int:
        """The code that this process would end with: 0, a signal's, or `LOST`."""
        try:
            self.reporter.check()
        except UserError:
            return LOST
        return request.code

    def _backward(self, step: int, micros: list[Batch]) -> Tensor:
        """Accumulates the gradients of a step; the losses of this process's part [n,8]."""
        rows = []
        for micro, batch in enumerate(micros):
            batch = batch.to(self.ranks.device)
            # Dropout must not depend on how the run got here.
            seed_dropout(self.config.seed, step, micro, self.ranks.rank)
            with training_step(
                self.model, batch, self.config, measure=self._measures(step),
                supervision_scale=self.state.supervision_scale, perceptual=self.perceptual,
            ) as losses:  # fmt: skip
                if self._measures(step):
                    self.router.collect(batch.expert_ids)
                self.engine.backward(losses.total.mean())
            rows.append(losses.rows())
            if micro < len(micros) - 1:
                self.engine.step()
        return torch.cat(rows)

    def _gradient_norms(self, step: int, micros: list[Batch]) -> dict[str, float]:
        """Gradient norms per loss, at the steps that measure them; sets the supervision's scale."""
        supervision = self.config.supervision
        supervised = supervision.focus > 0 or supervision.cover > 0
        every = supervision.gradient_norms_every
        if not (supervised and every) or step % every:
            return {}
        measured = measure_gradient_norms(self.engine.module, micros, self.config, step, self.ranks)
        most = supervision.max_gradient_ratio
        scale = supervision_scale(measured, most)
        self.state = replace(self.state, supervision_scale=scale)
        return measured | ({} if most is None else {"supervision_scale": scale})

    def _measures(self, step: int) -> bool:
        return step == 0 or (step + 1) % self.config.train.log_every == 0

    def _gather(self, rows: Tensor, code: int) -> tuple[Tensor, int]:
        """Losses of the global batch [G,8] in its own order, and any process's wish to stop.

        The order makes sums the same however the batch was shared.
        """
        wish = torch.full_like(rows[:1], code)
        parts = distributed.gather_rows(torch.cat([rows, wish]), self.ranks)
        scores = torch.empty(self.config.train.global_batch, rows.shape[1], dtype=parts.dtype)
        for rank, part in enumerate(parts):
            members = [
                member
                for micro in range(self.config.train.accumulation)
                for member in self._members(rank, micro)
            ]
            scores[members] = part[:-1]
        return scores, int(parts[:, -1].max())

    def _check_losses(self, step: int, scores: Tensor) -> None:
        finite = scores[:, : StepLosses.NAMES.index("iou")].isfinite().all(1)
        if not finite.all():
            self._refuse(step, scores, (~finite).tolist(), "the loss is not finite")
        totals = scores[:, StepLosses.NAMES.index("total")]
        limit, loss = self.guard.limit(), float(totals.mean())
        if not self.guard.accept(loss):
            assert limit is not None
            what = f"loss spike: {loss:.4g} exceeds the limit of {limit:.4g} (train.loss_spike)"
            self._refuse(step, scores, totals.gt(limit).tolist(), what)

    def _check_gradient(self, step: int, norm: float, scores: Tensor) -> None:
        if not math.isfinite(norm):
            self._refuse(step, scores, [True] * len(scores), "the gradient is not finite")

    def _refuse(self, step: int, scores: Tensor, bad: list[bool], what: str) -> None:
        """Writes the batch down and ends the run; nothing of this step is saved."""
        ids = self.data.ids(step)
        path = self.output / BAD_BATCH_FILE
        if self.ranks.main:
            samples = [
                {"id": name, "bad": flag} | dict(zip(StepLosses.NAMES, map(str, row), strict=True))
                for name, flag, row in zip(ids, bad, scores.tolist(), strict=True)
            ]
            write_json(path, {"step": step + 1, "reason": what, "samples": samples})
        named = [name for name, flag in zip(ids, bad, strict=True) if flag]
        listed = ", ".join(named[:4]) + (", ..." if len(named) > 4 else "")
        saved = checkpoint.find(self.output)
        intact = f"; {saved[-1][1]} is intact" if saved else ""
        raise SharedMistake(
            f"{what} at step {step + 1} (samples {listed}), the batch is listed in {path}{intact}: "
            "check these images or lower optim.lr"
        )

    def _after_step(self, step: int, *, stopping: bool) -> None:
        train = self.config.train
        shows = bool(train.preview_every) and step % train.preview_every == 0
        validates = bool(train.validate_every) and (
            step % train.validate_every == 0 or step == train.steps
        )
        if shows or validates:
            with self._averaged():
                if shows and self.previews:
                    self.previews.write(self.model, step, self.reporter)
                if validates and self.validation:
                    self._validate(self.validation, step)
        ends = step == train.steps or self._has_converged(step)
        saves = ends or step % train.save_every == 0
        if stopping or saves or self.state.best_step == step:
            folder = self.save()
            if stopping:
                self.reporter.note(
                    f"stopped at step {step}: {folder} is written, the same command continues it"
                )

    def _averaged(self) -> AbstractContextManager[None]:
        return self.average.applied() if self.average else nullcontext()

    def _validate(self, validation: Validation, step: int) -> None:
        """Records the validation loss, and the step if none before had a lower one."""
        row = validation.run(self.model, self.ranks)
        self.reporter.scores(step, row)
        best, loss = self.state.best_loss, row.get("val_total", math.nan)
        if self.config.train.keep_best and math.isfinite(loss) and (best is None or loss < best):
            self.state = replace(self.state, best_step=step, best_loss=loss)

    def save(self) -> Path:
        """Writes a checkpoint of the present state; all processes must call it."""
        return checkpoint.save(
            self.engine, self.output, self.state, self.write_experts, self.ranks,
            self.config.train.keep, self.average,
        )  # fmt: skip

    def export(self) -> Path:
        """Writes the experts to <output>/experts; all processes must call it."""
        folder = self.output / "experts"
        checkpoint.export(self.engine, folder, self.write_experts, self.ranks, self.average)
        return folder
