"""The cost of a step of StyleGallery's energy, against the published implementation's scheme.

    python bench/stylegallery.py
    python bench/stylegallery.py --size 512 --widths 320 640 1280 1280 --rounds 2   # SD 1.5's size

The rival reimplements the published scheme: at every step the full network runs on the content and
on all references, keys and values are masked by multiplication, and every region's attention is
computed for all cells. Ours computes only the cells of a region against the keys of its match,
stops at the last layer it reads, runs the references once for all steps at a timestep (--preset
pairs: two), and can cache their keys for further photos (warm). With masking=multiply both compute
the same loss, which is checked. The networks are random, of Stable Diffusion's shape: time and
memory do not depend on the weights. Also recorded: the operations of a step at Stable Diffusion
1.5's own size and 512 px, counted without computing, which other load does not affect.

Steps in pairs see half as many timesteps. The effect on the minimum is measured too: the energy at
ten timesteps after the same number of Adam steps either way, for --seeds random networks.
The result goes to bench/results/stylegallery.json.
"""

import argparse
import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from _shared import (
    add_result_argument,
    median_ratio,
    paired_seconds,
    peak_bytes,
    provenance,
    quartiles,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from pseudo_labels.stylegallery.config import EnergyConfig
from pseudo_labels.stylegallery.energy import AttentionEnergy, ReferenceBank, shrink
from pseudo_labels.stylegallery.matching import Match
from pseudo_labels.stylegallery.models.attention import Recorded, self_attention_layers
from pseudo_labels.stylegallery.models.base import chosen_layers
from pseudo_labels.stylegallery.models.random_sd import TEXT_WIDTH, random_unet
from pseudo_labels.stylegallery.models.stable_diffusion import StableDiffusion
from pseudo_labels.stylegallery.optimise import OptimState, energy_timesteps, minimise
from regionroute.data.stats import describe
from regionroute.files import write_json

RIVAL, SAME, OURS = "published scheme", "ours, masking=multiply", "ours"
PAIRS, WARM = "ours, steps in pairs", "ours, warm"
TIMESTEP = 500


def main() -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels")
    parser.add_argument("--widths", type=int, nargs=4, default=[80, 160, 320, 320])
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--regions", type=int, default=6, help="regions per image")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the comparison of schedules")
    parser.add_argument("--steps", type=int, default=150, help="Adam steps in that comparison")
    add_result_argument(parser, "stylegallery", "cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    runs, losses = prepare(args)
    print({name: round(value, 6) for name, value in losses.items()})
    same = abs(losses[SAME] / losses[RIVAL] - 1)
    if same > 1e-3:
        raise SystemExit(f"the losses differ by {same:.2g}: the schemes are not the same")
    seconds = paired_seconds(runs, args.rounds)
    seconds[PAIRS] = [value / 2 for value in seconds[PAIRS]]
    counted = operations(args)
    table = {}
    for name, run in runs.items():
        row: dict[str, Any] = {"seconds": quartiles(seconds[name]), "bytes": peak_bytes(run)}
        row["times faster"] = 1 / median_ratio(seconds, name, RIVAL)
        row["operations at full size"] = counted[name]
        row["times fewer operations"] = counted[RIVAL] / counted[name]
        table[name] = row
        memory = "" if row["bytes"] is None else f", {row['bytes'] / 2**20:.0f} MB"
        fewer = f"{row['times fewer operations']:.2f} x fewer operations at full size"
        print(f"{name:<26} {row['seconds'][1]:.3f} s, {row['times faster']:.2f} x{memory}; {fewer}")
    keys = ("size", "widths", "references", "regions", "rounds", "seeds", "steps")
    settings = {key: getattr(args, key) for key in keys}
    result = {"settings": settings, "losses": losses, "relative difference": same, "steps": table}
    result["schedules"] = schedules(args)
    write_json(args.result, provenance(("torch", "diffusers")) | result)
    print(f"{args.result} written")
    return 0


def prepare(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, float]]:
    """Name -> call, and the loss that each computes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        runs = methods(Problem.random(args, args.widths, args.size))
    return runs, {name: float(run()) for name, run in runs.items()}


@dataclass
class Problem:
    """A random network, and a content image whose regions are strips matched with others'."""

    model: StableDiffusion
    z: Tensor
    content: Tensor
    references: Tensor
    regions: tuple[list[Match], Tensor, list[Tensor]]

    @classmethod
    def random(cls, args: argparse.Namespace, widths: list[int], size: int) -> "Problem":
        """Draw from torch's global generator, on its default device."""
        unet = random_unet(tuple(widths), heads=8)
        side, count = size // 8, args.regions
        text, latents = (
            torch.randn(1, 77, TEXT_WIDTH),
            torch.randn(2 + args.references, 4, side, side),
        )
        rows = torch.arange(side, device="cpu") * count // side + 1
        labels = rows[:, None].expand(side, side)
        matches = [
            Match(c, (c - 1) % args.references, count - c + 1, 0, 0, 0, 0)
            for c in range(1, count + 1)
        ]
        regions = (matches, labels, [labels.T.contiguous()] * args.references)
        parts = (unet, torch.nn.Identity(), text, torch.ones(1000, device="cpu"))
        model = StableDiffusion(*parts, 1, "random", text.device, random=True)
        return cls(model, latents[:1], latents[1:2], latents[2:], regions)

    def energy(self, config: EnergyConfig, **options: Any) -> AttentionEnergy:
        """Our energy of this problem."""
        names = list(range(len(self.references)))
        pictures = (self.model, self.content, self.references)
        return AttentionEnergy(*pictures, self.regions, config, names=names, **options)


