"""``regionroute label``: turn photos, words and masks into training pairs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from regionroute.cli.options import (
    add_device,
    add_engine,
    add_renamed,
    add_styles,
    check_least,
    comma_list,
    command_parser,
    device_of,
    engine_of,
    given,
)
from regionroute.errors import Parser, UserError
from regionroute.remote import staged

if TYPE_CHECKING:
    from pseudo_labels.job import BuildSettings
    from pseudo_labels.label import LabelReport

EPILOG = """examples:
  regionroute label --images photos/ --objects "dog,cat" --styles photos --out data/pets
  regionroute label --labels photos/labels.jsonl --styles photos --only neon,line-art --out data/p
  regionroute label --labels photos/labels.jsonl --out data/p --preview 8     # seconds
  regionroute label --images photos/ --objects dog --grounder salient --out data/dogs   # offline
  regionroute label --labels s3://bucket/photos/labels.jsonl --out s3://bucket/pets   # or gs://
  regionroute label --labels photos/labels.jsonl --out data/p --license cc-by-4.0 --push me/pairs

rows of a labels file, file names relative to it (or to --images):
  {"image": "dog.jpg", "objects": [{"word": "dog", "mask": "dog_mask.png"}]}
  {"file": "dog.jpg", "word": "dog", "mask": "dog_mask.png"}
  {"file_name": "dog.jpg", "attn_list": [["dog", "dog_mask.png"]]}            (TokenCompose)
In place of "mask": "segmentation" or "bbox" as in COCO, or nothing: then the word is detected.
A file ending in .json is an instances file of COCO.

objects without masks:
  --grounder   hub id or folder of Grounding DINO, OWLv2 or SAM 3; yolox:FILE (80 words);
               salient[:FILE] (one object per photo, one word)
  --segmenter  hub id or folder of SAM 1, 2 or 3; sam:vit_b, sam:FILE (segment-anything);
               offline[:FILE] (U2-Net-p and GrabCut); grabcut

A stopped run resumes when the command is given again. Rejected photos and samples are listed in
OUT/rejected.jsonl. OUT/review.html shows all samples; those excluded there stay excluded.
`pseudo_labels.label.label` does the same in Python."""

# Help of each limit, with the default of pseudo_labels.curate.filters.Limits, which loads torch.
LIMITS = {
    "min_area": "smallest fraction of the image that an object may cover (0.01)",
    "max_area": "largest fraction of the image that an object may cover (0.7)",
    "max_border": "largest fraction of the image's frame that an object may touch (0.6)",
    "min_score": "smallest confidence of a mask that was detected (0.3)",
    "min_strength": "smallest mean change of the pixels inside the mask, 0 to 1 (0.04)",
    "min_structure": "smallest correlation of edges or tones before and after, -1 to 1 (0.08)",
    "max_alike": "bits of 256 in which photos may differ and still count as one; -1 keeps all (12)",
}


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "label",
        "Turn photos into training pairs: each object in each style, everything else "
        "unchanged, bit for bit.",
        EPILOG,
    )
    add = parser.add_argument
    add("--labels", metavar="FILE", help="photos with words, masks, outlines or boxes")
    add("--images", metavar="DIR", help="folder of photos; with --labels: folder of its photos")
    add("--objects", metavar="A,B", help="words to detect in every photo of --images")
    add("--out", required=True, metavar="DIR", help="folder of the data set")
    add_styles(parser, "painting")
    turns = "make each photo in N of the styles, which take turns (in all)"
    add("--styles-per-photo", type=int, metavar="N", help=turns)
    add("--limit", type=int, metavar="N", help="use only the first N photos (all)")
    add("--size", type=int, metavar="PX", help="longest side of the images (512)")
    add("--feather", type=int, metavar="PX", help="width of a soft edge inside the mask (0)")
    multi = "samples per photo with two or three objects, each in its own style (0)"
    add("--multi", type=int, metavar="N", help=multi)
    whole = "add pairs of wholly restyled photos: experts then paint objects they never saw"
    add("--whole", action="store_true", help=whole)
    crops = "crops of each photo to train on besides, where photos are few (0)"
    add("--crops", type=int, metavar="N", help=crops)
    share = 'fraction of the photos that goes to the split "test" (0.2)'
    add("--test-share", type=float, metavar="P", help=share)
    add_renamed(parser, "--split-val", "--test-share", type=float)
    held = 'styles whose samples all go to the split "test", for tests on unseen styles (none)'
    add("--hold-out-styles", metavar="A,B", help=held)
    add_engine(parser)
    add("--preview", type=int, metavar="N", help="make only a page of N samples, in OUT/preview")
    add("--exclude", metavar="FILE", help="exclude the samples of a list saved on the review page")
    add_renamed(parser, "--strike", "--exclude")
    _add_finding(parser)
    _add_limits(parser)
    _add_sharing(parser)
    return parser


def _add_sharing(parser: Parser) -> None:
    add = parser.add_argument_group("sharing on the Hugging Face Hub").add_argument
    add("--license", metavar="NAME", help="licence of photos and pairs, for OUT/README.md (none)")
    add("--push", metavar="OWNER/NAME", help="upload the finished data set; needs --license")
    add("--public", action="store_true", help="make a new data set public (private)")
    add("--dry-run", action="store_true", help="with --push: list what would be uploaded")


def _add_finding(parser: Parser) -> None:
    group = parser.add_argument_group("detection of objects that have no mask")
    add = group.add_argument
    grounder = "model from words to boxes (with --images: IDEA-Research/grounding-dino-tiny)"
    add("--grounder", metavar="NAME", help=grounder)
    segmenter = "model from boxes to masks (facebook/sam2.1-hiera-tiny)"
    add("--segmenter", metavar="NAME", help=segmenter)
    add("--threshold", type=float, metavar="P", help="smallest score of a box (0.3)")
    several = "which objects of a word: all, largest, or a number from the left (all)"
    add("--instances", metavar="WHICH", help=several)
    add_device(group)


def _add_limits(parser: Parser) -> None:
    group = parser.add_argument_group("choice of samples")
    for name, text in LIMITS.items():
        kind = int if name == "max_alike" else float
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X", help=text)
    judge = "ask a vision-language model (hub id or folder) about every sample (no judge)"
    group.add_argument("--judge", metavar="NAME", help=judge)
    group.add_argument("--caption", action="store_true", help="let --judge describe each photo too")
    references = "choose a style image for each sample with an image encoder (hub id or folder)"
    group.add_argument("--references", metavar="NAME", help=references)


@staged
def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0 if at least one sample was made.

    Raises:
        UserError: wrong arguments or files, or not one sample could be made.
    """
    args = parser().parse_args(argv)
    names = ("limit", "preview", "styles_per_photo")
    check_least(args, dict.fromkeys(names, 1))
    engine = engine_of(args)
    if args.test_share is not None and not 0 <= args.test_share <= 1:
        raise UserError(f"--test-share {args.test_share}: must be between 0 and 1")
    if args.caption and args.judge is None:
        raise UserError("--caption needs --judge, the model that writes the captions")
    _check_sharing(args)
    from pseudo_labels.label import label

    options = given(
        args, "labels", "images", "styles_per_photo", "test_share", "limit", "exclude",
        "references", "preview", "license",
    )  # fmt: skip
    report = label(
        args.out,
        objects=comma_list(args.objects),
        styles=args.styles,
        only=args.only,
        settings=_settings(args),
        hold_out_styles=comma_list(args.hold_out_styles) or (),
        engine=engine,
        **options,
    )
    print(_summary(report))
    if args.push:
        _push(args)
    return 0


