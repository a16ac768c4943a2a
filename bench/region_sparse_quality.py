r"""How close region-sparse edits are to dense ones, and how close other schemes are.

    regionroute scenes --out data/scenes --train 4 --test 32
    regionroute label --labels PHOTOS/labels.jsonl --styles small_experts --styles-per-photo 1 \
        --size 160 --test-share 0.1 --out data/photo_pairs
    python bench/region_sparse_quality.py --scenes data/scenes --photos data/photo_pairs

Held-out pairs and three seeds, both embedded bases with their experts and stored routing. Each edit
is compared with the dense edit of the same seed: PSNR inside the object's mask, residual error
(error to the exact target relative to the unedited image), and whether every pixel outside of the
region is that of the source. Regions come from the maps, as in any edit.

Others, in our terms, with our gates and our locked background: RegionE (six full calls of 28 to
warm up and two to finish, shares of the steps where there are fewer; between them the tokens whose
estimated result is unlike the source, threshold by Otsu's method, over stored keys and values), and
token dropping (after the first call text and region alone, nothing stored).
Ratios of time are operations counted for FLUX.1-Kontext at 1,024 px with the share of tokens that
an edit computed here, against ``steps + 1`` dense calls. The grids are small (8 x 8 tokens), so the
ring around a region weighs more than at full size.
The result goes to bench/results/region_sparse_quality.json.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _photo_pairs import Case, held_out
from _shared import add_result_argument, provenance
from torch import Tensor
from tqdm import tqdm

from regionroute.config.choices import SparseQuality
from regionroute.data.region_scores import in_mask_ratio
from regionroute.data.stats import paired
from regionroute.diffusion.latents import pack
from regionroute.editing import sparse
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest, EditResult
from regionroute.editing.sparse import BranchCalls, Kind, region_of
from regionroute.files import read_json, write_json
from regionroute.pipeline import RegionRoutePipeline
from regionroute.routing.gates import keep_velocity

RUNS = {
    f"{base}, {steps}": (base, steps)
    for base, steps in (("nano", 8), ("nano", 28), ("nano-photos", 4), ("nano-photos", 8))
}
TEXT, IMAGE, WIDTH = 512, 4096, 3072  # FLUX.1-Kontext at 1,024 px
CAP = 99.0  # dB of equal images


class Counted(BranchCalls):
    """Calls that keep what they computed: (kind, share of the image's tokens)."""

    calls: list[tuple[Kind, float]] = []  # noqa: RUF012  (emptied before each edit)

    def predict(self, step: int, *given: Any, **how: Any) -> Tensor:
        """As of `BranchCalls`."""
        region = self.last if self.kinds[step] == "local" else self.region
        self.calls.append((self.kinds[step], float(region.open.float().mean())))
        return super().predict(step, *given, **how)


class RegionE(Counted):
    """RegionE's schedule, with the region that it finds itself."""

    def __init__(self, transformer: Any, gate: Tensor, steps: int, quality: Any) -> None:
        super().__init__(transformer, gate, steps, quality)
        self.warm, last = max(2, round(6 / 28 * steps)), max(1, round(2 / 28 * steps))
        between: list[Kind] = ["partial"] * (steps - self.warm - last)
        self.kinds = ["full"] * self.warm + between + ["full"] * last
        self.inside = self.region

    def predict(self, step: int, *given: Any, **how: Any) -> Tensor:
        """As of `BranchCalls`."""
        noisy, context, sigma = given[0], given[1], given[4]
        self.region = self.inside if step >= self.warm else self.region
        speed = super().predict(step, *given, **how)
        if self.kinds[step] == "partial":
            open_cells = self.region.open.repeat_interleave(2, 0).repeat_interleave(2, 1)
            return torch.where(open_cells, speed, keep_velocity(noisy, context, sigma).to(speed))
        if step == self.warm - 1:
            ended = noisy - sigma.view(-1, 1, 1, 1) * speed
            [alike] = torch.cosine_similarity(pack(ended), pack(context), dim=-1)
            edited = alike < otsu(alike)
            self.inside = region_of(edited.view(self.region.open.shape).float(), ring=0)
        return speed


class Dropping(Counted):
    """After the first call the region's tokens attend to each other alone."""

    def __init__(self, transformer: Any, gate: Tensor, steps: int, quality: Any) -> None:
        super().__init__(transformer, gate, steps, quality)
        self.last = self.region
        if not self.region.whole:
            self.kinds = ["full", *["local"] * (steps - 1)]


class Refreshed(Counted):
    """Text and the region's noisy tokens between full calls, of which two are late."""

    def __init__(self, transformer: Any, gate: Tensor, steps: int, quality: Any) -> None:
        super().__init__(transformer, gate, steps, quality)
        late = (0.64, 0.89) if steps >= 6 else (1 - 1 / steps,)
        full = {0, *(round(share * steps) for share in late)}
        if not self.region.whole:
            self.kinds = ["full" if step in full else "partial" for step in range(steps)]


METHODS: dict[str, tuple[type[BranchCalls], SparseQuality]] = {
    "region-sparse": (Counted, "balanced"),
    "region-sparse, fast": (Counted, "fast"),
    "region-sparse, high": (Counted, "high"),
    "full calls refresh": (Refreshed, "balanced"),
    "RegionE's schedule": (RegionE, "balanced"),
    "token dropping": (Dropping, "balanced"),
}


def otsu(values: Tensor) -> float:
    """The threshold that separates `values` [N] into two classes with the least variance within."""
    order = values.sort().values
    best, found = math.inf, float(order[-1])
    for count in range(1, len(order)):
        low, high = order[:count], order[count:]
        within = float(len(low) * low.var(correction=0) + len(high) * high.var(correction=0))
        if within < best:
            best, found = within, float(order[count])
    return found


def operations(kind: Kind, share: float) -> float:
    """Of a block's call, for the share of the image's tokens that are in the region."""
    every = TEXT + 2 * IMAGE
    queries = {"full": every, "partial": TEXT + IMAGE * share}.get(kind, TEXT + 2 * IMAGE * share)
    keys = queries if kind == "local" else every
    return 24 * WIDTH**2 * queries + 4 * WIDTH * queries * keys


@contextmanager
def calls_of(method: type[BranchCalls]) -> Iterator[None]:
    """Edits inside are made by another scheme."""
    before = sparse.BranchCalls
    sparse.BranchCalls = method  # type: ignore[misc]
    try:
        yield
    finally:
        sparse.BranchCalls = before  # type: ignore[misc]


def edit(
    editor: Editor,
    case: Case,
    seed: int,
    steps: int,
    sparse: bool,
    quality: SparseQuality = "balanced",
) -> EditResult:
    """One edit, as a user gets it."""
    options = EditOptions(
        steps=steps, mode="routed", refine_crop=False, sparse=sparse, force=True,
        sparse_quality=quality,
    )  # fmt: skip
    return editor.edit(
        case.image, EditRequest(case.word, case.style, seed=seed), options, want_map=True
    )


def score(case: Case, dense: EditResult, found: EditResult) -> dict[str, float]:
    """One edit against the dense one and the target."""
    mask = case.mask.bool().expand_as(found.image)
    error = float((found.image - dense.image)[mask].square().mean())
    image, target = case.image[None], case.target[None]
    assert found.regions is not None
    outside = (found.regions.sum(0, keepdim=True) == 0).expand_as(found.image)
    return {
        "psnr": min(CAP, -10 * math.log10(max(error, 1e-30))),
        "residual": float(in_mask_ratio(found.image[None], image, target, case.mask[None])),
        "background": float(torch.equal(found.image[outside], case.image[outside])),
    }


def compare(
    editor: Editor, cases: list[Case], steps: int, seeds: int, methods: list[str]
) -> dict[str, Any]:
    """The methods on all cases: each row of a table."""
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in ("dense", *methods)}
    for case in tqdm(cases, desc=f"{steps} steps", unit="image"):
        for seed in range(seeds):
            dense = edit(editor, case, seed, steps, sparse=False)
            scores["dense"].append(score(case, dense, dense))
            for name in methods:
                method, quality = METHODS[name]
                Counted.calls.clear()
                with calls_of(method):
                    found = edit(editor, case, seed, steps, sparse=True, quality=quality)
                every = operations("full", 1.0)
                # The call that reads the map is not among them, be it the first step or not.
                done = [operations(*call) for call in Counted.calls]
                if not found.settings["sparse"]:  # the whole image is the region
                    done = [every] * (steps - (editor.routing.prompt == "object"))
                shares = [share for kind, share in Counted.calls if kind != "full"]
                ends = [share for kind, share in Counted.calls if kind == "local"]
                scores[name].append(
                    score(case, dense, found)
                    | {"time": sum(done) / every + 1, "share": statistics.mean(shares or [1.0])}
                    | {"share_last": statistics.mean(ends or [1.0])}
                )
    before = [row["residual"] for row in scores["dense"]]
    return {
        name: {
            "edits": len(rows),
            "share": statistics.mean(row["share"] for row in rows),
            "share_last": statistics.mean(row["share_last"] for row in rows),
            "time_ratio": (steps + 1) * len(rows) / sum(row["time"] for row in rows),
            "psnr": float(np.median([row["psnr"] for row in rows])),
            "psnr_10": float(np.percentile([row["psnr"] for row in rows], 10)),
            "residual": vars(
                paired([row["residual"] for row in rows], before, higher_is_better=False)
            ),
            "background_exact": all(row["background"] for row in rows),
        }
        for name, rows in scores.items()
        if name != "dense"
    }


