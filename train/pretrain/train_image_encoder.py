"""Train the image encoder of an embedded base: a small network distilled from a large one.

    regionroute bank --labels PHOTOS/labels.jsonl --styles small_photos --out data/bank
    python train/pretrain/train_image_encoder.py teacher.weights=efficientnet_lite0.safetensors
    python train/pretrain/run.py --config configs/nano_photos_pretrain.yaml ...

It learns the feature maps that EfficientNet-Lite0 (trained on ImageNet) gives the bank's training
photos, and is validated on the bank's test photos. Pass the result,
`<output>/image_encoder.safetensors`, as codec.image_encoder; `<output>/seen.png` compares the
features of both networks. A stopped run resumes from its checkpoint when the same command is
started again.
"""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path

# Idle CPU threads sleep instead of spinning, see train/run.py. Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from regionroute.data.images import write_image
from regionroute.errors import UserError, command
from regionroute.models.image_encoder import Bottleneck, EightBitConv, VisionNet
from train.engine.single_process import CHECKPOINT, LOG_FILE, resume, run_training
from train.engine.states import save_states
from train.monitor.logs import append_row
from train.pretrain.corpus import to_model_range
from train.pretrain.image_encoder.config import ImageEncoderConfig
from train.pretrain.image_encoder.file import save_image_encoder
from train.pretrain.image_encoder.views import Views, draw, load_views

RESULT, SHEET = "image_encoder.safetensors", "seen.png"
SHOWN = 12  # photos on the sheet


