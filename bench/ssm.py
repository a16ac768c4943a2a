"""The cost of the selective scan: against a loop, and as a layer against plain attention.

    python bench/ssm.py                          # all lengths; minutes
    python bench/ssm.py --widths 64 --rounds 9
    python bench/ssm.py --threads 1 --processor-time   # on a busy machine

Scans: the associative scan against the loop over the tokens, both on the same tensors, alone and
with gradients, at the channels of a fusion module of each width (E = 2 D, N = 16); how its time
grows with L. Layers: StyleMamba's mixer with one and with four directions against attention with
its projections (`F.scaled_dot_product_attention`, heads of 64), forward and backward, from 1,024
to 16,384 tokens, and where they cross. The result goes to bench/results/ssm.json, a plot to
ssm.png next to it.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _shared import add_result_argument, median_ratio, paired_seconds, provenance, quartiles
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from pseudo_labels.stylemamba.config import FusionConfig
from pseudo_labels.stylemamba.modules.fusion import Mixer
from pseudo_labels.stylemamba.modules.ssm import selective_scan
from regionroute.data.images import from_pil, write_image
from regionroute.files import write_json

SCAN_LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
LONGEST_LOOP = 4096  # longer loops would dominate the run time
LAYER_LENGTHS = (1024, 2048, 4096, 8192, 16384)
LOOP, SCAN = "loop", "associative"
ATTENTION, ONE, FOUR = "attention", "mixer, 1 direction", "mixer, 4 directions"
COLOURS = {ATTENTION: "#d62728", ONE: "#1f77b4", FOUR: "#2ca02c", LOOP: "#7f7f7f", SCAN: "#1f77b4"}
STATES = 16
Timed = Callable[[Any, str], dict[str, Any]]


class Attention(nn.Module):
    """Plain self-attention with projections: what the mixer would replace."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.enter = nn.Linear(width, 3 * width)
        self.leave = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        query, key, value = self.enter(tokens).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (query, key, value)))
        out: Tensor = self.leave(mixed.transpose(1, 2).flatten(2))
        return out


