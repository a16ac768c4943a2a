"""What does each part of a routed edit contribute? Controls on the experts of bench/supervision.py.

    python bench/supervision.py && python bench/controls.py      # the latter: 10 minutes, two cores

Same test scenes, noise and experts per seed: plain and routed edits with and without supervision,
and the controls: the gate always open, the true mask instead of the map, the true mask of another
scene, the base's own map of the object word (training-free), a pixel composite of the global
restyle by the same gates, and other painting branches than that of configs/nano.yaml. There the
base paints routed edits and the experts paint plain ones; the rows "expert's branch" separate who
paints from routing. Differences are to the routed supervised edit, sample by sample, averaged over
seeds, with 95 % intervals bootstrapped over samples. Finally: does supervision harm what the
experts know of their styles? The result goes to bench/results/controls.json.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _shared import add_result_argument, provenance
from torch import Tensor
from tqdm import tqdm

from eval.metrics import region
from eval.metrics.attention import attention_iou
from pseudo_labels.stylize.filters import FILTERS
from regionroute.config.sites import MapChoice
from regionroute.data.images import write_image
from regionroute.data.manifest import EditSample, load_manifest
from regionroute.data.region_scores import mse_bg
from regionroute.data.stats import describe
from regionroute.editing.batch import sample_request
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.files import write_json
from regionroute.pipeline import RegionRoutePipeline
from regionroute.routing.gates import composite, token_gates
from regionroute.routing.pixel_gates import pixel_gates

BATCH = 16
REFERENCE = "routed, supervised"
MEASURES = ("error left", "success", "background", "leak", "coverage", "map IoU", "seconds")


class Scenes(NamedTuple):
    """A batch of scenes: images and targets [B,3,H,W], masks [B,1,H,W], style names."""

    requests: list[EditRequest]
    sources: Tensor
    targets: Tensor
    masks: Tensor
    styles: list[str]


Method = Callable[["Arms", Scenes], tuple[Tensor, Tensor | None]]


class Arms(NamedTuple):
    """The editors of one seed."""

    supervised: Editor
    unsupervised: Editor
    bare: Editor


def edit(
    editor: Editor, scenes: Scenes, mode: str, regions: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return edits [B,3,H,W] and maps [B,h,w]; regions [B,H,W] replace the maps."""
    requests = scenes.requests
    if regions is not None:
        requests = [
            EditRequest(r.object, r.style, r.prompt, r.seed, regions=(mask,))
            for r, mask in zip(requests, regions, strict=True)
        ]
    results = editor.edit_batch(
        list(scenes.sources), requests, EditOptions(mode=mode), want_map=regions is None
    )
    maps = [result.region_map for result in results if result.region_map is not None]
    return torch.stack([r.image for r in results]), torch.stack(maps) if maps else None


def gate_off(arms: Arms, scenes: Scenes) -> tuple[Tensor, None]:
    """Restyle the whole image."""
    open_everywhere = torch.ones_like(scenes.masks[:, 0])
    return edit(arms.supervised, scenes, "routed", open_everywhere)[0], None


def pixel_composite(arms: Arms, scenes: Scenes) -> tuple[Tensor, None]:
    """Composite the restyle of the whole image by the same gates."""
    editor = arms.supervised
    [maps] = editor.site_maps(list(scenes.sources), scenes.requests).values()
    gates = pixel_gates(token_gates(maps[:, None], editor.routing), scenes.sources, editor.routing)
    return composite(gate_off(arms, scenes)[0], scenes.sources, gates), None


def with_branch(branch: str, prompt: str) -> Method:
    """Routed edits with another painting branch or prompt."""

    def run(arms: Arms, scenes: Scenes) -> tuple[Tensor, Tensor | None]:
        editor, usual = arms.supervised, arms.supervised.routing
        editor.routing = usual.model_copy(update={"branch": branch, "prompt": prompt})
        try:
            return edit(editor, scenes, "routed")
        finally:
            editor.routing = usual

    return run


