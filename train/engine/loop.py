"""The loop of trainings in one process: steps, log, checkpoints, validations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from regionroute.errors import UserError
from train.engine.single_process import CHECKPOINT, LOG_FILE
from train.engine.states import Stateful, save_states
from train.monitor.logs import append_row


class LoopSettings(Protocol):
    """Settings of the loop, in steps."""

    @property
    def steps(self) -> int:
        """Of the whole training."""

    @property
    def log_every(self) -> int:
        """Between rows of the log."""

    @property
    def save_every(self) -> int:
        """Between checkpoints."""

    @property
    def validate_every(self) -> int:
        """Between validations."""


def train_steps(
    name: str,
    settings: LoopSettings,
    output: Path,
    start: int,
    *,
    losses: Callable[[int], Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
    rates: Callable[[int], Sequence[float]],
    rate_key: str,
    clip: float,
    validate: Callable[[int], Mapping[str, float]] | None,
    **parts: Stateful,
) -> Mapping[str, float]:
    """Trains, with checkpoints and a log in the output folder.

    An interrupted run gives the same weights as an undisturbed one if the losses of a step depend
    on its number alone.

    Args:
        name: of what is trained, for the progress bar.
        settings: number of steps, and how often what is done.
        output: folder of the run, see `resume`.
        start: steps done before.
        losses: of a step from 0, by name, scalars; their sum is minimised.
        optimizer: of the weights.
        rates: learning rate of each of the optimizer's groups in a step from 0.
        rate_key: the setting that they come from.
        clip: largest norm of the gradient.
        validate: scores of the weights after a step, by name; None: nothing to validate on.
        parts: networks by the names that `resume` got.

    Returns:
        The last validation's scores; empty if there was none.

    Raises:
        UserError: the loss is not finite.
    """
    unlogged: list[dict[str, float]] = []
    scores: Mapping[str, float] = {}
    with tqdm(
        range(start, settings.steps), name, settings.steps, initial=start, unit="step"
    ) as bar:
        for step in bar:
            for group, rate in zip(optimizer.param_groups, rates(step), strict=True):
                group["lr"] = rate
            terms = losses(step)
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise UserError(
                    f"the loss of step {step} is {loss.item()}: lower {rate_key} and resume"
                )
            _update(loss, optimizer, clip)
            unlogged.append({term: value.item() for term, value in terms.items()})
            done = step + 1
            if done % settings.log_every == 0:
                means = _means(unlogged)
                bar.set_postfix({k: f"{v:.4f}" for k, v in means.items()}, refresh=False)
                append_row(output / LOG_FILE, {"step": done, **means})
                unlogged.clear()
            if done % settings.save_every == 0 or done == settings.steps:
                save_states(output / CHECKPOINT, done, optimizer=optimizer, **parts)
            if validate and (done % settings.validate_every == 0 or done == settings.steps):
                scores = validate(step)
                append_row(output / LOG_FILE, {"step": done, **scores})
                bar.write(f"step {done}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))
    return scores


def _update(loss: Tensor, optimizer: torch.optim.Optimizer, clip: float) -> None:
    loss.backward()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    torch.nn.utils.clip_grad_norm_(weights, clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each loss over the steps that have it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}