def main() -> int:
    """Measure everything and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cuda = torch.cuda.is_available()
    parser.add_argument(
        "--widths", nargs="+", type=int, default=[64, 256], help="widths D (default: 64 256)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default: 5)")
    parser.add_argument(
        "--longest", type=int, default=16384, help="largest number of tokens (default: 16384)"
    )
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    add_result_argument(parser, "ssm", "cuda" if cuda else "cpu")
    parser.add_argument(
        "--processor-time", action="store_true", help="measure CPU time instead of wall time"
    )
    args = parser.parse_args()
    if args.processor_time and (cuda or args.threads != 1):
        parser.error("--processor-time sums over threads: it needs --threads 1 and no GPU")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if cuda else "cpu")
    clock = time.process_time if args.processor_time else time.perf_counter
    timed = partial(_timed, rounds=args.rounds, clock=clock)
    result = provenance(("torch",)) | {"scans": {}, "layers": {}}
    for width in args.widths:
        lengths = [n for n in SCAN_LENGTHS if n <= args.longest]
        result["scans"][str(width)] = scans(width, lengths, timed, device)
        lengths = [n for n in LAYER_LENGTHS if n <= args.longest]
        result["layers"][str(width)] = layers(width, lengths, timed, device)
    write_json(args.result, result)
    plot(args.result.with_suffix(".png"), result)
    print(f"{args.result} written")
    return 0


def scans(width: int, lengths: list[int], timed: Timed, device: torch.device) -> dict[str, Any]:
    """Loop and associative scan at each length: seconds, ratio, and growth per doubling."""
    table: dict[str, Any] = {}
    for length in lengths:
        tensors = _scan_inputs(2 * width, length, device)
        row: dict[str, Any] = {}
        for what, grads in (("forward", False), ("forward and backward", True)):
            methods = (LOOP, SCAN) if length <= LONGEST_LOOP else (SCAN,)
            runs = {name: partial(_scan, tensors, name, grads) for name in methods}
            row[what] = timed(runs, LOOP)
        table[str(length)] = row
        if length <= LONGEST_LOOP:
            alone, both = (1 / row[what][SCAN][f"over {LOOP}"] for what in row)
            print(f"D {width}, L {length}: {alone:.1f} x faster, with gradients {both:.1f} x")
    seconds = {n: table[str(n)]["forward and backward"][SCAN]["seconds"][1] for n in lengths}
    # 1 is linear; L log L would be a little more, L² is 2.
    table["growth exponent"] = {
        f"{a} to {b}": math.log2(seconds[b] / seconds[a]) for a, b in pairwise(lengths)
    }
    return table


def layers(width: int, lengths: list[int], timed: Timed, device: torch.device) -> dict[str, Any]:
    """Mixers and attention at each length, forward and backward, and where they cross."""
    torch.manual_seed(0)
    modules: dict[str, Callable[[Tensor, int], Tensor]] = {}
    attention = Attention(width).to(device)
    modules[ATTENTION] = lambda tokens, side: attention(tokens)
    code = torch.zeros(1, width, device=device)
    for name, directions in ((ONE, 1), (FOUR, 4)):
        config = FusionConfig(width=width, directions=directions)
        modules[name] = partial(_mix, Mixer(config).to(device), code)
    table: dict[str, Any] = {}
    for length in lengths:
        tokens = torch.randn(1, length, width, device=device)
        runs = {name: partial(_layer, run, tokens) for name, run in modules.items()}
        table[str(length)] = timed(runs, ATTENTION)
        shown = {n: f"{1e3 * row['seconds'][1]:.0f} ms" for n, row in table[str(length)].items()}
        print(f"D {width}, L {length}: {shown}")
    table["crossing"] = {
        name: _crossing([(n, table[str(n)][name][f"over {ATTENTION}"]) for n in lengths])
        for name in (ONE, FOUR)
    }
    return table


def _scan_inputs(channels: int, length: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, length, channels), (1, length, STATES), (1, length, STATES), (channels,)]
    x, B, C, D = (torch.randn(shape, generator=generator) for shape in shapes)
    delta = torch.rand((1, length, channels), generator=generator) * 0.1
    A = -torch.arange(1, STATES + 1.0).repeat(channels, 1)
    return [tensor.to(device) for tensor in (x, delta, A, B, C, D)]


def _scan(tensors: list[Tensor], method: Any, grads: bool) -> None:
    if not grads:
        with torch.no_grad():
            selective_scan(*tensors, method=method)
        return
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    selective_scan(*leaves, method=method).sum().backward()


def _mix(mixer: Mixer, code: Tensor, tokens: Tensor, side: int) -> Tensor:
    return mixer(tokens, code, (side, tokens.shape[1] // side))


def _layer(run: Callable[[Tensor, int], Tensor], tokens: Tensor) -> None:
    leaf = tokens.detach().requires_grad_()
    run(leaf, 2 ** (int(math.log2(tokens.shape[1])) // 2)).sum().backward()


def _timed(
    runs: dict[str, Callable[[], object]], rival: str, rounds: int, clock: Callable[[], float]
) -> dict[str, Any]:
    seconds = paired_seconds(runs, rounds, clock)
    return {
        name: {
            "seconds": quartiles(seconds[name]),
            "fastest": min(seconds[name]),
            **({f"over {rival}": median_ratio(seconds, name, rival)} if rival in runs else {}),
        }
        for name in runs
    }


def _crossing(ratios: list[tuple[int, float]]) -> int | None:
    """Number of tokens at which a ratio to attention crosses 1 (log-log); None if it never does.

    0 if it is below 1 from the shortest length on.
    """
    if ratios[0][1] < 1:
        return 0
    for (short, above), (long, below) in pairwise(ratios):
        if above >= 1 > below:
            share = math.log(above) / (math.log(above) - math.log(below))
            return round(short * (long / short) ** share)
    return None


def plot(path: Path, result: dict[str, Any]) -> None:
    """Plot time against length, log-log: one panel per width for scans and layers."""
    panels = []
    for width, table in result["scans"].items():
        curves = {
            name: {int(n): row["forward and backward"][name]["seconds"][1]
                   for n, row in table.items()
                   if n.isdigit() and name in row["forward and backward"]}
            for name in (LOOP, SCAN)
        }  # fmt: skip
        panels.append((f"scan, E = {2 * int(width)}: forward and backward", curves))
    for width, table in result["layers"].items():
        curves = {
            name: {int(n): row[name]["seconds"][1] for n, row in table.items() if n.isdigit()}
            for name in (ATTENTION, ONE, FOUR)
        }
        panels.append((f"layer, D = {width}: forward and backward", curves))
    side, columns = 460, len(result["scans"])
    sheet = Image.new("RGB", (columns * side, -(-len(panels) // columns) * side), "white")
    for number, (title, curves) in enumerate(panels):
        panel = _panel(title, curves, side)
        sheet.paste(panel, (number % columns * side, number // columns * side))
    write_image(path, from_pil(sheet))


def _panel(title: str, curves: dict[str, dict[int, float]], side: int) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    left, top, right, bottom = 64, 34, side - 20, side - 44
    every = [(n, s) for curve in curves.values() for n, s in curve.items()]
    lengths = sorted({n for n, _ in every})
    decades = range(
        math.floor(math.log10(min(s for _, s in every))),
        math.ceil(math.log10(max(s for _, s in every))) + 1,
    )

    def place(length: int, seconds: float) -> tuple[float, float]:
        across = math.log(length / lengths[0]) / max(math.log(lengths[-1] / lengths[0]), 1e-9)
        up = (math.log10(seconds) - decades[0]) / (decades[-1] - decades[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    draw.text((left, 8), title, "black", font)
    for length in lengths:
        x, _ = place(length, 10 ** decades[0])
        draw.line((x, top, x, bottom), "#dddddd")
        draw.text((x, bottom + 4), f"{length}", "black", ImageFont.load_default(10), anchor="ma")
    for power in decades:
        _, y = place(lengths[0], 10.0**power)
        draw.line((left, y, right, y), "#dddddd")
        draw.text((left - 4, y), f"{10.0**power:g} s", "black", font, anchor="rm")
    draw.text(((left + right) / 2, bottom + 22), "tokens L", "black", font, anchor="ma")
    for number, (name, curve) in enumerate(curves.items()):
        points = [place(n, s) for n, s in sorted(curve.items())]
        draw.line(points, COLOURS[name], 2)
        for x, y in points:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), COLOURS[name])
        draw.text((left + 8, top + 4 + 16 * number), name, COLOURS[name], font)
    return image


if __name__ == "__main__":
    raise SystemExit(main())
