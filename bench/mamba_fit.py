"""Does StyleMamba fit in fewer steps, and does its second-order term help? Three seeds.

    python bench/mamba_fit.py --assets ASSETS             # about fifteen minutes on one core
    python bench/mamba_fit.py --assets ASSETS --seeds 0 --steps 10 --rival-steps 20

The paper claims five times fewer iterations than CLIPstyler. Neither its losses nor SigLIP weights
are available here, so the question is asked with Gram statistics of a real VGG16 as the encoder,
the style direction from a photo to a style image, and our reconstruction of the losses. Arms, on
the same photos and styles, each seed with its own weights and masks:

    full              all losses
    no second order   the same without the second-order term
    CLIPstyler        its convolutional network on pixels with its losses, at its learning rate

All are evaluated alike, by the first-order losses (directional and masked) on held-out masks and by
SSIM, at the same steps. ASSETS holds weights/lpips/vgg16_features.safetensors, photos/ and
style_images/. Finished runs in --out are kept. The result goes to bench/results/mamba_fit.json,
curves and images go next to it.
"""

import argparse
import itertools
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _clipstyler import Pixels, StyleNet
from _mamba_curves import plot_curves
from _shared import add_result_argument, provenance
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor

from pseudo_labels.stylemamba.codecs import patch_codec
from pseudo_labels.stylemamba.config import ImageStyleConfig
from pseudo_labels.stylemamba.encoders import GramEncoder, StyleTarget
from pseudo_labels.stylemamba.encoders import describe as described
from pseudo_labels.stylemamba.fitting import new_fusion, update
from pseudo_labels.stylemamba.losses import directional_loss, hide, random_patches
from pseudo_labels.stylemamba.measures import ssim
from pseudo_labels.stylemamba.networks import read_images
from pseudo_labels.stylemamba.objective import ContentBatch, Objective, Parts
from regionroute.data.images import from_pil, to_pil, write_image
from regionroute.data.stats import describe
from regionroute.files import read_json, write_json
from regionroute.models.vgg import load_vgg

PHOTOS = ("dog_00.jpg", "robot_toy_00.jpg")
STYLES = ("Monet.jpg", "Cubism.jpg")
FULL, FIRST, RIVAL = "full", "no second order", "CLIPstyler"
ARMS = (FULL, FIRST, RIVAL)
VARIABLE = "REGIONROUTE_ASSETS"
RIVAL_RATE = 5e-4  # CLIPstyler's learning rate, halved every 100 steps
COLOURS = {FULL: "#2ca02c", FIRST: "#1f77b4", RIVAL: "#d62728"}


@dataclass
class FitTask:
    """A photo and a style, with everything that the arms share."""

    name: str
    parts: Parts
    target: StyleTarget
    photo: Tensor
    source: ContentBatch
    direction: Tensor
    held_out: Tensor  # masks that no arm trains on
    hidden: list[Tensor]  # embeddings of the photo under each of them
    softening: float

    @torch.no_grad()
    def judge(self, styled: Tensor) -> dict[str, float]:
        """First-order losses on held-out masks, and SSIM to the photo."""
        embed = self.parts.encoder.embed
        fill = self.source.pictures.mean((2, 3), keepdim=True)
        pairs = [(self.source.embeddings, embed(styled))]
        for mask, before in zip(self.held_out, self.hidden, strict=True):
            pairs.append((before, embed(hide(styled, mask, fill))))
        whole, *masked = (
            float(directional_loss(*pair, self.direction, self.softening)) for pair in pairs
        )
        return {
            "loss": (whole + float(np.mean(masked))) / 2,
            "ssim": float(ssim(self.photo, styled).mean()),
        }


