"""Flow-matching pre-training of nano's transformer and text encoders."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from tqdm import tqdm

from regionroute.errors import UserError, nearest
from regionroute.flow import add_noise, draw_sigmas, predict_velocity, sample, velocity_target
from regionroute.io import atomic_write
from regionroute.latents import decode_latents, encode_images
from train.nano_config import BaseTrainingConfig
from train.nano_corpus import Corpus, to_model_range
from train.nano_model import NanoModel

CHECKPOINT = "checkpoint.pt"


@dataclass
class TokenBank:
    """Token ids of every distinct prompt: [P,T] each."""

    clip: Tensor
    t5: Tensor


def learning_rate(step: int, cfg: BaseTrainingConfig) -> float:
    """Linear warm-up, constant, then a linear fall to 1 % over the last `decay` of the steps."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup))
    left = (cfg.steps - step) / (cfg.steps * cfg.decay)
    return cfg.lr * warm * min(1.0, max(0.01, left))


@torch.no_grad()
def encode_corpus(codec: torch.nn.Module, corpus: Corpus) -> Tensor:
    """Latents [P,C,h,w] float16 of every picture."""
    parts = corpus.pictures.split(256)
    bar = tqdm(parts, desc="encoding", unit="batch")
    return torch.cat([encode_images(codec, (to_model_range(p) + 1) / 2).half() for p in bar])


def start_or_resume(
    cfg: BaseTrainingConfig, model: NanoModel, output: Path
) -> tuple[torch.optim.Optimizer, int]:
    """The optimizer and the step to start from; model and optimizer as the checkpoint has them.

    Raises:
        UserError: the checkpoint is damaged or of a model of other sizes.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay
    )
    path = output / CHECKPOINT
    if not path.exists():
        return optimizer, 0
    # torch.load and load_state_dict raise nearly any class on what is not theirs.
    try:
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return optimizer, int(state["step"])
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{path}: this checkpoint is damaged or of other sizes or words than this run's "
            f"({reason}): set them back, choose another output, or remove the file"
        ) from error


def check_tasks(tasks: dict[str, float], corpus: Corpus) -> None:
    """Refuses tasks that the corpus does not hold.

    Raises:
        UserError: naming the nearest task there is, or because no task has a share.
    """
    for name in tasks:
        if name not in corpus.tasks:
            close = nearest(name, corpus.tasks)
            raise UserError(
                f"base.tasks: the corpus has no task {name!r}, the nearest is {close!r}"
            )
    if not sum(tasks.values()) > 0:
        raise UserError("base.tasks: give at least one task a share above 0")


def train_base(
    cfg: BaseTrainingConfig,
    model: NanoModel,
    codec: torch.nn.Module,
    corpus: Corpus,
    output: Path,
    seed: int,
    optimizer: torch.optim.Optimizer,
    start: int,
) -> None:
    """Train in place; checkpoints under `output/checkpoint.pt`, log rows in `output/log.jsonl`.

    Each step's batch and noise depend on (seed, step) alone, so an interrupted run gives the same
    model as an undisturbed one.

    Args:
        cfg: steps, rates, tasks.
        model: see `start_or_resume`.
        codec: encodes the pictures.
        corpus: see `load_corpus`.
        output: folder of the run.
        seed: of batches and noise.
        optimizer: of the model, see `start_or_resume`.
        start: steps done already.

    Raises:
        UserError: the loss is not finite.
    """
    latents = encode_corpus(codec, corpus)
    bank = TokenBank(*model.tokenize(corpus.prompts))
    average, clock = math.nan, time.perf_counter()
    with tqdm(
        range(start, cfg.steps), initial=start, total=cfg.steps, desc="base", unit="step"
    ) as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, cfg)
            loss = _loss(cfg, model, corpus, latents, bank, seed, step)
            if not torch.isfinite(loss):
                raise UserError(
                    f"the loss of step {step} is {loss.item()}: lower base.lr and resume"
                )
            _update(loss, model, optimizer, cfg.clip)
            value = loss.item()
            average = value if math.isnan(average) else 0.99 * average + 0.01 * value
            if (step + 1) % cfg.log_every == 0:
                bar.set_postfix(loss=f"{average:.4f}", refresh=False)
                seconds, clock = time.perf_counter() - clock, time.perf_counter()
                _log(
                    output,
                    {
                        "step": step + 1,
                        "loss": average,
                        "seconds_per_step": seconds / cfg.log_every,
                    },
                )
            if (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps:
                _save(output / CHECKPOINT, model, optimizer, step + 1)
            if (step + 1) % cfg.validate_every == 0 or step + 1 == cfg.steps:
                scores = validate(model, codec, corpus, latents, bank)
                _log(output, {"step": step + 1, "validation": scores})
                bar.write(
                    f"step {step + 1}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items())
                )


def _update(loss: Tensor, model: NanoModel, optimizer: torch.optim.Optimizer, clip: float) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _loss(
    cfg: BaseTrainingConfig,
    model: NanoModel,
    corpus: Corpus,
    latents: Tensor,
    bank: TokenBank,
    seed: int,
    step: int,
) -> Tensor:
    """Flow-matching loss of the batch that (seed, step) names; a scalar in fp32."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    names = [name for name in cfg.tasks if name in corpus.tasks]
    shares = torch.tensor([cfg.tasks[name] for name in names])
    drawn = torch.multinomial(shares, cfg.batch, replacement=True, generator=generator)
    rows = torch.stack(
        [
            corpus.tasks[names[t]][
                torch.randint(len(corpus.tasks[names[t]]), (), generator=generator)
            ]
            for t in drawn.tolist()
        ]
    )
    context, target = latents[corpus.context[rows]].float(), latents[corpus.target[rows]].float()
    noise = torch.randn(target.shape, generator=generator)
    sigma = draw_sigmas(cfg.batch, "logit_normal", cfg.timestep_mean, cfg.timestep_std, generator)
    prompts = corpus.prompt[rows]
    with torch.autocast("cpu", torch.bfloat16, enabled=cfg.bfloat16):
        states, pooled = model.encode_text(bank.clip[prompts], bank.t5[prompts])
        velocity = predict_velocity(
            model.transformer,
            add_noise(target, noise, sigma),
            context,
            states.float(),
            pooled.float(),
            sigma,
            1.0,
        )
    return F.mse_loss(velocity.float(), velocity_target(target, noise))


