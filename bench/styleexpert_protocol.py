r"""StyleExpert's protocol on folders: unseen styles x 50 random pairs x 2 seeds, then scored.

    python bench/styleexpert_protocol.py --contents DIR --styles DIR --out out/protocol \
        --base black-forest-labs/FLUX.1-Kontext-dev --experts runs/kontext_styleexpert/experts

`styles/` holds one folder per style that was not trained, with its images (published: 21 styles),
`contents/` the photos. Per style 50 pairs of a photo and a style image are drawn at random, without
repetition, and the whole photo is restyled with 2 seeds: 2100 images for 21 styles. Which pairs
were published is not stated; ours depend on the names of the files and on --pair-seed alone.
Images made earlier with the same settings are reused. Another system's images, named as in
out/pairs.json, are scored with --only-score --system NAME from out/NAME/.

Scores, where the network is given (`regionroute score --help` says in which form):
    clip, dino   cosine of output and photo x 100, higher is better (--clip, --dino)
    csd          cosine of output and style image x 100, higher is better (--csd)
    dreamsim     distance of output and style image x 100, lower is better (--dreamsim)
    aesthetic    LAION's predictor on CLIP ViT-L/14, higher is better (--clip, --aesthetic)
The paper does not state the pairs of CLIP and DINO, nor its Qwen score, which is left out. The
unedited photos are scored too, as a floor. Scores go to out/<system>.json.
"""

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from _shared import provenance
from tqdm import tqdm

from eval.encoders.features import load_clip
from eval.encoders.vision import load_aesthetic, load_csd, load_dino, load_dreamsim
from eval.metrics.embedding import cosine
from pseudo_labels.stylegallery.stylizer import find_references
from regionroute.data.images import read_image, write_image
from regionroute.data.stats import describe
from regionroute.errors import UserError, command
from regionroute.files import file_hash, read_json, settings_hash, write_json
from regionroute.models.devices import pick_device
from regionroute.pipeline import RegionRoutePipeline

PROMPT = "make the [image] in {reference} style"  # as for the pairs of `label --whole`


@dataclass(frozen=True)
class Pair:
    """One image to make.

    Attributes:
        file: its name in the system's folder.
        content: the photo.
        style: the style image.
        seed: of the noise.
    """

    file: str
    content: str
    style: str
    seed: int


@command
def main(argv: list[str] | None = None) -> int:
    """Make and score the images."""
    args = _parser().parse_args(argv)
    pairs = draw_pairs(args.contents, args.styles, args.pairs, args.seeds, args.pair_seed)
    write_json(args.out / "pairs.json", [asdict(pair) for pair in pairs])
    folder = args.out / args.system
    if not args.only_score:
        make(args, pairs, folder)
    missing = [pair.file for pair in pairs if not (folder / pair.file).is_file()]
    if missing:
        raise UserError(f"{folder / missing[0]}: this image is missing; make it first")
    score = measures(args)
    scores = score(pairs, lambda pair: folder / pair.file)
    floor = score(pairs, lambda pair: Path(pair.content))
    styles = {Path(pair.style).parent.name for pair in pairs}
    facts = provenance(("torch", "diffusers")) | {"styles": len(styles), "images": len(pairs)}
    result = args.out / f"{args.system}.json"
    write_json(result, facts | {"scores": scores, "unedited": floor})
    for name, found in scores.items():
        print(f"{name}: {found.mean:.4f} (unedited {floor[name].mean:.4f})")
    print(f"{len(pairs)} images, {result} written")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--contents", required=True, help="folder of photos")
    add("--styles", required=True, help="folder with one folder of images per unseen style")
    add("--out", type=Path, required=True)
    add("--base", help="base (default: that of the experts)")
    add("--experts", default="by_example", help="experts selected by an example image")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    add("--pairs", type=int, default=50, help="pairs per style (50)")
    add("--seeds", type=int, default=2, help="images per pair (2)")
    add("--pair-seed", type=int, default=0, help="seed of the choice of pairs (0)")
    add("--system", default="regionroute", help="name of the folder of images")
    add("--only-score", action="store_true", help="score existing images only")
    for network in ("clip", "dino", "csd", "dreamsim", "aesthetic"):
        add(f"--{network}", help=f"file or folder of {network}")
    return parser


