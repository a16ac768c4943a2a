"""Training pairs from photos, as a function: `label`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pseudo_labels.build import BuildReport, PhotoSource, build
from pseudo_labels.card import write_card
from pseudo_labels.job import BuildSettings
from pseudo_labels.review.exclusions import add_excluded
from pseudo_labels.review.page import FILE_NAME
from pseudo_labels.review.preview import preview as build_preview
from pseudo_labels.segment.folder import list_photos
from pseudo_labels.segment.given import read_labels
from pseudo_labels.segment.loading import DEFAULT_GROUNDER
from pseudo_labels.stylize.paired import PairedStylizer
from pseudo_labels.stylize.registry import load_styles
from regionroute.engines.base import EngineSettings
from regionroute.errors import UserError, nearest
from regionroute.files import check_output_folder


@dataclass(frozen=True)
class LabelReport(BuildReport):
    """What was made.

    Attributes:
        manifest: the manifest's file; `regionroute.load_manifest` reads it.
        samples: its rows.
        rejected: photos, objects and samples that were not used, with reasons.
    """

    @property
    def photos(self) -> int:
        """Number of photos that samples were made of."""
        return len({sample.provenance["photo_hash"] for sample in self.samples})

    @property
    def splits(self) -> Counter[str]:
        """Number of samples by split."""
        return Counter(sample.split for sample in self.samples)

    @property
    def review(self) -> Path:
        """The page that shows all samples."""
        return self.manifest.with_name(FILE_NAME)


def label(
    out: str | Path,
    *,
    labels: str | Path | None = None,
    images: str | Path | None = None,
    objects: Sequence[str] | None = None,
    styles: str | Path = "painting",
    only: Sequence[str] | None = None,
    styles_per_photo: int | None = None,
    settings: BuildSettings | None = None,
    references: str | None = None,
    test_share: float = 0.2,
    hold_out_styles: Sequence[str] = (),
    limit: int | None = None,
    workers: int | None = None,
    engine: EngineSettings | None = None,
    exclude: str | Path | None = None,
    preview: int | None = None,
    license: str | None = None,
) -> LabelReport:
    """Make training pairs: each object of each photo in each style, everything else unchanged.

    A stopped call resumes when it is made again; only what is missing is made.

    Args:
        out: folder of the data set; made if missing.
        labels: labels file: photos with words, masks, outlines or boxes (JSON lines, or COCO).
        images: folder of photos; with `labels`: where its photos are.
        objects: without `labels`: words to detect in every photo.
        styles: styles file, or the name of a packaged one (`packaged_styles`).
        only: these styles of the file, None for all.
        styles_per_photo: each photo in so many of the styles, which take turns; None for all.
        settings: size, limits of what is used, and how objects without masks are detected.
        references: image encoder (hub id or folder) that chooses a style image for each sample.
        test_share: fraction of the photos whose samples go to the split "test".
        hold_out_styles: styles that go to the split "test" with all their samples, so that no
            expert is trained for them.
        limit: only the first so many photos.
        workers: processes, None to choose by the amount of work.
        engine: where photos are labelled, such as a Ray cluster; its number of workers goes first.
        exclude: list of sample ids, saved on the review page, to exclude from now on.
        preview: make only so many samples, in ``out/preview``.
        license: of the photos and the pairs, as the hub names it, for the dataset card.

    Returns:
        The samples, and what was rejected and why.

    Raises:
        UserError: wrong arguments or files, or not one sample could be made.
    """
    check_output_folder(out)
    out, objects = Path(out), list(objects or ())
    _check(labels, images, objects, test_share)
    chosen = load_styles(styles, only)
    _check_held_out(hold_out_styles, [entry.spec.name for entry in chosen])
    settings = settings or BuildSettings()
    if settings.multi and len(chosen) < 2:
        raise UserError("--multi needs two styles or more, as each object gets its own")
    if settings.crops and any(entry.stylizer == PairedStylizer.kind for entry in chosen):
        raise UserError("--crops: restyled photos that exist already have no parts, leave it out")
    if labels is None and settings.find.grounder is None:
        find = dataclasses.replace(settings.find, grounder=DEFAULT_GROUNDER)
        settings = dataclasses.replace(settings, find=find)
    source = _source(labels, images, objects, out)
    if exclude is not None:
        add_excluded(out, Path(exclude))
    if preview is not None:
        return LabelReport(**vars(build_preview(source, chosen, out, settings, preview)))
    report = build(
        source,
        chosen,
        out,
        settings,
        test_share=test_share,
        hold_out_styles=hold_out_styles,
        limit=limit,
        engine=engine or EngineSettings(workers=workers),
        encoder=references,
        styles_per_photo=styles_per_photo,
    )
    write_card(out, report.samples, report.rejected, license)
    return LabelReport(**vars(report))


def _check(
    labels: str | Path | None, images: str | Path | None, objects: Sequence[str], test_share: float
) -> None:
    """Refuses what cannot be meant."""
    if not 0 <= test_share <= 1:
        raise UserError(f"test_share {test_share}: must be between 0 and 1")
    if labels is None and images is None:
        raise UserError("give --labels FILE, or --images FOLDER with --objects")
    if labels is not None and objects:
        raise UserError("--objects goes with --images; a labels file has words of its own")
    if labels is None and not objects:
        raise UserError('--images needs --objects, the words to detect, such as "dog,cat"')


def _check_held_out(held: Sequence[str], styles: list[str]) -> None:
    """Refuses styles that are not made, and a split "train" without any."""
    for name in held:
        if name not in styles:
            raise UserError(
                f"--hold-out-styles: there is no style {name!r} among those that are made, the "
                f"nearest is {nearest(name, styles)!r}"
            )
    if set(held) == set(styles):
        raise UserError("--hold-out-styles names every style: leave at least one to train on")


def _source(
    labels: str | Path | None, images: str | Path | None, objects: list[str], out: Path
) -> PhotoSource:
    if labels is not None:
        return PhotoSource(str(labels), *read_labels(labels, images))
    assert images is not None
    photos, rejected = list_photos(images, objects, skip=out)
    return PhotoSource(str(images), photos, rejected)
