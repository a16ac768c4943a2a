r"""On photos of several objects, does the word choose?

    python bench/crowded.py --labels PHOTOS/labels.jsonl MORE/labels.jsonl \
        --outlines train/pretrain/nano_photos_objects.jsonl --bank data/bank \
        --detector yolox_nano_coco.onnx

Every named object of every test photo with at least two of them is restyled, and one word that is
absent. Test photos: those of the bank's split "test", all of labels files that the bank does not
hold; test photos with further objects that a language model outlined (apart); mosaics of four test
photos of one object each (synthetic, apart). Edits run as a user's do, at the photo's own size.

Rows: edits routed by the map and plain; the image encoder's own map; as a rival, a grounded
pipeline: detector's box, mask by U²-Net-p and GrabCut, the same painter inside that mask. With
`--runs`: experts trained with and without attention supervision (bench/photos.py's folders
seed-N/with and seed-N/without), routed by the map that edits read, whose heads the base brings, and
by the style word's map in the blocks that the experts' training supervises.

Measures, of the changed pixels: IoU with the object, leak, coverage, IoU between the changes of two
words of one photo (overlap); peak: the map's largest value lies on the object; for absent words:
how often anything changes. AUC: the evidence of a present word exceeds that of an absent one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _crowded_photos import Photo, panel, photos_set_aside
from _shared import add_result_argument, provenance
from torch import Tensor
from tqdm import tqdm

from eval.metrics.region import CHANGE_THRESHOLD, coverage, leak
from pseudo_labels.segment.loading import FinderSettings
from regionroute.config.sites import MapChoice
from regionroute.data.images import write_image
from regionroute.data.object_bank import ObjectBank
from regionroute.data.stats import describe, paired
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.errors import UserError
from regionroute.files import write_json
from regionroute.pipeline import RegionRoutePipeline

LEAST_CHANGE = 0.005  # of the image, for an absent word to have changed something
MEASURES = ("iou", "peak", "overlap", "leak", "coverage")
HIGHER = {"iou", "peak", "coverage"}
KINDS = ("photo", "outlined", "mosaic")
LONG = ("plain, supervised", "detector and mask")  # too long for the many outlined photos
SHOWN = 40
BY_STYLE = "by the style's word"
# the blocks that configs/nano_photos.yaml supervises
STYLE_WORD = MapChoice(layers=["single.3", "single.4", "single.5"], queries="context")


@dataclass(frozen=True)
class Found:
    """What a method did for one word.

    Attributes:
        changed: bool [H,W].
        region_map: [h,w] of any scale, largest where it is surest; None: nothing was found.
        evidence: that the object is present, larger is surer; NaN: none.
        attention: on the region, see `attention_on_region`; NaN: none.
        image: the edit [3,H,W]; None for a map alone.
        seconds: for the edit.
    """

    changed: Tensor
    region_map: Tensor | None
    evidence: float = float("nan")
    attention: float = float("nan")
    image: Tensor | None = None
    seconds: float = 0.0


Method = Callable[[Photo, str, str, int], Found]  # photo, word, style, seed


def main() -> int:
    """Edit, score, write the comparison."""
    args = _parser().parse_args()
    editor = RegionRoutePipeline.from_pretrained(args.base, experts=args.experts).editor
    bank = ObjectBank(args.bank)
    photos = photos_set_aside(args.labels, args.outlines, bank, editor, args.mosaics)
    print(f"{len(photos)} photos, {sum(len(p.objects) for p in photos)} (photo, word) rows")
    assert editor.registry is not None
    styles = args.styles or [entry.style for entry in editor.registry.experts]
    rows: dict[str, list[dict[str, Any]]] = {}
    seeds = args.seeds if args.runs else [0]
    for seed in seeds:
        for name, method in _methods(args, editor, seed).items():
            asked = [p for p in photos if p.kind != "outlined" or name not in LONG]
            rows.setdefault(name, []).extend(score(name, method, asked, styles, seed, args.sheets))
    result = provenance() | {
        "base": args.base,
        "photos": len(photos),
        "seeds": seeds,
        "methods": {name: summary(found) for name, found in rows.items()},
        "differences": differences(rows),
    }
    write_json(args.result, result)
    show(result)
    return 0


def _methods(args: argparse.Namespace, editor: Editor, seed: int) -> dict[str, Method]:
    """Name -> method, of one seed."""
    if not args.runs:
        found = {
            f"{mode}, supervised": edits(editor, EditOptions(mode=mode))
            for mode in ("routed", "plain")
        }
        found["image encoder's map"] = encoder_map(editor)
        if args.detector:
            found["detector and mask"] = grounded(editor, args.detector, args.segmenter)
        return found
    found = {}
    for arm, name in (("with", "supervised"), ("without", "unsupervised")):
        experts = args.runs / f"seed-{seed}" / arm / "experts"
        for mode, choice in (("routed", None), (BY_STYLE, STYLE_WORD)):
            own = RegionRoutePipeline.from_pretrained(args.base, experts=experts).editor
            if choice:
                own.read_maps(choice)
            found[f"{mode}, {name}"] = edits(own, EditOptions(mode="routed"))
    return found


def edits(editor: Editor, options: EditOptions) -> Method:
    """Edits as a user's."""

    def method(photo: Photo, word: str, style: str, seed: int) -> Found:
        return _edited(editor, photo, EditRequest(word, style, seed=seed), options)

    return method