METHODS: dict[str, Method] = {
    "plain, unsupervised": lambda arms, x: edit(arms.unsupervised, x, "plain"),
    "plain, supervised": lambda arms, x: edit(arms.supervised, x, "plain"),
    "routed, unsupervised": lambda arms, x: edit(arms.unsupervised, x, "routed"),
    REFERENCE: lambda arms, x: edit(arms.supervised, x, "routed"),
    "gate off": gate_off,
    "true mask": lambda arms, x: edit(arms.supervised, x, "routed", x.masks[:, 0]),
    "another object's mask": lambda arms, x: edit(
        arms.supervised, x, "routed", x.masks[:, 0].roll(len(FILTERS), 0)
    ),
    "object word of the base": lambda arms, x: edit(arms.bare, x, "routed"),
    "pixel composite": pixel_composite,
    "expert's branch, told the image": with_branch("expert", "image"),
    "expert's branch, told the object": with_branch("expert", "object"),
    "base's branch, told the object": with_branch("base", "object"),
}


def main() -> int:
    """Edit by every method and write the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", default="out/supervision", help="folder of bench/supervision.py")
    parser.add_argument("--pictures", type=Path, help="folder for sheets of the first seed")
    add_result_argument(parser, "controls")
    args = parser.parse_args()
    result = provenance() | compare(Path(args.runs), args.seeds, args.pictures)
    write_json(args.result, result)
    show(result)
    return 0


def compare(runs: Path, seeds: Sequence[int], pictures: Path | None = None) -> dict:
    """Edit the held-out scenes of every seed by every method.

    Args:
        runs: for each seed "seed-N/scenes" and the experts "seed-N/with" and "seed-N/without".
        seeds: the numbers.
        pictures: folder for contact sheets of the first seed.
    """
    cells: dict[str, list[list[dict[str, float]]]] = {name: [] for name in METHODS}
    styles: dict[str, list[list[float]]] = {"supervised": [], "unsupervised": []}
    for seed in seeds:
        folder = runs / f"seed-{seed}"
        arms, samples = load_arms(folder), test_samples(folder)
        for name in METHODS:
            cells[name].append([])
        for name in styles:
            styles[name].append([])
        for start in tqdm(range(0, len(samples), BATCH), f"seed {seed}", unit="batch"):
            scenes = load_scenes(folder, samples[start : start + BATCH], seed)
            shown = [scenes.sources, scenes.targets]
            for name, method in METHODS.items():
                edited, rows = measured(method, arms, scenes)
                cells[name][-1].extend(rows)
                shown.append(edited)
            for name in styles:
                styles[name][-1].extend(whole_style_error(getattr(arms, name), scenes))
            if pictures and seed == seeds[0]:
                write_sheet(pictures / f"{start:03}.png", shown)
    flags = [set(sample.flags) for sample in samples]
    return {
        "seeds": list(seeds),
        "slices": {
            flag: table(cells, [i for i, own in enumerate(flags) if flag in own])
            for flag in sorted(set().union(*flags))
        },
        "style on whole pictures": style_harm(styles),
    }


def load_arms(folder: Path) -> Arms:
    """The editors of a seed; the bare one reads the object's word where it can see the image."""
    supervised, unsupervised = (
        RegionRoutePipeline.from_pretrained("nano", experts=folder / arm / "experts").editor
        for arm in ("with", "without")
    )
    bare = RegionRoutePipeline.from_pretrained("nano", experts=None).editor
    bare.routing = supervised.routing.model_copy(update={"branch": "base"})
    bare.read_maps(MapChoice(layers=["all@object"], queries="context"))
    return Arms(supervised, unsupervised, bare)


def test_samples(folder: Path) -> list[EditSample]:
    """The held-out samples of a seed's data set."""
    samples = load_manifest(folder / "scenes").samples
    return [sample for sample in samples if sample.split == "test"]


def load_scenes(folder: Path, samples: Sequence[EditSample], seed: int) -> Scenes:
    """A batch of scenes with the requests of `regionroute edit --manifest`."""
    manifest = load_manifest(folder / "scenes")
    return Scenes(
        [sample_request(sample, seed) for sample in samples],
        torch.stack([manifest.context(sample) for sample in samples]),
        torch.stack([manifest.target(sample) for sample in samples]),
        torch.stack([manifest.masks(sample).amax(0) for sample in samples]),
        [sample.regions[0].style for sample in samples],
    )


