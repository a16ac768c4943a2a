"""Fits one style to one or a few images in about forty steps."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from tqdm import tqdm

from pseudo_labels.stylemamba.config import LossConfig, MambaConfig
from pseudo_labels.stylemamba.encoders import StyleTarget, describe
from pseudo_labels.stylemamba.modules.fusion import StyleFusion
from pseudo_labels.stylemamba.objective import Objective, Parts
from regionroute.errors import UserError

_INPUTS = 64  # of a layer that learns at the full rate
_STYLE_TERMS = ("directional", "masked", "patch_clip")
Report = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Fit:
    """Result of a fit.

    Attributes:
        fusion: the module.
        descriptions: style inputs of the module, [S, C].
        rows: losses of each step and their total.
    """

    fusion: StyleFusion
    descriptions: Tensor
    rows: list[dict[str, float]]


def fit(
    targets: Sequence[StyleTarget],
    images: Tensor,
    parts: Parts,
    config: MambaConfig,
    region: Tensor | None = None,
    report: Report | None = None,
) -> Fit:
    """Fit one fusion module to one style, or to several for blending.

    Args:
        targets: S styles.
        images: [n, 3, H, W] in [0, 1], sides are multiples of `Codec.multiple`.
        parts: the frozen networks.
        config: `fusion`, `loss` and `fit` are used.
        region: [n, 1, H, W] in {0, 1}, where the style is applied; None: everywhere.
        report: called after each step with its number (from 1) and losses.

    Returns:
        The module after the last step. Equal arguments give equal weights on one device.

    Raises:
        UserError: a loss is not finite.
    """
    options = config.fit
    objective = Objective(parts, config.loss)
    source = objective.source(images, region)
    seen = source.embeddings
    descriptions = torch.stack(
        [describe(parts.encoder, target, seen, options.style_input) for target in targets]
    )
    directions = torch.stack([target.direction(seen) for target in targets])
    fusion = new_fusion(parts, descriptions, config, options.seed).to(images.device)
    optimizer = torch.optim.Adam(_groups(fusion, options.learning_rate))
    pairs = list(itertools.product(range(len(images)), range(len(targets))))
    previous: dict[tuple[int, int], Tensor] = {}  # last E(Y) of each pair
    generator = Generator().manual_seed(options.seed)
    rows, losses = [], []
    progress = tqdm(range(1, options.steps + 1), desc="fit", unit="step", disable=None)
    for step in progress:
        batch = [pairs[i] for i in turn(step, len(pairs), options.batch)]
        index, style = torch.tensor(batch, device=images.device).unbind(1)
        result = objective(
            fusion(source.latents[index], descriptions[style]),
            source.rows(index),
            directions[style, index],
            generator,
            previous=_stack_known(previous, batch),
        )
        update(fusion, optimizer, result.total, options.clip, step)
        previous |= dict(zip(batch, result.embeddings, strict=True))
        rows.append(as_row(result.terms, result.total))
        if report is not None:
            report(step, rows[-1])
        progress.set_postfix(loss=f"{rows[-1]['total']:.3f}", refresh=False)
        losses.append(style_loss(rows[-1], config.loss))
        if converged(losses, options.patience, options.tolerance):
            break
    return Fit(fusion, descriptions, rows)


def style_loss(row: Mapping[str, float], config: LossConfig) -> float:
    """How far a style is from its target: the weighted sum of a row's style losses.

    The total does not show it: the content loss rises with the style, and the second-order loss is
    about the last step only. Without style losses it is the total.
    """
    terms = [getattr(config, name) * row[name] for name in _STYLE_TERMS if name in row]
    return sum(terms) if terms else row["total"]


def converged(losses: Sequence[float], patience: int, tolerance: float) -> bool:
    """Whether losses have stopped falling.

    Args:
        losses: of all steps so far.
        patience: steps that are averaged; the last of them are compared with those before.
        tolerance: smallest fall, as a fraction of the loss; 0: never converged.
    """
    if tolerance == 0 or len(losses) < 2 * patience:
        return False
    before, now = (
        sum(part) / patience for part in (losses[-2 * patience : -patience], losses[-patience:])
    )
    return now > before - tolerance * abs(before)


def _groups(fusion: StyleFusion, rate: float) -> list[dict[str, Any]]:
    """Learning rates of Adam: in inverse proportion to a matrix's inputs beyond `_INPUTS`.

    Every weight moves by about the learning rate, so a layer's output moves by that times its
    inputs: at one rate for all, a module of width 256 changes four times as much as one of 64.
    """
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in fusion.named_parameters():
        matrix = parameter.ndim > 1 and not name.endswith("A_log")
        inputs = parameter[0].numel() if matrix else 1
        groups.setdefault(rate * min(1.0, _INPUTS / inputs), []).append(parameter)
    return [{"params": group, "lr": each} for each, group in groups.items()]


def _stack_known(
    previous: dict[tuple[int, int], Tensor], batch: Sequence[tuple[int, int]]
) -> Tensor | None:
    """Previous states of the pairs, None until all of them have one."""
    if any(pair not in previous for pair in batch):
        return None
    return torch.stack([previous[pair] for pair in batch])


def turn(step: int, count: int, batch: int) -> list[int]:
    """Indices of the images of a step (from 1): all, or the next `batch` in turn."""
    size = min(batch, count)
    return [((step - 1) * size + i) % count for i in range(size)]


def new_fusion(parts: Parts, descriptions: Tensor, config: MambaConfig, seed: int) -> StyleFusion:
    """A new module; its weights depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StyleFusion(parts.codec.channels, descriptions.shape[-1], config.fusion)


def update(
    fusion: StyleFusion, optimizer: torch.optim.Optimizer, loss: Tensor, clip: float, step: int
) -> None:
    """One optimizer step.

    Raises:
        UserError: the loss is not finite.
    """
    if not torch.isfinite(loss):
        raise UserError(f"the loss of step {step} is {loss.item()}: lower the learning rate")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(fusion.parameters(), clip)
    optimizer.step()


def as_row(terms: dict[str, Tensor], total: Tensor) -> dict[str, float]:
    """Losses as numbers, so that logs do not keep graphs alive."""
    return {name: float(value) for name, value in terms.items()} | {"total": float(total.detach())}


def centre_square(image: Tensor, size: int) -> Tensor:
    """Centre crop of an image [c, H, W], resized to [c, size, size]; masks stay in {0, 1}."""
    side = min(image.shape[-2:])
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    square = image[None, :, top : top + side, left : left + side]
    square = F.interpolate(square, (size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)
    return (square >= 0.5).float() if image.shape[0] == 1 else square


def stacked(images: Sequence[Tensor], size: int) -> Tensor:
    """Centre crops of images [c, H, W] of any size, [n, c, size, size]."""
    return torch.stack([centre_square(image, size) for image in images])