def _edited(editor: Editor, photo: Photo, request: EditRequest, options: EditOptions) -> Found:
    start = time.perf_counter()
    [result] = editor.edit_batch([photo.image], [request], options, want_map=True)
    seconds = time.perf_counter() - start
    changed = (result.image - photo.image).abs().amax(0) > CHANGE_THRESHOLD
    evidence = (result.settings.get("presence") or [float("nan")])[0]
    attention = (result.settings.get("attention_on_region") or [float("nan")])[0]
    return Found(changed, result.region_map, evidence, attention, result.image, seconds)


def encoder_map(editor: Editor) -> Method:
    """The image encoder's score of the word, above one half."""
    encoder = editor.backbone.vae.image_encoder

    @torch.no_grad()
    def method(photo: Photo, word: str, style: str, seed: int) -> Found:
        start = time.perf_counter()
        size = editor.backbone.fit_size(*photo.image.shape[-2:])
        views = encoder.views(photo.image[None] * 2 - 1, size)
        vector = editor.backbone.word_vectors([word])[None]
        scores = encoder.scores(encoder.head(*views), vector)[0].sigmoid()
        seconds = time.perf_counter() - start
        wide = F.interpolate(scores[None], photo.image.shape[-2:], mode="bilinear")[0, 0]
        return Found(wide > 0.5, scores[0], float(scores.max()), seconds=seconds)

    return method


def grounded(editor: Editor, detector: Path, segmenter: str) -> Method:
    """The rival: the detector's box of the word, a mask in it, the same painter inside the mask."""
    finder = FinderSettings(grounder=f"yolox:{detector}", segmenter=segmenter)
    grounder, cutter = finder.load_grounder(), finder.load_segmenter()

    def method(photo: Photo, word: str, style: str, seed: int) -> Found:
        start = time.perf_counter()
        nothing = torch.zeros(photo.image.shape[-2:], dtype=torch.bool)
        try:
            [places] = grounder.ground(photo.image, [word])
        except UserError:  # a word the detector does not know
            places = []
        if not places:
            return Found(nothing, None, image=photo.image, seconds=time.perf_counter() - start)
        [(mask, _)] = cutter.segment(photo.image, [places[0].box])
        request = EditRequest(word, style, seed=seed, regions=(mask[0],))
        done = _edited(editor, photo, request, EditOptions(mode="routed"))
        seconds = time.perf_counter() - start
        return Found(done.changed, mask[0], places[0].score, image=done.image, seconds=seconds)

    return method


def score(
    name: str,
    method: Method,
    photos: Sequence[Photo],
    styles: Sequence[str],
    seed: int,
    sheets: Path,
) -> list[dict[str, Any]]:
    """A row per photo and word, present and absent."""
    rows: list[dict[str, Any]] = []
    panels: list[Tensor] = []
    turn = 0
    for photo in tqdm(photos, desc=f"{name}, seed {seed}", unit="photo"):
        changes: list[Tensor] = []
        for word, mask in photo.objects.items():
            found = method(photo, word, styles[turn % len(styles)], seed)
            turn += 1
            changes.append(found.changed)
            rows.append(_measured(photo, word, mask, found))
            if found.image is not None and len(panels) < SHOWN:
                panels.append(panel(photo.image, mask, found.image))
        rows[-1]["overlap"] = _iou(changes[0], changes[1])
        found = method(photo, photo.absent, styles[turn % len(styles)], seed)
        rows.append(
            {
                "photo": photo.name,
                "kind": photo.kind,
                "absent": photo.absent,
                "evidence": found.evidence,
                "attention": found.attention,
                "changes": float(found.changed.float().mean() > LEAST_CHANGE),
            }
        )
    if panels:
        sheet = torch.stack(panels).unflatten(0, (-1, 4) if len(panels) % 4 == 0 else (-1, 1))
        write_image(sheets / f"{name} seed {seed}.png".replace(", ", "-").replace(" ", "-"),
                    sheet.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2))  # fmt: skip
    return rows


