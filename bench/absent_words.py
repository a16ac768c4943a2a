"""Does an edit notice that the word is not in the picture?

    python bench/absent_words.py

Held-out scenes, each edited once by a word of its own and once by one that is not there: how often
is the object said to be hardly found, with the experts that come with nano? The area under the ROC
curve says how well the attention on the region tells the two apart at any threshold. The result
goes to bench/results/absent_words.json.
"""

import argparse

import numpy as np
from _shared import add_result_argument, provenance
from tqdm import tqdm

from eval.stats import describe
from pseudo_labels.scenes import HELD_OUT_SEEDS, render_scene
from pseudo_labels.sprites import SPRITES
from regionroute.io import write_json
from regionroute.pipeline import load_editor
from regionroute.request import EditOptions, EditRequest

BATCH = 16


def main() -> int:
    """Edits and counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="nano")
    parser.add_argument("--experts", default="auto", help="default: those of the base")
    parser.add_argument("--scenes", type=int, default=256)
    add_result_argument(parser, "absent_words")
    args = parser.parse_args()
    editor = load_editor(args.base, args.experts)
    styles = [style.name for style in editor.registry.styles] if editor.registry else []
    level: dict[bool, list[float]] = {True: [], False: []}
    for start in tqdm(range(0, args.scenes, BATCH), "editing", unit="batch"):
        images, requests, present = [], [], []
        for i in range(start, start + BATCH):
            seed = HELD_OUT_SEEDS.start + i
            scene, rng = render_scene(seed), np.random.default_rng(seed)
            missing = [word for word in SPRITES if word not in scene.words()]
            for there, words in ((True, scene.words()), (False, missing)):
                images.append(scene.image)
                word = words[rng.integers(len(words))]
                requests.append(EditRequest(word, styles[i % len(styles)], seed=i))
                present.append(there)
        for there, result in zip(
            present, editor.edit_batch(images, requests, EditOptions(mode="routed")), strict=True
        ):
            level[there].append(result.settings["attention_on_region"][0])
    right, wrong = (np.array(level[there]) for there in (True, False))
    threshold = editor.routing.confidence
    result = provenance() | {"scenes": len(right), "threshold": threshold}
    for name, values in (("present", right), ("absent", wrong)):
        share = describe((values < threshold).astype(float))
        result[f"warned, {name}"] = [share.mean, share.low, share.high]
    pairs = (right[:, None] > wrong).mean() + 0.5 * (right[:, None] == wrong).mean()
    result["area under the curve"] = float(pairs)
    write_json(args.result, result)
    print(result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
