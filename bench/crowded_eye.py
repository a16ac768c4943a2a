r"""Forty fresh photos of several things, each edited by one word: a sheet for the eye.

    python bench/crowded_eye.py --photos PHOTOS --out docs/crowded.jpg

The photos and words are those of bench/crowded_eye.txt and a cup of scikit-image's coffee. None was
in any training; both were chosen before the edits were seen. Each photo is next to its edit, row
by row in the order of the list; the styles take turns. Whether the word chose is for a reader to
judge.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageOps
from tqdm import tqdm

from regionroute import RegionRoutePipeline

LIST = Path(__file__).with_suffix(".txt")
STYLES = ("neon", "blueprint", "pop-art", "stained-glass", "risograph")  # changes that one sees
SIDE, COLUMNS = 128, 5


def main() -> int:
    """Edit and arrange."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="folder of the list's photos")
    parser.add_argument("--out", type=Path, default=Path("docs/crowded.jpg"))
    args = parser.parse_args()
    pipe = RegionRoutePipeline.from_pretrained("nano-photos")
    cases = [(Image.fromarray(skimage.data.coffee()), "cup")]
    for line in LIST.read_text().splitlines()[1:]:
        file, word = line.partition(" #")[0].split(maxsplit=1)
        cases.append((Image.open(args.photos / file).convert("RGB"), word))
    panels = []
    for number, (photo, word) in enumerate(tqdm(cases, unit="photo")):
        style = STYLES[number % len(STYLES)]
        done = pipe(photo, object=word, style=style, seed=0)
        tqdm.write(f"{number + 1} {word}, {style}: {done.metadata[0].get('warnings') or 'found'}")
        both = (photo, done.images[0])
        pair = [ImageOps.pad(image, (SIDE, SIDE), color="white") for image in both]
        panels.append(np.concatenate([np.asarray(image) for image in pair], axis=1))
    rows = [panels[start : start + COLUMNS] for start in range(0, len(panels), COLUMNS)]
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    Image.fromarray(sheet).save(args.out, quality=85)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