class NormalisedConv(nn.Module):
    """A convolution without bias and a batch normalisation."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,H,W] to [B,out,H/stride,W/stride]."""
        normalised: Tensor = self.norm(self.conv(x))
        return normalised

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights [out,in,k,k] and bias [out] of one convolution that does the same."""
        assert self.norm.running_var is not None
        assert self.norm.running_mean is not None
        gain = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        weight = self.conv.weight * gain[:, None, None, None]
        return weight.detach(), (self.norm.bias - self.norm.running_mean * gain).detach()


@command
def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    prog = "train/pretrain/train_image_encoder.py"
    return run_training(prog, __doc__, ImageEncoderConfig, argv, train_and_save)


def train_and_save(cfg: ImageEncoderConfig, output: Path) -> None:
    """Trains an image encoder and saves it in the folder `output`."""
    training, held_out = load_views(cfg, output)
    network = new_network(cfg)
    average = copy.deepcopy(network).eval().requires_grad_(False)
    optimizer = _optimizer(network, cfg)
    start = resume(cfg, output, network=network, average=average, optimizer=optimizer)
    train(cfg, network, average, optimizer, training, held_out, start)
    frozen = freeze(average)
    save_image_encoder(frozen, output / RESULT)
    write_image(output / SHEET, sheet(frozen, held_out))
    scores = ", ".join(f"{k} {v:.3f}" for k, v in explained(frozen, held_out, training).items())
    print(f"image encoder saved in {output / RESULT} ({scores}); {output / SHEET} shows features")


def new_network(cfg: ImageEncoderConfig) -> VisionNet:
    """A network that has learned nothing yet; at first its blocks change nothing."""
    network = VisionNet(
        4 * cfg.network.semantic_channels, cfg.network.widths, cfg.network.depths, NormalisedConv
    )
    for module in network.modules():
        if isinstance(module, Bottleneck):
            _normalisation(module.project).weight.data.fill_(0)
    _normalisation(network.head).weight.data.fill_(0.1)
    return network.to(memory_format=torch.channels_last)


def _normalisation(layer: nn.Module) -> nn.BatchNorm2d:
    assert isinstance(layer, NormalisedConv)
    return layer.norm


def freeze(network: VisionNet) -> VisionNet:
    """The same network with one convolution of 8 bits for each normalised one."""
    frozen = VisionNet(**network.sizes)
    for name, layer in network.named_modules():
        if isinstance(layer, NormalisedConv):
            rounded = frozen.get_submodule(name)
            assert isinstance(rounded, EightBitConv)
            rounded.set(*layer.folded())
    return frozen.eval().requires_grad_(False)


def train(
    cfg: ImageEncoderConfig,
    network: VisionNet,
    average: VisionNet,
    optimizer: torch.optim.Optimizer,
    training: Views,
    held_out: Views,
    start: int,
) -> None:
    """Trains in place, with checkpoints and a log in the output folder.

    A step's squares depend on (seed, step) alone: an interrupted run gives the same network.

    Raises:
        UserError: the loss is not finite.
    """
    output = Path(cfg.output)
    log = output / LOG_FILE
    spread = (
        training.features[:: max(1, len(training.features) // 500)].float().var((0, 2, 3)).sum()
    )
    with tqdm(
        range(start, cfg.steps), initial=start, total=cfg.steps, desc="image encoder", unit="step"
    ) as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, cfg)
            generator = torch.Generator().manual_seed(cfg.seed * 1_000_003 + step)
            pictures, features, weights = draw(training, cfg.batch, cfg.views.mixed, generator)
            network.train()
            found = network(pictures.contiguous(memory_format=torch.channels_last))
            loss = ((found - features).square() * weights).sum() / (weights.sum() * spread)
            if not torch.isfinite(loss):
                raise UserError(f"the loss of step {step} is {loss.item()}: lower lr and resume")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), cfg.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _follow(average, network, min(cfg.average, (step + 1) / (step + 20)))
            done = step + 1
            if done % cfg.log_every == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                append_row(log, {"step": done, "loss": loss.item()})
            if done % cfg.save_every == 0 or done == cfg.steps:
                save_states(
                    output / CHECKPOINT, done, network=network, average=average, optimizer=optimizer
                )
            if done % cfg.validate_every == 0 or done == cfg.steps:
                scores = explained(average, held_out, training)
                append_row(log, {"step": done, **scores})
                bar.write(f"step {done}: " + ", ".join(f"{k} {v:.3f}" for k, v in scores.items()))


def learning_rate(step: int, cfg: ImageEncoderConfig) -> float:
    """Linear warm-up, then a cosine down to 1 %."""
    warm = min(1.0, (step + 1) / max(1, cfg.warmup))
    return cfg.lr * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / cfg.steps)))


@torch.no_grad()
def explained(network: VisionNet, held_out: Views, training: Views) -> dict[str, float]:
    """Fraction of the variance of the teacher's features that the network explains.

    Over all features and over their first quarter, which are the strongest directions; what is
    there to tell is the squared distance from the training pictures' mean.
    """
    wanted = held_out.features.float()
    mean = training.features[:: max(1, len(training.features) // 500)].float().mean((0, 2, 3))
    left = (seen(network, held_out) - wanted).square().mean((0, 2, 3))
    there = (wanted - mean[:, None, None]).square().mean((0, 2, 3))
    first = max(1, len(left) // 4)
    return {
        "explained": float(1 - left.sum() / there.sum()),
        "explained_first": float(1 - left[:first].sum() / there[:first].sum()),
    }


@torch.no_grad()
def seen(network: VisionNet, views: Views) -> Tensor:
    """The network's features of squares, [N,C,S/8,S/8]."""
    return torch.cat([network(to_model_range(part)) for part in views.pictures.split(32)])


def sheet(network: VisionNet, views: Views) -> Tensor:
    """Photos; three leading features as colours, the teacher's; the network's: [3,H,W] in [0,1]."""
    some = slice(None, None, max(1, len(views.pictures) // SHOWN))
    shown = Views(views.pictures[some][:SHOWN], views.features[some][:SHOWN])
    size = shown.pictures.shape[-2:]

    def colours(features: Tensor) -> Tensor:
        three = features[:, :3].float()
        low, high = three.amin((0, 2, 3), keepdim=True), three.amax((0, 2, 3), keepdim=True)
        return F.interpolate((three - low) / (high - low + 1e-6), size, mode="nearest")

    rows = shown.pictures.float() / 255, colours(shown.features), colours(seen(network, shown))
    return torch.cat([torch.cat(row.unbind(), -1) for row in rows], 1)


def _optimizer(network: VisionNet, cfg: ImageEncoderConfig) -> torch.optim.Optimizer:
    convolutions = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": convolutions, "weight_decay": cfg.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=cfg.lr, betas=(0.9, 0.99))


@torch.no_grad()
def _follow(average: VisionNet, network: VisionNet, decay: float) -> None:
    own, new = average.state_dict(), network.state_dict()
    for name, value in new.items():
        if value.is_floating_point():
            own[name].lerp_(value, 1 - decay)


if __name__ == "__main__":
    raise SystemExit(main())
