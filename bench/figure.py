"""Draw the picture at the top of the README: photos, edits by word, attention maps.

    python bench/figure.py --out docs/photos.jpg

The photos come with scikit-image; the base and its experts are the default ones. Each photo stands
above its edit and the attention map of the edit.
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from regionroute import RegionRoutePipeline

SIDE = 256
CASES = (
    ("chelsea", "cat", "starry-night"),
    ("coffee", "cup", "starry-night"),
    ("astronaut", "helmet", "blueprint"),
    ("chelsea", "cat", "pop-art"),
)


def main() -> int:
    """Edit and arrange."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/photos.jpg"))
    args = parser.parse_args()
    pipe = RegionRoutePipeline.from_pretrained("nano-photos")
    columns = []
    for name, word, style in CASES:
        image = Image.fromarray(getattr(skimage.data, name)())
        done = pipe(image, object=word, style=style, seed=0)
        print(f"{word} in {style}: {done.metadata[0].get('warnings') or 'found'}")
        panels = (image, done.images[0], done.region_maps[0])
        columns.append(np.concatenate([np.asarray(square(panel)) for panel in panels]))
    Image.fromarray(np.concatenate(columns, axis=1)).save(args.out, quality=88)
    return 0


def square(image: Image.Image) -> Image.Image:
    """The central square in RGB at the figure's size."""
    side = min(image.size)
    left, top = ((length - side) // 2 for length in image.size)
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    return square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    raise SystemExit(main())