def main() -> int:
    """Run or reuse every fit and write the comparison."""
    args = _parser().parse_args()
    if args.assets is None:
        print(f"skipped: give --assets or set {VARIABLE}: the folder of photos and VGG16 weights")
        return 0
    torch.set_num_threads(1)
    vgg = load_vgg(args.assets / "weights/lpips/vgg16_features.safetensors")
    runs: dict[str, dict[str, Any]] = {}
    for photo, style in _tasks(args):
        task = _task(args, vgg, photo, style)
        for arm, seed in itertools.product(ARMS, args.seeds):
            key = f"{task.name}, {arm}, seed {seed}"
            steps = args.rival_steps if arm == RIVAL else args.steps
            stem = f"{Path(photo).stem}-{arm.replace(' ', '-')}-{seed}-{args.size}-{steps}"
            file = args.out / f"{stem}.json"
            if not file.exists():
                styled, curve = (_rival if arm == RIVAL else _ours)(task, arm, seed, steps, args)
                write_image(args.out / f"{stem}.png", styled[0])
                write_json(file, curve)
            runs[key] = read_json(file)
            runs[key]["picture"] = str(args.out / f"{stem}.png")
            last = max(map(int, runs[key]["loss"]))
            print(f"{key}: loss {runs[key]['loss'][str(last)]:.3f} at {last}", flush=True)
    result = provenance(("torch",)) | _compared(runs, args)
    result["curves"] = {k: {n: v for n, v in r.items() if n != "picture"} for k, r in runs.items()}
    write_json(args.result, result)
    plot_curves(args.result.with_suffix(".png"), result, COLOURS)
    _sheet(args, runs)
    print(f"{args.result} written")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    given = os.environ.get(VARIABLE)
    folder = Path(given) if given else None
    parser.add_argument(
        "--assets",
        type=Path,
        default=folder,
        help=f"folder of weights and photos (default: ${VARIABLE})",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40, help="steps of our fits (default: 40)")
    parser.add_argument(
        "--rival-steps", type=int, default=200, help="steps of CLIPstyler's fits (default: 200)"
    )
    parser.add_argument(
        "--tasks", type=int, default=len(PHOTOS), help="photo and style pairs (default: all)"
    )
    parser.add_argument("--size", type=int, default=96, help="side of the photos (default: 96)")
    parser.add_argument(
        "--width", type=int, default=64, help="width of the fusion module (default: 64)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out/mamba_fit"), help="folder of finished runs"
    )
    add_result_argument(parser, "mamba_fit")
    return parser


def _tasks(args: argparse.Namespace) -> list[tuple[str, str]]:
    return list(zip(PHOTOS, STYLES, strict=True))[: args.tasks]


def _task(args: argparse.Namespace, vgg: Any, photo: str, style: str) -> FitTask:
    picture = read_images([args.assets / "photos" / photo], args.size)
    parts = Parts(patch_codec(picture), GramEncoder(vgg, "VGG16", args.size), vgg)
    config = ImageStyleConfig()
    source = Objective(parts, config.loss).source(picture)
    target = parts.encoder.target(str(args.assets / "style_images" / style))
    masks = random_patches(14, 0.5, 2, (args.size, args.size), Generator().manual_seed(99))
    fill = source.pictures.mean((2, 3), keepdim=True)
    with torch.no_grad():
        hidden = [parts.encoder.embed(hide(source.pictures, mask, fill)) for mask in masks]
    name = f"{Path(photo).stem} in {Path(style).stem}"
    direction = target.direction(source.embeddings)
    return FitTask(
        name, parts, target, picture, source, direction, masks, hidden, config.loss.softening
    )


def _ours(
    task: FitTask, arm: str, seed: int, steps: int, args: argparse.Namespace
) -> tuple[Tensor, dict[str, Any]]:
    """A fit as in `fit`, evaluated after every step."""
    config = ImageStyleConfig(fusion={"width": args.width}, loss={"masks": 2}, fit={"seed": seed})
    if arm == FIRST:
        config = config.model_copy(
            update={"loss": config.loss.model_copy(update={"second_order": 0.0})}
        )
    told = described(task.parts.encoder, task.target, task.source.embeddings, "both")[None]
    fusion = new_fusion(task.parts, told, config, seed)
    optimizer = torch.optim.Adam(fusion.parameters(), lr=config.fit.learning_rate)
    objective, generator = Objective(task.parts, config.loss), Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def step(number: int) -> Tensor:
        result = objective(
            fusion(task.source.latents, told), task.source, task.direction, generator,
            previous=state.get("embeddings"),
        )  # fmt: skip
        update(fusion, optimizer, result.total, config.fit.clip, number)
        state["embeddings"] = result.embeddings
        with torch.no_grad():
            return task.parts.codec.decode(fusion(task.source.latents, told))

    return _curve(task, step, steps, range(1, steps + 1))


