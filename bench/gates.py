r"""From map to pixels: what do an image's edges and colours add to a token map?

    regionroute label --labels PHOTOS/labels.jsonl --styles small_photos --styles-per-photo 3 \
        --size 160 --test-share 0.1 --out data/photo_pairs
    python bench/gates.py --manifest data/photo_pairs --weights alexnet_features.safetensors \
        --experts out/photos/seed-0/with/experts out/photos/seed-1/with/experts

Test photos that `bench/photos.py --pairs 64` does not use, each restyled fully and composited by
the same map in four ways: edges alone, edges and colours as the experts' settings say, OpenCV's
GrabCut started from the map, and the true mask. The base paints in all four. Metrics: as in
`bench/photos.py`, and the pixel IoU. The result goes to bench/results/gates.json.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from _photo_pairs import Case, difference, held_out, inside_and_outside, lpips_weights
from _shared import add_result_argument, provenance
from torch import Tensor
from tqdm import tqdm

from eval.encoders.features import PerceptualDistance, load_lpips
from regionroute.data.stats import describe
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.files import write_json
from regionroute.pipeline import RegionRoutePipeline
from regionroute.routing.gates import composite
from regionroute.routing.pixel_gates import pixel_gates

REFERENCE = "edges and colours"
SURE, NOT = 0.9, 0.03  # gates that GrabCut must not change
GRABCUT_ROUNDS = 3

Cut = Callable[[Tensor, Case], Tensor]  # gates [h,w], case -> mask [1,1,H,W] in [0,1]


def main() -> int:
    """Edit, composite, compare."""
    args = _parser().parse_args()
    distance = load_lpips(lpips_weights(args.weights), "cpu")
    rows: dict[str, list[dict[str, float]]] = {}
    for experts in args.experts:
        editor = RegionRoutePipeline.from_pretrained(args.base, experts=experts).editor
        for case in tqdm(held_out(args.manifest, editor, args.skip + args.pairs)[args.skip :],
                         str(experts), unit="edit"):  # fmt: skip
            restyled, gates = edited(editor, case)
            for name, cut in cuts(editor).items():
                rows.setdefault(name, []).append(
                    measures(case, restyled, cut(gates, case), distance)
                )
    result = provenance() | {
        "base": args.base,
        "experts": [str(path) for path in args.experts],
        "edits": len(rows[REFERENCE]),
        "cut out by": {
            name: {key: describe([row[key] for row in some]) for key in some[0]}
            for name, some in rows.items()
        },
        f"{REFERENCE}, minus": {
            name: difference(rows[REFERENCE], some, tuple(some[0]))
            for name, some in rows.items()
            if name != REFERENCE
        },
    }
    write_json(args.result, result)
    for name, some in rows.items():
        means = (f"{key} {np.mean([row[key] for row in some]):.3f}" for key in some[0])
        print(name.ljust(18), "  ".join(means))
    return 0


def edited(editor: Editor, case: Case) -> tuple[Tensor, Tensor]:
    """Return the fully restyled photo [3,H,W] and the gates [h,w] of its map."""
    everywhere = (torch.ones(case.image.shape[-2:]),)
    requests = [EditRequest(case.word, case.style, regions=regions) for regions in (everywhere, ())]
    options = EditOptions(mode="routed", lock_background=False)
    [whole] = editor.edit_batch([case.image], requests[:1], options)
    [mapped] = editor.edit_batch([case.image], requests[1:], options, want_map=True)
    assert mapped.region_map is not None
    # For a single object the shown map is the gate of sharpness 1.
    return whole.image, torch.sigmoid(editor.routing.sharpness * torch.logit(mapped.region_map))


def cuts(editor: Editor) -> dict[str, Cut]:
    """Name -> way from gates to pixels."""
    settings = editor.routing

    def refined(colour: float, gates: Tensor, case: Case) -> Tensor:
        config = settings.model_copy(update={"colour": colour})
        return pixel_gates(gates[None, None], case.image[None], config)

    return {
        "edges alone": partial(refined, 0.0),
        REFERENCE: partial(refined, settings.colour),
        "GrabCut": grabcut,
        "the true mask": lambda gates, case: case.mask[None],
    }


def grabcut(gates: Tensor, case: Case) -> Tensor:
    """GrabCut (Rother et al., 2004), started from the gates; the gates if it cannot."""
    size = case.image.shape[-2:]
    likely = F.interpolate(gates[None, None], size, mode="bilinear")
    probable = np.where(likely[0, 0] > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    probable[(likely[0, 0] > SURE).numpy()] = cv2.GC_FGD
    probable[(likely[0, 0] < NOT).numpy()] = cv2.GC_BGD
    picture = (case.image.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8)
    models = np.zeros((2, 1, 65))
    try:
        cv2.grabCut(np.ascontiguousarray(picture), probable, None, *models, GRABCUT_ROUNDS,
                    cv2.GC_INIT_WITH_MASK)  # fmt: skip
    except cv2.error:  # no pixel of either kind
        return likely
    inside = (probable == cv2.GC_FGD) | (probable == cv2.GC_PR_FGD)
    return torch.from_numpy(inside).float()[None, None]


def measures(
    case: Case, restyled: Tensor, cut: Tensor, distance: PerceptualDistance
) -> dict[str, float]:
    """Metrics of one edit."""
    picture = composite(restyled[None], case.image[None], cut)[0]
    inside, wanted = cut > 0.5, case.mask[None] > 0.5
    return inside_and_outside(case, picture, distance) | {
        "pixel_iou": float((inside & wanted).sum() / (inside | wanted).sum().clamp(min=1)),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", type=Path, required=True, help="photo pairs")
    parser.add_argument("--weights", help="AlexNet weights for LPIPS")
    parser.add_argument("--base", default="nano-photos")
    parser.add_argument(
        "--experts", type=Path, nargs="+", required=True, help="expert folders, one per seed"
    )
    parser.add_argument("--skip", type=int, default=64, help="test pairs to skip (used elsewhere)")
    parser.add_argument("--pairs", type=int, default=120, help="test pairs to edit")
    add_result_argument(parser, "gates")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