@torch.no_grad()
def validate(
    model: NanoModel,
    codec: torch.nn.Module,
    corpus: Corpus,
    latents: Tensor,
    bank: TokenBank,
    rows_per_task: int = 64,
    steps: int = 4,
) -> dict[str, float]:
    """Mean squared error in [-1,1] of held-out edits and of no edit at all, a task at a time."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scores: dict[str, float] = {}
    for task, all_rows in corpus.held_out.items():
        order = torch.randperm(len(all_rows), generator=torch.Generator().manual_seed(0))
        rows = all_rows[order[:rows_per_task]]
        states, pooled = model.encode_text(
            bank.clip[corpus.prompt[rows]], bank.t5[corpus.prompt[rows]]
        )
        edited = sample(
            model.transformer,
            scheduler,
            latents[corpus.context[rows]].float(),
            states,
            pooled,
            steps=steps,
            guidance=1.0,
            generator=torch.Generator().manual_seed(0),
        )
        picture = decode_latents(codec, edited) * 2 - 1
        target = to_model_range(corpus.pictures[corpus.target[rows]])
        context = to_model_range(corpus.pictures[corpus.context[rows]])
        scores[task] = F.mse_loss(picture, target).item()
        scores[f"{task}_unedited"] = F.mse_loss(context, target).item()
    return scores


def _save(path: Path, model: NanoModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def _log(output: Path, row: dict[str, object]) -> None:
    with (output / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