def draw_pairs(contents: str, styles: str, count: int, seeds: int, seed: int) -> list[Pair]:
    """The images to make.

    Args:
        contents: folder of photos.
        styles: folder of a folder per style.
        count: pairs per style.
        seeds: images per pair.
        seed: of the choice.

    Raises:
        UserError: no style, or one with fewer than `count` different pairs.
    """
    photos = find_references(contents)
    folders = sorted(path for path in Path(styles).glob("*/") if path.is_dir())
    if not folders:
        raise UserError(f"--styles {styles}: no folder of a style in it; make one per style")
    pairs = []
    for folder in folders:
        every = [(photo, image) for photo in photos for image in find_references(str(folder))]
        if len(every) < count:
            raise UserError(
                f"{folder}: {len(every)} different pairs with the photos, {count} are drawn: add "
                "images or lower --pairs"
            )
        drawn = random.Random(f"{seed} {folder.name}").sample(every, count)
        pairs += [
            Pair(f"{folder.name}/{place:03d}-{number}.png", str(photo), str(image), number)
            for place, (photo, image) in enumerate(drawn)
            for number in range(seeds)
        ]
    return pairs


def make(args: argparse.Namespace, pairs: list[Pair], folder: Path) -> None:
    """Make the images; those made earlier with these settings are kept."""
    pipe = RegionRoutePipeline.from_pretrained(
        args.base,
        experts=args.experts,
        torch_dtype=getattr(torch, args.dtype),
        device=pick_device(args.device),
    )
    experts = Path(str(pipe.editor.experts_dir)) / "experts.json"
    made_with = [pipe.backbone.fingerprint, file_hash(experts), args.dtype, PROMPT]
    record = folder / "settings.json"
    known = read_json(record) if record.is_file() else {}
    for pair in tqdm(pairs, desc="editing", unit="image"):
        inputs = [file_hash(Path(pair.content)), file_hash(Path(pair.style)), pair.seed]
        key = settings_hash([*made_with, *inputs])
        if known.get(pair.file) == key and (folder / pair.file).is_file():
            continue
        edited = pipe(
            read_image(pair.content),
            style_image=read_image(pair.style),
            prompt=PROMPT,
            mode="plain",
            seed=pair.seed,
            output_type="pt",
        )
        write_image(folder / pair.file, edited.images[0])
        known[pair.file] = key
        write_json(record, known)


def measures(args: argparse.Namespace) -> Callable[..., dict[str, Any]]:
    """All scores whose networks are given, as a function of pairs and the files to score."""
    clip = load_clip(args.clip) if args.clip else None
    dino = load_dino(args.dino) if args.dino else None
    csd = load_csd(args.csd) if args.csd else None
    dreamsim = load_dreamsim(args.dreamsim) if args.dreamsim else None
    aesthetic = load_aesthetic(args.aesthetic) if args.aesthetic else None
    if aesthetic and not clip:
        raise UserError("--aesthetic needs --clip, whose embeddings it reads: ViT-L/14")

    def of(pair: Pair, file: Path) -> Iterator[tuple[str, float]]:
        made, photo, style = ([read_image(x)] for x in (file, pair.content, pair.style))
        for name, network, other in (
            ("clip", clip, photo),
            ("dino", dino, photo),
            ("csd", csd, style),
        ):
            if network:
                found = cosine(network.encode_image(made), network.encode_image(other))
                yield name, 100 * float(found)
        if dreamsim:
            yield "dreamsim", 100 * float(dreamsim.distance(made, style))
        if aesthetic and clip:
            yield "aesthetic", float(aesthetic(clip.encode_image(made)))

    def score(pairs: list[Pair], file: Callable[[Pair], Path]) -> dict[str, Any]:
        values: dict[str, list[float]] = {}
        for pair in tqdm(pairs, desc="scoring", unit="image"):
            for name, value in of(pair, file(pair)):
                values.setdefault(name, []).append(value)
        return {name: describe(found) for name, found in values.items()}

    return score


if __name__ == "__main__":
    raise SystemExit(main())
