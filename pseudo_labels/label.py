"""`regionroute label`: photos in, training pairs out."""

import argparse
import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pseudo_labels.build import BuildReport, PhotoSource, build
from pseudo_labels.curate.filters import Limits
from pseudo_labels.curate.judge import JudgeSettings
from pseudo_labels.job import BuildSettings
from pseudo_labels.parallel import MOST_WORKERS
from pseudo_labels.review.exclusions import add_excluded
from pseudo_labels.review.page import FILE_NAME
from pseudo_labels.review.preview import preview
from pseudo_labels.segment.folder import list_photos
from pseudo_labels.segment.given import read_labels
from pseudo_labels.segment.loading import DEFAULT_GROUNDER, DEFAULT_SEGMENTER, FinderSettings
from pseudo_labels.stylize.registry import load_styles, packaged_styles
from regionroute.errors import Parser, UserError, command
from regionroute.files import check_output_folder
from regionroute.models.devices import pick_device

_EXAMPLE = """examples:
  regionroute label --images photos/ --objects "dog,cat" --styles photos --out data/pets
  regionroute label --labels photos/labels.jsonl --styles photos --only neon,line-art --out data/p
  regionroute label --labels photos/labels.jsonl --out data/p --preview 8     # a look, in seconds
  regionroute label --images photos/ --objects dog --grounder salient --out data/dogs   # no hub

rows of a labels file, file names relative to it (or to --images):
  {"image": "dog.jpg", "objects": [{"word": "dog", "mask": "dog_mask.png"}]}
  {"file": "dog.jpg", "word": "dog", "mask": "dog_mask.png"}
  {"file_name": "dog.jpg", "attn_list": [["dog", "dog_mask.png"]]}            (TokenCompose)
in place of "mask": "segmentation" or "bbox" as in COCO, or nothing: the word is looked for.
A file ending in .json is an instances file of COCO.

objects without masks:
  --grounder   hub id or folder of Grounding DINO, OWLv2 or SAM 3; yolox:FILE (80 words);
               salient[:FILE] (one object a photo, one word)
  --segmenter  hub id or folder of SAM 1, 2 or 3; sam:vit_b, sam:FILE (segment-anything);
               offline[:FILE] (U2-Net-p and GrabCut); grabcut

An interrupted run goes on where it stopped; what cannot be used is listed in OUT/rejected.jsonl;
OUT/review.html shows all samples, and what is struck out there stays out.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0 when at least one sample was made.

    Raises:
        UserError: wrong arguments or files, or not one sample could be made.
    """
    args = _parser().parse_args(argv)
    _check(args)
    out = Path(args.out)
    check_output_folder(args.out)
    styles = load_styles(args.styles, args.only.split(",") if args.only else None)
    settings = _settings(args, len(styles))
    source = _source(args, out)
    if args.strike:
        add_excluded(out, Path(args.strike))
    if args.preview:
        print(preview(source, styles, out, settings, args.preview))
        return 0
    report = build(
        source,
        styles,
        out,
        settings,
        test_share=args.split_val,
        limit=args.limit,
        workers=args.workers,
        encoder=args.references,
        styles_per_photo=args.styles_per_photo,
    )
    print(_summary(report))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses what cannot be meant."""
    if not 0 <= args.split_val <= 1:
        raise UserError(f"--split-val is {args.split_val}: give a share from 0 to 1")
    for name in ("limit", "workers", "preview", "styles_per_photo"):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {value}: give 1 or more")
    if args.workers is not None and args.workers > MOST_WORKERS:
        raise UserError(f"--workers is {args.workers}: the most are {MOST_WORKERS}")
    if args.labels is None and args.images is None:
        raise UserError("give --labels FILE, or --images FOLDER with --objects")
    if args.labels is not None and args.objects is not None:
        raise UserError("--objects goes with --images; a labels file has words of its own")
    if args.labels is None and not _words(args.objects):
        raise UserError('--images needs --objects, the words to look for, such as "dog,cat"')


def _words(objects: str | None) -> list[str]:
    words = [" ".join(word.split()) for word in (objects or "").split(",")]
    return list(dict.fromkeys(word for word in words if word))


def _source(args: argparse.Namespace, out: Path) -> PhotoSource:
    if args.labels is not None:
        return PhotoSource(args.labels, *read_labels(args.labels, args.images))
    photos, rejected = list_photos(args.images, _words(args.objects), skip=out)
    return PhotoSource(args.images, photos, rejected)


def _settings(args: argparse.Namespace, styles: int) -> BuildSettings:
    grounder = args.grounder
    if grounder is None and args.labels is None:
        grounder = DEFAULT_GROUNDER
    if args.multi and styles < 2:
        raise UserError("--multi needs two styles or more, as each object gets its own")
    device = str(pick_device(args.device))
    limits = {field.name: getattr(args, field.name) for field in dataclasses.fields(Limits)}
    find = FinderSettings(grounder, args.segmenter, args.threshold, args.instances, device)
    judge = JudgeSettings(args.judge, device, args.caption) if args.judge else None
    if args.caption and judge is None:
        raise UserError("--caption needs --judge, the model that writes the captions")
    return BuildSettings(
        args.size, args.feather, Limits(**limits), find, judge, args.multi, args.whole
    )


def _parser() -> Parser:
    parser = Parser(
        prog="regionroute label",
        description="Turn photos into training pairs: each object in each style, everything else "
        "untouched, bit for bit.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--labels", metavar="FILE", help="photos with words, masks, outlines or boxes")
    add("--images", metavar="DIR", help="folder of photos; with --labels: where its photos lie")
    add("--objects", metavar="A,B", help="words to look for in every photo of --images")
    packaged = ", ".join(packaged_styles())
    add(
        "--styles",
        default="painting",
        metavar="FILE",
        help=f"styles file, or one that comes with the package: {packaged} (default: %(default)s)",
    )
    add("--only", metavar="A,B", help="only these styles of the file")
    turns = "each photo in N of the styles, which take turns (default: in all)"
    add("--styles-per-photo", type=int, metavar="N", help=turns)
    add("--out", required=True, metavar="DIR", help="folder of the data set")
    add("--limit", type=int, metavar="N", help="only the first N photos")
    usual = "(default: %(default)s)"
    add("--size", type=int, default=512, help=f"longest side of the pictures {usual}")
    soft = f"soft edge inside the mask, in pixels {usual}"
    add("--feather", type=int, default=0, metavar="PX", help=soft)
    multi = "samples a photo with two or three objects, each in its own style " + usual
    add("--multi", type=int, default=0, metavar="N", help=multi)
    everything = "also train on wholly restyled photos: experts then paint objects they never saw"
    add("--whole", action="store_true", help=everything)
    share = f'share of the photos that goes to the split "test" {usual}'
    add("--split-val", type=float, default=0.2, metavar="SHARE", help=share)
    add("--workers", type=int, metavar="N", help="processes (default: by the work)")
    add("--preview", type=int, metavar="N", help="only a page of N samples, in OUT/preview")
    add("--strike", metavar="FILE", help="list of samples to leave out, saved on the review page")
    _add_finding(parser)
    _add_limits(parser)
    return parser


def _add_finding(parser: Parser) -> None:
    group = parser.add_argument_group("finding objects that have no mask")
    usual = "(default: %(default)s)"
    ground = f"words to boxes (with --images: {DEFAULT_GROUNDER})"
    group.add_argument("--grounder", metavar="NAME", help=ground)
    cut = f"boxes to masks {usual}"
    group.add_argument("--segmenter", default=DEFAULT_SEGMENTER, metavar="NAME", help=cut)
    score = f"least score of a box {usual}"
    group.add_argument("--threshold", type=float, default=0.3, metavar="P", help=score)
    several = f"of several objects of a word: all, largest, or a number from the left {usual}"
    group.add_argument("--instances", default="all", metavar="WHICH", help=several)
    group.add_argument("--device", help="where networks run (default: a GPU if there is one)")


def _add_limits(parser: Parser) -> None:
    group = parser.add_argument_group("choosing samples")
    texts: dict[str, Any] = {
        "min_area": "smallest share of the picture an object may have",
        "max_area": "largest share",
        "max_border": "largest share of the picture's frame an object may cover",
        "min_score": "least confidence in a mask that was found",
        "min_strength": "least mean change of the pixels inside the mask, 0 to 1",
        "min_structure": "least correlation of edges or tones before and after, -1 to 1",
        "max_alike": "of 256 bits, how many may differ in photos that count as one; -1 keeps all",
    }
    for field in dataclasses.fields(Limits):
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=int if field.name == "max_alike" else float,
            default=field.default,
            metavar="X",
            help=f"{texts[field.name]} (default: %(default)s)",
        )
    judge = "hub id or folder of a vision-language model that is asked about every sample"
    group.add_argument("--judge", metavar="MODEL", help=judge)
    group.add_argument("--caption", action="store_true", help="--judge also describes each photo")
    encoder = "hub id or folder of an image encoder: names an example of the style for each sample"
    group.add_argument("--references", metavar="MODEL", help=encoder)


def _summary(report: BuildReport) -> str:
    splits = Counter(sample.split for sample in report.samples)
    photos = len({sample.provenance["photo_hash"] for sample in report.samples})
    parts = ", ".join(f"{splits[name]} {name}" for name in ("train", "test"))
    lines = [f"{len(report.samples)} samples of {photos} photos ({parts}): {report.manifest}"]
    if report.rejected:
        where = report.manifest.with_name("rejected.jsonl")
        lines.append(f"{len(report.rejected)} rejected, the reasons are in {where}")
    lines.append(f"look at them: {report.manifest.with_name(FILE_NAME)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(command(main)())
