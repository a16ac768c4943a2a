"""Does an edit notice that the named object is absent?

    python bench/absent_words.py
    python bench/absent_words.py --base nano-photos --manifest data/photo_pairs \
        --result bench/results/absent_words_photos.json

Test images, each edited once with the word of an object in it and once with an absent word, with
the experts that ship with the base: how often does the edit warn that the object was hardly found?
The area under the ROC curve says how well the attention on the region separates the two at any
threshold. Images are drawn scenes, or the split "test" of a manifest's photos, whose other words
count as absent. The result goes to bench/results/absent_words.json.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from _shared import add_result_argument, provenance
from torch import Tensor
from tqdm import tqdm

from pseudo_labels.scenes.draw import HELD_OUT_SEEDS, render_scene
from pseudo_labels.scenes.sprites import SPRITES
from regionroute.data.images import read_image, resize
from regionroute.data.manifest import load_manifest
from regionroute.data.stats import describe
from regionroute.editing.editor import Editor
from regionroute.editing.request import EditOptions, EditRequest
from regionroute.files import write_json
from regionroute.pipeline import RegionRoutePipeline

Case = tuple[Tensor, str, str]  # image [3,H,W], a present word, an absent word


def main() -> int:
    """Edit and count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="nano")
    parser.add_argument("--experts", default="auto", help="default: those of the base")
    parser.add_argument("--manifest", type=Path, help="photo pairs instead of scenes")
    parser.add_argument("--count", type=int, default=256, help="images to edit")
    add_result_argument(parser, "absent_words")
    args = parser.parse_args()
    editor = RegionRoutePipeline.from_pretrained(args.base, experts=args.experts).editor
    styles = [style.name for style in editor.registry.styles] if editor.registry else []
    cases = scenes(args.count) if args.manifest is None else photos(editor, args.manifest)
    level: dict[bool, list[float]] = {True: [], False: []}
    options = EditOptions(mode="routed", refine_crop=False)
    for i, (picture, own, missing) in enumerate(tqdm(cases, "editing", unit="image")):
        if i >= args.count:
            break
        requests = [EditRequest(word, styles[i % len(styles)], seed=i) for word in (own, missing)]
        results = editor.edit_batch([picture, picture], requests, options)
        for there, result in zip((True, False), results, strict=True):
            level[there].append(result.settings["attention_on_region"][0])
    right, wrong = (np.array(level[there]) for there in (True, False))
    threshold = editor.routing.confidence
    result = provenance() | {"pictures": len(right), "threshold": threshold}
    for name, values in (("present", right), ("absent", wrong)):
        share = describe((values < threshold).astype(float))
        result[f"warned, {name}"] = [share.mean, share.low, share.high]
    pairs = (right[:, None] > wrong).mean() + 0.5 * (right[:, None] == wrong).mean()
    result["area under the curve"] = float(pairs)
    write_json(args.result, result)
    print(result)
    return 0


def scenes(count: int) -> Iterator[Case]:
    """Drawn scenes from the test seeds."""
    for seed in range(HELD_OUT_SEEDS.start, HELD_OUT_SEEDS.start + count):
        scene, rng = render_scene(seed), np.random.default_rng(seed)
        missing = [word for word in SPRITES if word not in scene.words()]
        own = scene.words()
        yield scene.image, own[rng.integers(len(own))], missing[rng.integers(len(missing))]


def photos(editor: Editor, manifest: Path) -> Iterator[Case]:
    """Test photos at the model's size, one case each."""
    read, rng = load_manifest(manifest), np.random.default_rng(0)
    samples = [sample for sample in read.samples if sample.split == "test"]
    words: dict[str, set[str]] = {}
    for sample in samples:
        words.setdefault(sample.context, set()).update(r.object for r in sample.regions)
    known = sorted(set().union(*words.values()))
    for context, own in words.items():
        image = read_image(read.path(context))
        size = editor.backbone.fit_size(*image.shape[-2:])
        missing = [word for word in known if word not in own]
        one, other = (str(rng.choice(sorted(some))) for some in (own, missing))
        yield resize(image[None], size)[0].clamp(0, 1), one, other


if __name__ == "__main__":
    raise SystemExit(main())
