"""Do edits match the style of an example image as well as a named style? Over several seeds.

    python bench/style_image.py                  # three seeds, about 25 minutes on two cores
    python bench/style_image.py --seeds 0 --steps 100

Each seed draws its own training scenes, style encoder, experts and noise. The same experts edit the
same test scenes twice: by the style's name (its mean embedding), and by an example (another test
scene in that style). Differences are paired by sample, 95 % intervals bootstrapped over samples.
Also measured: how often the encoder finds the style of an unseen image, and how similarly the
experts route images of the same and of different styles.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from _shared import add_result_argument, provenance, run_python
from supervision import column, read_table

from regionroute.adapters import RouteContext, adapter_layers
from regionroute.adapters.router_stats import chosen_experts, routing_overlap
from regionroute.data.manifest import load_manifest
from regionroute.data.stats import describe
from regionroute.files import read_json, text_hash, write_json, write_jsonl
from regionroute.pipeline import RegionRoutePipeline
from train.style_encoder.images import content_of, read_style_pictures

ROOT = Path(__file__).resolve().parents[1]
METRICS = ("in_mask_error", "in_mask_ratio", "success", "mse_bg", "leak", "attention_iou")
OVERLAP_PICTURES = 16  # per style


def main() -> int:
    """Run or reuse the chain of every seed and write the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600, help="training steps of the experts")
    parser.add_argument("--out", default="out/style_image", help="output folder")
    add_result_argument(parser, "style_image")
    args = parser.parse_args()
    folders = [Path(args.out) / f"seed-{seed}" for seed in args.seeds]
    for seed, folder in zip(args.seeds, folders, strict=True):
        if not (folder / "scores" / "samples.jsonl").exists():
            build(folder, seed, args.steps)
    tables = [read_table(folder / "scores" / "samples.jsonl") for folder in folders]
    result = {
        **provenance(),
        "seeds": args.seeds,
        "steps": args.steps,
        "encoder": [
            read_json(folder / "encoder" / "style_encoder" / "scores.json") for folder in folders
        ],
        "routing_overlap": [overlap(folder) for folder in folders],
        "edits": {flag: compare(tables, flag) for flag in ("single", "multi")},
    }
    write_json(args.result, result)
    print(json.dumps(result, indent=2))
    return 0


def build(folder: Path, seed: int, steps: int) -> None:
    """Scenes, encoder, experts, both kinds of edits, scores: each as a user would."""
    scenes, encoder, run = folder / "scenes", folder / "encoder", folder / "run"
    configs, styles = ROOT / "configs", scenes / "styles"
    run_python("-m", "regionroute.cli", "scenes", "--out", scenes, "--train", 500, "--test", 64,
            "--seed", seed, "--style-images")  # fmt: skip
    run_python(ROOT / "train/style_encoder/run.py", "--config", configs / "nano_style_encoder.yaml",
            f"pictures.source={styles / 'train'}", f"output={encoder}", f"seed={seed}")  # fmt: skip
    run_python(ROOT / "train/run.py", "--config", configs / "nano_by_example.yaml",
            f"data.manifest={scenes}", f"output={run}", f"seed={seed}", f"train.steps={steps}",
            f"experts.style_encoder={encoder / 'style_encoder'}",
            f"experts.style_pictures={styles / 'train'}")  # fmt: skip
    common = ("-m", "regionroute.cli", "edit", "--experts", run / "experts", "--batch-size", 16,
              "--skip-existing", "--seed", seed)  # fmt: skip
    run_python(*common, "--manifest", scenes, "--split", "test", "--out-dir", folder / "name")
    rows = folder / "shown.jsonl"
    write_jsonl(rows, example_rows(scenes, folder))
    run_python(*common, "--batch", rows)
    run_python(ROOT / "eval/rses.py", "--manifest", scenes, "--split", "test",
            "--edits", f"name={folder / 'name'}", "--edits", f"shown={folder / 'shown'}",
            "--out", folder / "scores")  # fmt: skip


def example_rows(scenes: Path, folder: Path) -> list[dict]:
    """Edit requests of `name` with the same seeds, an example image instead of the style word."""
    pictures = read_style_pictures(scenes / "styles" / "test")
    rows = []
    for sample in load_manifest(scenes).samples:
        if sample.split != "test":
            continue
        region, sidecar = sample.regions[0], read_json(folder / "name" / f"{sample.id}.json")
        others = [
            picture.path
            for picture in pictures
            if picture.style == region.style and picture.content != content_of(sample)
        ]
        chosen = others[int(text_hash(sample.id)[:8], 16) % len(others)]
        rows.append(
            {
                "id": sample.id,
                "image": str((scenes / sample.context).resolve()),
                "object": region.object,
                "style_image": str(chosen.resolve()),
                "seed": sidecar["seed"],
                "out": f"shown/{sample.id}.png",
                "map": f"shown/{sample.id}.map.png",
            }
        )
    return rows


def overlap(folder: Path) -> dict[str, float]:
    """Routing IoU of held-out images: of one style, and of different styles."""
    editor = RegionRoutePipeline.from_pretrained("nano", experts=folder / "run" / "experts").editor
    found = {}
    for picture in read_style_pictures(folder / "scenes" / "styles" / "test"):
        found.setdefault(picture.style, []).append(picture)
    chosen, labels = [], []
    layers = adapter_layers(editor.backbone.transformer)
    for label, pictures in enumerate(found.values()):
        for picture in pictures[:OVERLAP_PICTURES]:
            embedding = editor.styles.encoder.embed(picture.read())
            context = RouteContext(style_emb=embedding[None])
            routings = {name: layer.router(context) for name, layer in layers.items()}
            chosen.append(chosen_experts(routings, 1))
            labels.append(label)
    within, between = routing_overlap(torch.cat(chosen), torch.tensor(labels))
    return {"within": within, "between": between}


def compare(tables: list[dict[str, dict[str, dict]]], flag: str) -> dict[str, dict]:
    """Shown minus named on the samples with a flag, metric by metric."""
    ids = [name for name, row in tables[0]["name"].items() if flag in row["flags"]]
    result = {}
    for metric in METRICS:
        values = {arm: column(tables, arm, ids, metric) for arm in ("name", "shown")}
        difference = values["shown"] - values["name"]  # (seeds, samples)
        interval = describe(difference.mean(0))
        means = {arm: float(np.nanmean(x)) for arm, x in values.items()}
        result[metric] = {
            **means,
            "ratio": means["shown"] / means["name"] if means["name"] else None,
            "difference": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "samples": len(ids),
            "difference_by_seed": np.nanmean(difference, axis=1).tolist(),
        }
    return result


if __name__ == "__main__":
    raise SystemExit(main())