@torch.no_grad()
def main() -> None:
    """Edits, prints, writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", type=Path, required=True, help="drawn scenes")
    parser.add_argument("--photos", type=Path, required=True, help="photo pairs")
    parser.add_argument("--images", type=int, default=4, help="held-out pairs per base (4)")
    parser.add_argument("--seeds", type=int, default=3, help="of each (3)")
    parser.add_argument(
        "--only", choices=METHODS, action="append",
        help="methods to measure again; the result keeps its rows of the others (all)",
    )  # fmt: skip
    parser.add_argument("--run", choices=RUNS, action="append", help="base and steps (all)")
    add_result_argument(parser, "region_sparse_quality")
    arguments = parser.parse_args()
    methods = arguments.only or list(METHODS)
    runs: dict[str, dict[str, Any]] = {}
    if (arguments.only or arguments.run) and arguments.result.exists():
        known = read_json(arguments.result)["runs"]
        runs = {f"{run['base']}, {run['steps']}": run for run in known}
    result = provenance(("torch", "diffusers"))
    result |= {"images": arguments.images, "seeds": arguments.seeds}
    for name in arguments.run or RUNS:
        base, steps = RUNS[name]
        editor = RegionRoutePipeline.from_pretrained(base).editor
        data = arguments.scenes if base == "nano" else arguments.photos
        cases = held_out(data, editor, arguments.images)
        area = statistics.mean(float(case.mask.mean()) for case in cases)
        found = compare(editor, cases, steps, arguments.seeds, methods)
        both = (runs[name]["methods"] if name in runs else {}) | found
        rows = {method: both[method] for method in METHODS if method in both}
        prompt = editor.routing.prompt
        runs[name] = {
            "base": base, "steps": steps, "prompt": prompt, "area": area, "methods": rows
        }  # fmt: skip
        print(name, rows, flush=True)
        write_json(arguments.result, result | {"runs": [runs[n] for n in RUNS if n in runs]})


if __name__ == "__main__":
    main()