def measured(method: Method, arms: Arms, scenes: Scenes) -> tuple[Tensor, list[dict[str, float]]]:
    """The edits, and the measures of each."""
    start = time.perf_counter()
    edited, maps = method(arms, scenes)
    seconds = (time.perf_counter() - start) / len(edited)
    source, target, mask = scenes.sources, scenes.targets, scenes.masks
    iou = torch.full((len(edited),), torch.nan)
    if maps is not None:
        iou = attention_iou(maps[:, None], mask)
    columns = {
        "error left": region.in_mask_ratio(edited, source, target, mask),
        "success": region.success(edited, source, target, mask),
        "background": mse_bg(edited, source, mask),
        "leak": region.leak(edited, source, mask),
        "coverage": region.coverage(edited, source, mask),
        "map IoU": iou,
        "seconds": torch.full_like(iou, seconds),
    }
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return edited, [dict(zip(MEASURES, row, strict=True)) for row in rows]


def whole_style_error(editor: Editor, scenes: Scenes) -> list[float]:
    """Error of the expert's restyle of whole images, relative to the unedited one's."""
    usual, editor.routing = editor.routing, editor.routing.model_copy(update={"branch": "expert"})
    edited, _ = edit(editor, scenes, "routed", torch.ones_like(scenes.masks[:, 0]))
    editor.routing = usual
    targets = torch.stack(
        [FILTERS[s](x) for s, x in zip(scenes.styles, scenes.sources, strict=True)]
    )
    everywhere = torch.ones_like(scenes.masks)
    return region.in_mask_ratio(edited, scenes.sources, targets, everywhere).tolist()


def table(cells: dict[str, list[list[dict[str, float]]]], ids: list[int]) -> dict[str, dict]:
    """Method -> measure -> mean, difference to the reference and its interval."""
    result: dict[str, dict] = {}
    for name, seeds in cells.items():
        result[name] = {}
        for measure in MEASURES:
            own, reference = (
                np.array([[rows[i][measure] for i in ids] for rows in x], dtype=float)
                for x in (seeds, cells[REFERENCE])
            )
            if np.isnan(own).all():
                continue
            entry: dict[str, object] = {"mean": float(np.nanmean(own)), "samples": len(ids)}
            if name != REFERENCE and measure != "seconds" and not np.isnan(reference).all():
                interval = describe((own - reference).mean(0))
                entry |= {
                    "difference": interval.mean,
                    "low": interval.low,
                    "high": interval.high,
                    "by_seed": np.nanmean(own - reference, axis=1).tolist(),
                }
            result[name][measure] = entry
    return result


def style_harm(styles: dict[str, list[list[float]]]) -> dict[str, object]:
    """Error of the experts on whole images with and without supervision."""
    values = {name: np.array(rows) for name, rows in styles.items()}
    means = {name: float(x.mean()) for name, x in values.items()}
    interval = describe((values["supervised"] - values["unsupervised"]).mean(0))
    return means | {
        "ratio": means["supervised"] / means["unsupervised"],
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "by_seed": (values["supervised"] - values["unsupervised"]).mean(1).tolist(),
    }


def write_sheet(path: Path, columns: Sequence[Tensor]) -> None:
    """One scene a row, source and target first, then every method."""
    rows = [torch.cat([column[i] for column in columns], dim=2) for i in range(len(columns[0]))]
    write_image(path, torch.cat(rows, dim=1))


def show(result: dict) -> None:
    """Print the means of every slice."""
    for flag, methods in result["slices"].items():
        print(f"\n{flag}")
        for name, measures in methods.items():
            cells = ", ".join(f"{key} {cell['mean']:.4f}" for key, cell in measures.items())
            print(f"  {name:34} {cells}")
    print("\nstyle on whole pictures:", result["style on whole pictures"])


if __name__ == "__main__":
    raise SystemExit(main())