def _rival(
    task: FitTask, arm: str, seed: int, steps: int, args: argparse.Namespace
) -> tuple[Tensor, dict[str, Any]]:
    """CLIPstyler's fit: global and patch losses at its ratio, content loss, its learning rate."""
    base = ImageStyleConfig()
    changes = {"masked": 0.0, "second_order": 0.0, "patch_clip": 5.0, "crops": 2}
    loss = base.loss.model_copy(update=changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = StyleNet()
    optimizer = torch.optim.Adam(net.parameters(), lr=RIVAL_RATE)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 100, 0.5)
    # Its network works on pixels, without a codec.
    objective = Objective(Parts(Pixels(), task.parts.encoder, task.parts.vgg), loss)
    source = objective.source(task.photo)
    generator = Generator().manual_seed(seed)

    def step(number: int) -> Tensor:
        result = objective(net(task.photo), source, task.direction, generator)
        optimizer.zero_grad(set_to_none=True)
        result.total.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            return net(task.photo)

    return _curve(task, step, steps, {args.steps, steps, *range(5, steps, 5)})


def _curve(
    task: FitTask, step: Callable[[int], Tensor], steps: int, judged: Collection[int]
) -> tuple[Tensor, dict[str, Any]]:
    """Run the steps; return evaluations by the number of steps done."""
    curve: dict[str, Any] = {"loss": {}, "ssim": {}}
    styled = task.photo
    for number in range(1, steps + 1):
        styled = step(number)
        if number in judged:
            for name, value in task.judge(styled).items():
                curve[name][str(number)] = value
    return styled, curve


def _reached(curve: dict[str, float], level: float) -> int | None:
    """The first evaluated step at or below a loss; None if never."""
    return next((int(n) for n, value in curve.items() if value <= level), None)


def _compared(runs: dict[str, dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Final losses paired by photo and seed, and how many steps each arm needs for a level."""
    tasks = list(dict.fromkeys(key.split(", ")[0] for key in runs))
    pairs = [f"{task}, {{}}, seed {seed}" for task in tasks for seed in args.seeds]
    last = str(args.steps)
    summary: dict[str, Any] = {"settings": {"size": args.size, "width": args.width}}
    for name in ("loss", "ssim"):
        values = {
            arm: np.array([runs[pair.format(arm)][name][last] for pair in pairs]) for arm in ARMS
        }
        summary[f"{name} at {last} steps"] = {arm: _estimate(v) for arm, v in values.items()}
        for arm in (FIRST, RIVAL):
            summary[f"{name} at {last} steps"][f"{FULL} minus {arm}"] = _estimate(
                values[FULL] - values[arm]
            )
    final = {
        arm: np.array([min(runs[p.format(arm)]["loss"].values()) for p in pairs]) for arm in ARMS
    }
    summary["lowest loss"] = {arm: _estimate(v) for arm, v in final.items()}
    summary["steps to a level"] = [_steps_to(runs, pairs, arm) for arm in (FIRST, RIVAL)]
    return summary


def _steps_to(runs: dict[str, dict[str, Any]], pairs: list[str], rival: str) -> dict[str, Any]:
    """Steps of ours and of a rival to the highest loss level that both runs of a pair reach."""
    rows = []
    for pair in pairs:
        ours, theirs = (runs[pair.format(arm)]["loss"] for arm in (FULL, rival))
        level = max(min(ours.values()), min(theirs.values()))
        rows.append((_reached(ours, level), _reached(theirs, level)))
    ratios = np.array([b / a for a, b in rows if a and b])
    return {
        "rival": rival,
        "steps (ours, rival's)": rows,
        "rival's over ours, geometric mean": float(np.exp(np.log(ratios).mean())),
        "log2 of it": _estimate(np.log2(ratios)),
    }


def _estimate(values: np.ndarray) -> dict[str, Any]:
    found = describe(values)
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


def _sheet(args: argparse.Namespace, runs: dict[str, dict[str, Any]]) -> None:
    """Photo, style and the first seed's result of every arm, one row per task."""
    side = 192
    titles = ("photo", "style", *ARMS)
    sheet = Image.new("RGB", (len(titles) * side, len(_tasks(args)) * side + 20), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, title in enumerate(titles):
        draw.text((column * side + 4, 2), title, "black", font)
    for row, (photo, style) in enumerate(_tasks(args)):
        task = f"{Path(photo).stem} in {Path(style).stem}"
        files = [args.assets / "photos" / photo, args.assets / "style_images" / style]
        files += [Path(runs[f"{task}, {arm}, seed {args.seeds[0]}"]["picture"]) for arm in ARMS]
        for column, file in enumerate(files):
            cell = to_pil(read_images([file], side)[0])
            sheet.paste(cell, (column * side, 20 + row * side))
    write_image(args.result.with_name(f"{args.result.stem}_pictures.png"), from_pil(sheet))


if __name__ == "__main__":
    raise SystemExit(main())