def methods(problem: Problem) -> dict[str, Any]:
    """Name -> call that returns its loss; that of `PAIRS` makes two steps."""
    multiply, exclude, z = EnergyConfig(masking="multiply"), EnergyConfig(), problem.z
    return {
        RIVAL: partial(published, problem, multiply),
        SAME: partial(steps, problem.energy(multiply), z),
        OURS: partial(steps, problem.energy(exclude), z),
        PAIRS: partial(steps, problem.energy(exclude), z, 2),
        WARM: partial(steps, problem.energy(exclude, bank=ReferenceBank(2**34)), z),
    }


def steps(energy: AttentionEnergy, latents: Tensor, count: int = 1) -> Tensor:
    """Evaluate our energy and its gradient at one timestep, `count` times."""
    anchors = energy.anchors(TIMESTEP)
    for _ in range(count):
        z = latents.clone().requires_grad_()
        loss = energy.value(z, TIMESTEP, anchors).total
        loss.backward()
    return loss.detach()


def operations(args: argparse.Namespace) -> dict[str, float]:
    """Floating-point operations of a step at full size, on tensors without contents."""
    with torch.device("meta"):
        problem = Problem.random(args, [320, 640, 1280, 1280], 512)
    runs = methods(problem)
    del runs[WARM]  # a bank needs real tensors
    everything, alone = problem.energy(EnergyConfig()), problem.energy(EnergyConfig(), styled=[])
    runs |= {"anchors": partial(everything.anchors, TIMESTEP)}
    runs |= {"content": partial(alone.anchors, TIMESTEP)}
    found = {}
    for name, run in runs.items():
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        found[name] = float(counter.get_total_flops())
    found[PAIRS] /= 2
    found[WARM] = found[OURS] - found.pop("anchors") + found.pop("content")
    return found


def schedules(args: argparse.Namespace) -> dict[str, Any]:
    """Compare one step at each timestep with two at each of half as many."""
    ways = {
        "single": EnergyConfig(steps=args.steps),
        "pairs": EnergyConfig(steps=args.steps // 2, iterations=2),
    }
    found: dict[str, list[float]] = {"start": [], "single": [], "pairs": []}
    for seed in tqdm(range(args.seeds), desc="schedules", unit="seed", leave=False):
        torch.manual_seed(seed)
        problem = Problem.random(args, [32, 64, 64, 64], 64)
        found["start"].append(mean_energy(problem, problem.z))
        for name, config in ways.items():
            timesteps = energy_timesteps(config, 1000, 1)
            state = minimise(
                problem.energy(config), OptimState(problem.z), timesteps, progress=False
            )
            found[name].append(mean_energy(problem, state.latents))
    print({name: round(sum(values) / len(values), 4) for name, values in found.items()})
    pairs = zip(found["pairs"], found["single"], strict=True)
    return found | {"pairs minus single": asdict(describe([a - b for a, b in pairs]))}


@torch.no_grad()
def mean_energy(problem: Problem, z: Tensor) -> float:
    """The energy of latents, mean over ten timesteps."""
    energy = problem.energy(EnergyConfig())
    timesteps = range(50, 1000, 100)
    return sum(float(energy.value(z, t, energy.anchors(t)).total) for t in timesteps) / 10


def published(problem: Problem, config: EnergyConfig) -> Tensor:
    """One step of the published scheme.

    Zeroed queries, whose difference it does not mask, add a constant to its loss that has no
    gradient; it is omitted.
    """
    matches, labels, reference_labels = problem.regions
    pictures = torch.cat([problem.content, problem.references])
    with torch.no_grad():
        kept = whole_pass(problem.model, pictures, config)
    z = problem.z.clone().requires_grad_()
    made = whole_pass(problem.model, z, config)
    total = torch.zeros((), device=z.device)
    for layer, (query, output) in enumerate(zip(made.queries, made.outputs, strict=True)):
        cells = query.shape[-2]
        for match in matches:
            row = match.reference + 1
            inside = shrink(labels, cells).eq(match.region).to(query)[:, None]
            region = shrink(reference_labels[match.reference], cells).eq(match.cluster)
            mask = region.to(query)[:, None]
            with torch.no_grad():
                target = F.scaled_dot_product_attention(
                    query * inside,
                    kept.keys[layer][row : row + 1] * mask,
                    kept.values[layer][row : row + 1] * mask,
                    scale=config.temperature / math.sqrt(query.shape[-1]),
                )
            total = total + (inside * (output - target)).abs().mean()
        total = total + config.content_weight * F.l1_loss(query, kept.queries[layer][:1])
    total.backward()
    return total.detach()


def whole_pass(model: StableDiffusion, latents: Tensor, config: EnergyConfig) -> Recorded:
    """Run the full network and record its last self-attention layers by hooks."""
    record, hooks = Recorded(), []
    layers = self_attention_layers(model.unet)
    for layer in (layers[number] for number in chosen_layers(config.layers, len(layers))):
        for name, place in (
            ("to_q", record.queries),
            ("to_k", record.keys),
            ("to_v", record.values),
        ):
            hooks.append(
                getattr(layer, name).register_forward_hook(
                    lambda module, given, out, place=place, heads=layer.heads: place.append(
                        out.unflatten(-1, (heads, -1)).transpose(1, 2)
                    )
                )
            )
        hooks.append(
            layer.to_out[0].register_forward_pre_hook(
                lambda module, given, heads=layer.heads: record.outputs.append(
                    given[0].unflatten(-1, (heads, -1)).transpose(1, 2)
                )
            )
        )
    try:
        model.predict(latents, TIMESTEP, latents)
    finally:
        for hook in hooks:
            hook.remove()
    return record


if __name__ == "__main__":
    raise SystemExit(main())
