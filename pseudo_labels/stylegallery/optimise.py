"""Minimises the energy: over the latents, or between the steps of the model's sampler.

Both go through the timesteps in descending order; a resumed run gives the same result as one that
was not interrupted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pseudo_labels.stylegallery.config import EnergyConfig
from pseudo_labels.stylegallery.energy import AttentionEnergy

_LCM_TEACHER_STEPS = 50  # latent consistency models were distilled at this many timesteps
_EPS = 1e-5


@dataclass
class OptimState:
    """State of an optimisation; all tensors have the shape of z, [1, c, h, w].

    Attributes:
        latents: z.
        done: finished timesteps.
        first: Adam's first moment, None before the first step and in guided mode.
        second: Adam's second moment.
        losses: [done × iterations, 3] of (total, style, content).
    """

    latents: Tensor
    done: int = 0
    first: Tensor | None = None
    second: Tensor | None = None
    losses: list[list[float]] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """The state as tensors, for a file."""
        found = {
            "latents": self.latents,
            "done": torch.tensor(self.done),
            "losses": torch.tensor(self.losses, dtype=torch.float64).reshape(-1, 3),
        }
        if self.first is not None and self.second is not None:
            found |= {"first": self.first, "second": self.second}
        return found

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], device: torch.device) -> "OptimState":
        """The state from the tensors of a file."""
        first, second = (
            tensors[name].to(device) if name in tensors else None for name in ("first", "second")
        )
        losses = tensors["losses"].tolist()
        return cls(tensors["latents"].to(device), int(tensors["done"]), first, second, losses)


def first_latents(inverted: Tensor, content: Tensor, start: str) -> Tensor:
    """Initial latents of the optimisation.

    Args:
        inverted: the inversion's last latents [1, c, h, w].
        content: clean latents of the content.
        start: `EnergyConfig.start`.

    Returns:
        [1, c, h, w] in float32.
    """
    if start == "content":
        return content.float().clone()
    if start == "inverted":
        return inverted.float().clone()
    places = (2, 3) if start == "instance" else (1,)
    mean = inverted.float().mean(places, keepdim=True)
    deviation = inverted.float().std(places, keepdim=True, unbiased=False)
    return (inverted.float() - mean) / (deviation + _EPS)


def energy_timesteps(config: EnergyConfig, training_steps: int, offset: int) -> list[int]:
    """Descending timesteps.

    Raises:
        ValueError: more timesteps than the schedule has.
    """
    most = _LCM_TEACHER_STEPS if config.schedule == "lcm" else training_steps
    if config.steps > most:
        raise ValueError(f"{config.steps} timesteps requested, the schedule has {most}")
    if config.schedule == "lcm":
        ratio = training_steps // _LCM_TEACHER_STEPS
        known = [(place + 1) * ratio - 1 for place in range(_LCM_TEACHER_STEPS)][::-1]
        return [known[place * len(known) // config.steps] for place in range(config.steps)]
    if config.schedule == "trailing":
        spacing = training_steps / config.steps
        return [round(training_steps - place * spacing) - 1 for place in range(config.steps)]
    ratio = training_steps // config.steps
    last = training_steps - 1
    return [min(place * ratio + offset, last) for place in reversed(range(config.steps))]


def minimise(
    energy: AttentionEnergy,
    state: OptimState,
    timesteps: list[int],
    save: Callable[[OptimState], None] | None = None,
    progress: bool = True,
) -> OptimState:
    """Mode "optimize": Adam on z; the timestep only conditions the network.

    Args:
        energy: what is minimised.
        state: initial or resumed state.
        timesteps: descending.
        save: called with the state every `save_every` timesteps.
        progress: show a progress bar.

    Returns:
        The final state.
    """
    config = energy.config
    latents = state.latents.detach().clone().requires_grad_()
    adam = torch.optim.Adam([latents], lr=config.learning_rate)
    if state.first is not None:
        step = torch.tensor(float(state.done * config.iterations))
        adam.state[latents] = {"step": step, "exp_avg": state.first, "exp_avg_sq": state.second}
    bar = _bar(timesteps, state.done, progress)
    for place in bar:
        anchors = energy.anchors(timesteps[place])
        for _ in range(config.iterations):
            state.losses.append(_step(energy, latents, timesteps[place], anchors, adam))
        moments = adam.state[latents]
        state.latents, state.done = latents.detach(), place + 1
        state.first, state.second = moments["exp_avg"], moments["exp_avg_sq"]
        _after(bar, state, config, save, len(timesteps))
    return state


def guide(
    energy: AttentionEnergy,
    state: OptimState,
    timesteps: list[int],
    clean: tuple[Tensor, Tensor],
    noise: Tensor,
    save: Callable[[OptimState], None] | None = None,
    progress: bool = True,
) -> OptimState:
    """Mode "guided": a step of the sampler, then Adam with fresh moments at the new noise level.

    The content and the references are noised to that level, with the same noise at all levels.

    Args:
        energy: what is minimised.
        state: initial or resumed state.
        timesteps: descending; z starts at the first.
        clean: latents of the content [1, c, h, w] and of the references [R, c, h, w].
        noise: [1 + R, c, h, w].
        save: called with the state every `save_every` timesteps.
        progress: show a progress bar.

    Returns:
        The final state.
    """
    config = energy.config
    following = [*timesteps[1:], 0]
    bar = _bar(timesteps, state.done, progress)
    for place in bar:
        now, after = timesteps[place], following[place]
        with torch.no_grad():
            predicted = energy.predict(state.latents, now)
            moved = energy.model.move(state.latents, predicted, now, after)
        noised = energy.model.noised(torch.cat(clean), noise, after)
        anchors = energy.anchors(after, (noised[:1], noised[1:]))
        latents = moved.detach().clone().requires_grad_()
        adam = torch.optim.Adam([latents], lr=config.learning_rate)
        for _ in range(config.iterations):
            state.losses.append(_step(energy, latents, after, anchors, adam))
        state.latents, state.done = latents.detach(), place + 1
        _after(bar, state, config, save, len(timesteps))
    return state


def guided_timesteps(first: int, steps: int) -> list[int]:
    """Evenly spaced descending timesteps from the level that the inversion reached.

    Raises:
        ValueError: more timesteps than there are levels.
    """
    if steps > first:
        raise ValueError(f"{steps} timesteps requested, the inversion ends at {first}")
    return [round(first - place * first / steps) for place in range(steps)]


def _step(
    energy: AttentionEnergy,
    latents: Tensor,
    timestep: int,
    anchors: Any,
    adam: torch.optim.Optimizer,
) -> list[float]:
    adam.zero_grad(set_to_none=True)
    value = energy.value(latents, timestep, anchors)
    value.total.backward()
    adam.step()
    return [float(value.total.detach()), float(value.style.detach()), float(value.content.detach())]


def _bar(timesteps: list[int], done: int, progress: bool) -> Any:
    return tqdm(
        range(done, len(timesteps)),
        desc="restyling",
        unit="step",
        initial=done,
        total=len(timesteps),
        leave=False,
        disable=not progress,
    )


def _after(
    bar: Any,
    state: OptimState,
    config: EnergyConfig,
    save: Callable[[OptimState], None] | None,
    total: int,
) -> None:
    bar.set_postfix(loss=f"{state.losses[-1][0]:.4f}", refresh=False)
    if save is not None and state.done < total and state.done % config.save_every == 0:
        save(state)
