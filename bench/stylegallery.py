"""What a step of StyleGallery's energy costs, beside the published implementation's scheme.

    python bench/stylegallery.py
    python bench/stylegallery.py --size 512 --widths 320 640 1280 1280 --rounds 2   # SD 1.5's size

The rival re-expresses the published scheme: at every step the whole network runs on the content
and on all references, keys and values are masked by multiplication, and every region's attention
is computed for all cells. Ours asks only the cells of a region for the keys of its match, ends
passes at the last layer it reads, and can keep what references give for further photos (warm).
With masking=multiply both compute the same loss, which is checked. The networks are random ones
of Stable Diffusion's shape: time and memory do not depend on what the weights say.
The result goes to bench/results/stylegallery.json.
"""

import argparse
import math
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

from pseudo_labels.stylegallery.attention import Recorded, self_attention_layers
from pseudo_labels.stylegallery.config import EnergyConfig
from pseudo_labels.stylegallery.energy import AttentionEnergy, ReferenceBank, shrink
from pseudo_labels.stylegallery.matching import Match
from pseudo_labels.stylegallery.random_model import TEXT_WIDTH, random_unet
from regionroute.io import write_json

RIVAL, TIMESTEP = "published scheme", 500


def main() -> int:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels")
    parser.add_argument("--widths", type=int, nargs=4, default=[80, 160, 320, 320])
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--regions", type=int, default=6, help="of each picture")
    parser.add_argument("--rounds", type=int, default=7)
    add_result_argument(parser, "stylegallery", "cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    runs, losses = prepare(args)
    print({name: round(value, 6) for name, value in losses.items()})
    same = abs(losses["ours, masking=multiply"] / losses[RIVAL] - 1)
    if same > 1e-3:
        raise SystemExit(f"the losses differ by {same:.2g}: the schemes are not the same")
    seconds = paired_seconds(runs, args.rounds)
    table = {}
    for name, run in runs.items():
        row: dict[str, Any] = {"seconds": quartiles(seconds[name]), "bytes": peak_bytes(run)}
        row["times faster"] = 1 / median_ratio(seconds, name, RIVAL)
        table[name] = row
        memory = "" if row["bytes"] is None else f", {row['bytes'] / 2**20:.0f} MB"
        print(f"{name:<26} {row['seconds'][1]:.3f} s, {row['times faster']:.2f} x{memory}")
    keys = ("size", "widths", "references", "regions", "rounds")
    settings = {key: getattr(args, key) for key in keys}
    result = {"settings": settings, "losses": losses, "relative difference": same, "steps": table}
    write_json(args.result, provenance(("torch", "diffusers")) | result)
    print(f"{args.result} written")
    return 0


def prepare(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, float]]:
    """One call a method, and the loss each computes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    unet = random_unet(tuple(args.widths), heads=8).to(device).eval().requires_grad_(False)
    text = torch.randn(1, 77, TEXT_WIDTH, device=device)
    side = args.size // 8
    latents = torch.randn(2 + args.references, 4, side, side, device=device)
    z, content, references = latents[:1], latents[1:2], latents[2:]
    labels = (torch.arange(side) * args.regions // side + 1)[:, None].expand(side, side)
    matches = [
        Match(c, (c - 1) % args.references, args.regions - c + 1, 0, 0, 0, 0)
        for c in range(1, args.regions + 1)
    ]
    regions = (matches, labels, [labels.T.contiguous()] * args.references)
    multiply, exclude = EnergyConfig(masking="multiply"), EnergyConfig()

    def ours(config: EnergyConfig, bank: ReferenceBank | None = None) -> AttentionEnergy:
        names = list(range(args.references))
        return AttentionEnergy(
            unet, text, content, references, regions, config, bank=bank, names=names
        )

    bank = ReferenceBank(2**34)
    runs = {
        RIVAL: partial(published, unet, text, (z, content, references), regions, multiply),
        "ours, masking=multiply": partial(step, ours(multiply), z),
        "ours": partial(step, ours(exclude), z),
        "ours, warm": partial(step, ours(exclude, bank), z),
    }
    return runs, {name: float(run()) for name, run in runs.items()}


def step(energy: AttentionEnergy, latents: Tensor) -> Tensor:
    """One evaluation of our energy and its gradient."""
    z = latents.clone().requires_grad_()
    loss = energy.value(z, TIMESTEP, energy.anchors(TIMESTEP)).total
    loss.backward()
    return loss.detach()


def published(
    unet: Any, text: Tensor, latents: tuple[Tensor, Tensor, Tensor], regions: Any, config: Any
) -> Tensor:
    """The same of the published scheme.

    Zeroed queries, whose difference it does not mask, add a constant to its loss that has no
    gradient; it is left out.
    """
    z, content, references = latents
    matches, labels, reference_labels = regions
    with torch.no_grad():
        kept = whole_pass(unet, torch.cat([content, references]), text, config.layers)
    z = z.clone().requires_grad_()
    made = whole_pass(unet, z, text, config.layers)
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


def whole_pass(unet: Any, latents: Tensor, text: Tensor, count: int) -> Recorded:
    """The network to its end, what its last self-attention layers compute written down by hooks."""
    record, hooks = Recorded(), []
    for layer in self_attention_layers(unet)[-count:]:
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
        unet(latents, TIMESTEP, encoder_hidden_states=text.expand(len(latents), -1, -1))
    finally:
        for hook in hooks:
            hook.remove()
    return record


if __name__ == "__main__":
    raise SystemExit(main())