def _check_sharing(args: argparse.Namespace) -> None:
    """Refuses an upload that would fail, before the work."""
    if not args.push:
        if args.public or args.dry_run:
            raise UserError("--public and --dry-run go with --push OWNER/NAME")
        return
    if not args.license:
        raise UserError("--push needs --license NAME, that of the photos and the pairs")
    if args.preview:
        raise UserError("--push uploads the whole data set: give it without --preview")
    from regionroute.hub import check_repo

    check_repo(args.push)


def _push(args: argparse.Namespace) -> None:
    from pseudo_labels.card import UPLOADED
    from regionroute.hub import plan_upload, push

    upload = plan_upload(args.out, args.push, "dataset", UPLOADED, private=not args.public)
    print(upload.describe() if args.dry_run else push(upload))


def _settings(args: argparse.Namespace) -> BuildSettings:
    from pseudo_labels.curate.filters import Limits
    from pseudo_labels.curate.judge import JudgeSettings
    from pseudo_labels.job import BuildSettings
    from pseudo_labels.segment.loading import FinderSettings

    device = device_of(args)
    found = given(args, "grounder", "segmenter", "threshold", "instances")
    return BuildSettings(
        **given(args, "size", "feather", "multi", "crops"),
        whole=args.whole,
        limits=Limits(**given(args, *LIMITS)),
        find=FinderSettings(**found, device=device),
        judge=JudgeSettings(args.judge, device, args.caption) if args.judge else None,
    )


def _summary(report: LabelReport) -> str:
    parts = ", ".join(f"{report.splits[name]} {name}" for name in ("train", "test"))
    lines = [f"{len(report.samples)} samples of {report.photos} photos ({parts}): "]
    lines[0] += str(report.manifest)
    if report.rejected:
        where = report.manifest.with_name("rejected.jsonl")
        lines.append(f"{len(report.rejected)} rejected, the reasons are in {where}")
    lines.append(f"review them: {report.review}")
    return "\n".join(lines)