def _measured(photo: Photo, word: str, mask: Tensor, found: Found) -> dict[str, Any]:
    inside = mask[0] > 0.5
    changed = found.changed[None, None].float()
    black, whole = torch.zeros_like(changed).expand(-1, 3, -1, -1), changed.expand(-1, 3, -1, -1)
    return {
        "photo": photo.name,
        "kind": photo.kind,
        "word": word,
        "area": float(mask.mean()),
        "iou": _iou(found.changed, inside),
        "peak": 0.0 if found.region_map is None else _peak(found.region_map, inside),
        "leak": float(leak(whole, black, mask[None])),
        "coverage": float(coverage(whole, black, mask[None])),
        "evidence": found.evidence,
        "attention": found.attention,
        "refused": float(found.changed.float().mean() <= LEAST_CHANGE / 5),
        "seconds": found.seconds,
    }


def _iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


def _peak(region_map: Tensor, inside: Tensor) -> float:
    """1 where the largest value of a map lies on the object."""
    grid = F.interpolate(inside[None, None].float(), region_map.shape[-2:], mode="area")[0, 0]
    return float(grid.flatten()[region_map.flatten().argmax()] > 0.25)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals, of photos and of mosaics; AUC and rates of absent words."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        some = [row for row in rows if row["kind"] == kind and "word" in row]
        absent = [row for row in rows if row["kind"] == kind and "absent" in row]
        if not some:
            continue
        found[kind] = {
            name: describe([row[name] for row in some if name in row])
            for name in (*MEASURES, "refused", "seconds")
        } | {
            "n": len(some),
            "auc": _auc(some, absent, "evidence"),
            "auc of the attention": _auc(some, absent, "attention"),
            "absent changes": describe([row["changes"] for row in absent]),
        }
    return found


def _auc(present: Sequence[Any], absent: Sequence[Any], name: str) -> float:
    a, b = (np.nan_to_num(np.array([row[name] for row in rows])) for rows in (present, absent))
    return float((a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean())


def differences(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Supervised minus unsupervised, paired over the same rows of the same seeds."""
    found = {}
    for mode in ("routed", BY_STYLE):
        own, rival = (
            [r for r in rows.get(f"{mode}, {arm}", []) if "word" in r and r["kind"] != "outlined"]
            for arm in ("supervised", "unsupervised")
        )
        if rival:
            found[mode] = {
                name: paired(
                    [row[name] for row in own],
                    [row[name] for row in rival],
                    higher_is_better=name in HIGHER,
                )
                for name in ("iou", "peak", "leak", "coverage")
            }
    return found


def show(result: dict[str, Any]) -> None:
    """Print the means as a table."""
    for kind in KINDS:
        heads = (*MEASURES, "auc", "absent", "s")
        print(f"\n{kind:28s}" + "".join(f"{name:>10s}" for name in heads))
        for method, groups in result["methods"].items():
            if kind not in groups:
                continue
            row = groups[kind]
            values = [row[name].mean for name in MEASURES]
            values += [row["auc"], row["absent changes"].mean, row["seconds"].mean]
            print(f"{method:28s}" + "".join(f"{value:10.3f}" for value in values))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", type=Path, nargs="+", required=True, help="labels files")
    parser.add_argument("--outlines", type=Path, help="more objects on photos of the first file")
    parser.add_argument("--bank", type=Path, required=True, help="bank the base was trained on")
    parser.add_argument("--base", default="nano-photos")
    parser.add_argument("--experts", default="auto", help="finished experts (those of the base)")
    parser.add_argument("--runs", type=Path, help="folder of bench/photos.py with both arms")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--styles", nargs="+", help="styles in turn (all of the experts)")
    parser.add_argument("--mosaics", type=int, default=20, help="synthetic photos")
    parser.add_argument("--detector", type=Path, help="YOLOX-nano (ONNX), for the rival")
    parser.add_argument(
        "--segmenter", default="offline", help="offline:FILE for U²-Net-p's own file, for the rival"
    )
    parser.add_argument("--sheets", type=Path, default=Path("out/crowded"), help="image folder")
    add_result_argument(parser, "crowded")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
