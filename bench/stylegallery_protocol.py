"""The benchmark of StyleGallery on folders: every content in every family of styles, then scored.

    python bench/stylegallery_protocol.py --contents DIR --styles DIR --out out/protocol

with --model, --dino, --vgg, --lpips and --inception naming the networks' files or folders.
`styles/` holds one folder a family, with several pictures of it (the published benchmark: 25
families, 191 pictures) and `contents/` the photos (15); all pictures of a family are references
together. The published pairing rule for its 750 outputs is not stated; this is one output a pair.
Pictures that are there already, made with the same settings, are not made again. Scores are those
of `eval/`: Gram (least over the references), Style (Hungarian block matching), LPIPS, FID, ArtFID;
one whose network is not given is left out. FID depends on the number of pictures: never compare
values across counts. Other systems' pictures under out/<system>/<family>/<content>.png are scored
with --only-score --system NAME. Scores go to out/<system>.json.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _shared import provenance
from torch import Tensor
from tqdm import tqdm

from eval.extras import FrechetDistance
from eval.features import load_lpips
from eval.metrics.style import VIEW_SIDE, gram_distance, style_features, style_match
from eval.sets import artfid
from eval.stats import describe
from eval.vision import load_inception, load_vgg
from pseudo_labels.stylegallery.stylizer import AttentionEnergyStylizer, find_references
from regionroute.errors import UserError, command
from regionroute.io import read_image, read_json, write_image, write_json
from regionroute.manifest import StyleSpec

INCEPTION_WIDTH = 2048


@command
def main(argv: list[str] | None = None) -> int:
    """Makes and scores the pictures."""
    args = _parser().parse_args(argv)
    contents = find_references(args.contents)
    root = Path(args.styles)
    families = {path.name: find_references(str(path)) for path in sorted(root.glob("*/"))}
    if not families:
        raise UserError(f"--styles {root}: no folder of a family here, make one a style")
    folder = args.out / args.system
    if not args.only_score:
        for family in tqdm(families, desc="families", unit="family"):
            make(args, root / family, contents, folder / family)
    scores = score(args, families, contents, folder)
    counts = {"families": len(families), "contents": len(contents)}
    result = args.out / f"{args.system}.json"
    write_json(result, provenance(("torch", "diffusers")) | counts | {"scores": scores})
    for name, value in scores.items():
        shown = value["value"] if isinstance(value, dict) else value.mean
        print(f"{name}: {shown:.4f}")
    print(f"{result} written")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contents", required=True, help="folder of photos")
    parser.add_argument("--styles", required=True, help="folder of folders of style pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--system", default="stylegallery", help="name of the folder of pictures")
    parser.add_argument("--only-score", action="store_true", help="make no pictures")
    parser.add_argument("--model", default=None, help="Stable Diffusion 1.5")
    parser.add_argument("--dino", default=None, help="DINOv2")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB for references' keys")
    parser.add_argument("--vgg", help="torchvision's VGG19 or VGG16: Gram and Style")
    parser.add_argument("--lpips", help="torchvision's AlexNet: LPIPS")
    parser.add_argument("--inception", help="torch-fidelity's Inception: FID")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings")
    return parser


def make(args: argparse.Namespace, family: Path, contents: list[Path], folder: Path) -> None:
    """One family's pictures; those that are there already, with these settings, are kept."""
    names = {key: getattr(args, key) for key in ("model", "dino") if getattr(args, key)}
    stylizer = AttentionEnergyStylizer(
        str(family),
        memory=args.memory,
        overrides=args.overrides,
        cache=str(args.out / "cache"),
        **names,
    )
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


def score(
    args: argparse.Namespace, families: dict[str, list[Path]], contents: list[Path], folder: Path
) -> dict[str, Any]:
    """All measures whose networks are given."""
    vgg = load_vgg(args.vgg) if args.vgg else None
    lpips = load_lpips(Path(args.lpips)) if args.lpips else None
    inception = load_inception(args.inception) if args.inception else None
    distance = FrechetDistance(INCEPTION_WIDTH) if inception else None
    values: dict[str, list[float]] = {}
    for family, files in tqdm(families.items(), desc="scoring", unit="family"):
        references = [read_image(file) for file in files]
        known = style_features(torch.stack([view(x) for x in references]), vgg) if vgg else None
        if inception and distance:
            distance.update(inception.encode_image(references), reference=True)
        for path in contents:
            made = folder / family / f"{path.stem}.png"
            if not made.is_file():
                raise UserError(f"{made}: this picture is missing, make it first")
            output = read_image(made)
            if vgg and known:
                found = style_features(view(output)[None], vgg)
                gram = float(gram_distance(found.grams, known.grams).min())
                match = style_match(found.blocks[0], known.blocks.flatten(0, 1))
                values.setdefault("gram", []).append(gram)
                values.setdefault("style", []).append(match)
            if lpips:
                pair = [view(read_image(path))[None], view(output)[None]]
                with torch.no_grad():
                    values.setdefault("lpips", []).append(float(lpips.spatial_map(*pair).mean()))
            if inception and distance:
                distance.update(inception.encode_image([output]), reference=False)
    scores: dict[str, Any] = {name: describe(found) for name, found in values.items()}
    fid = distance.compute() if distance else None
    if distance and fid is not None:
        counts = {"n": distance.counts[False], "n_reference": distance.counts[True]}
        scores["fid"] = {"value": fid, **counts}
        if "lpips" in values:
            mean = sum(values["lpips"]) / len(values["lpips"])
            scores["artfid"] = {"value": artfid(mean, fid), **counts}
    return scores


def view(image: Tensor) -> Tensor:
    """The picture at the measures' size, [3, 256, 256]."""
    small = F.interpolate(image[None], (VIEW_SIDE, VIEW_SIDE), mode="bilinear", antialias=True)
    return small[0].clamp(0, 1)


if __name__ == "__main__":
    raise SystemExit(main())
