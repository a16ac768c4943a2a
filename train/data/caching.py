"""Fills a run's cache: the work shared by all processes, what there is already left alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from regionroute.data.manifest import load_manifest
from regionroute.errors import UserError
from train.data.cache import Cache, CacheEntry
from train.data.examples import TrainingExamples
from train.data.files import Files
from train.data.packed import in_view
from train.engine import distributed
from train.engine.distributed import Ranks

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig
    from regionroute.data.buckets import Window
    from regionroute.data.manifest import EditSample
    from train.data.encode import Encoder
    from train.data.selection import Selection


def hash_files(config: RunConfig, files: Files, ranks: Ranks) -> None:
    """Has each of several processes hash a share of the images; all must call it.

    One process alone hashes as it goes. Mistakes are left to whoever needs the images.
    """
    if ranks.world == 1:
        return
    distributed.agree(lambda: _hash_share(config, files, ranks))
    for rows in distributed.everyones(files.news()):
        files.learn(rows)


def _hash_share(config: RunConfig, files: Files, ranks: Ranks) -> None:
    try:
        manifest = load_manifest(config.data.manifest)
        if manifest.columns is not None and config.experts.router != "similarity":
            return  # the hashes are in the columns
        names = {
            name
            for sample in manifest.samples
            if sample.split == config.data.split
            for name in sample.files
        }
        paths = [manifest.path(name) for name in sorted(names)[ranks.rank :: ranks.world]]
    except UserError:
        return
    files.look_at(paths, show=ranks.main)


def provide(
    cache: Cache, keys: Mapping[str, np.ndarray], entries: Iterable[CacheEntry], ranks: Ranks
) -> None:
    """Computes what the cache lacks, each process a share; all must call it.

    Args:
        cache: of all processes.
        keys: of all entries by kind, uint64, the same on every process.
        entries: the same; looked at only if something is absent.
        ranks: this process's place.

    Raises:
        SharedMistake: an image or mask that cannot be used.
    """
    own = distributed.agree(lambda: {kind: cache.absent(kind, k) for kind, k in keys.items()})
    found = distributed.everyones((own, cache.remarks))
    absent = found[0][0]  # one view for all: another run may be writing meanwhile
    missing = sum(map(len, absent.values()))
    if ranks.main:
        for remark in sorted({remark for _, remarks in found for remark in remarks}):
            print(remark, flush=True)
        there = sum(len(np.unique(k)) for k in keys.values()) - missing
        print(f"cache {cache.name}: {there} entries cached, {missing} to encode", flush=True)
    if not missing:
        return
    share = {kind: _share(absent[kind], k, ranks) for kind, k in keys.items()}
    written = distributed.agree(lambda: cache.fill(entries, only=share, show=ranks.main))
    for theirs in distributed.everyones(written):
        cache.adopt(theirs)
    if ranks.main:
        cache.save_index()


def _share(absent: np.ndarray, keys: np.ndarray, ranks: Ranks) -> np.ndarray:
    """This process's part of the absent keys, sorted: those of neighbouring samples.

    Entries that are needed together get into the same files, which a streamed cache reads whole.
    """
    found, first = np.unique(keys, return_index=True)
    order = absent[np.argsort(first[np.searchsorted(found, absent)])]
    return np.sort(np.array_split(order, ranks.world)[ranks.rank])


def seen_of(encoder: Encoder, selection: Selection) -> tuple[Selection, tuple[float, float]]:
    """The selection without samples of which the model would not see an object at all.

    Returns:
        It, and the share of a picture that is cut off: the mean and the most.

    Raises:
        UserError: an image is missing or damaged, or nothing is left.
    """
    seen, cut = _seen(encoder, selection)
    kept = np.flatnonzero(seen)
    if not len(kept):
        raise UserError(
            "data.buckets: every object lies at an edge that is cut off, crop the images nearer "
            "to a square"
        )
    lost = len(selection.samples) - len(kept)
    reason = {"an object lies at an edge that is cut off": lost} if lost else {}
    seen_alone = replace(
        selection, samples=selection.samples.only(kept), skipped=selection.skipped | reason
    )
    return seen_alone, (float(sum(cut[kept].tolist()) / len(kept)), float(cut[kept].max()))


def _seen(encoder: Encoder, selection: Selection) -> tuple[np.ndarray, np.ndarray]:
    """Whether the model sees something of each object of each sample, and what is cut off."""
    samples, columns = selection.samples, encoder.manifest.columns
    seen, cut = np.zeros(len(samples), bool), np.zeros(len(samples))
    plain = np.zeros(len(samples), bool)
    if columns is not None:
        plain = columns.numbers["regions"][samples.rows] == 1
        seen[plain], cut[plain] = in_view(columns, samples.rows[plain], encoder.size_of)
    for place in np.flatnonzero(~plain).tolist():
        sample = samples[place]
        window = encoder.window_of(sample)
        seen[place], cut[place] = _in_view(window, sample), window.lost
    return seen, cut


def _in_view(window: Window, sample: EditSample) -> bool:
    """Whether something of each object, judged by its box, is in the window."""
    return all(
        y0 < window.top + window.height
        and y1 > window.top
        and x0 < window.left + window.width
        and x1 > window.left
        for y0, x0, y1, x1 in (region.box for region in sample.regions)
    )


def of_one_size(encoder: Encoder, samples: Sequence[EditSample], count: int) -> list[EditSample]:
    """The first samples of the size that most of them have; a sheet of previews needs one.

    Raises:
        UserError: an image is missing or damaged.
    """
    groups: dict[tuple[int, int], list[EditSample]] = {}
    for sample in samples:
        own = encoder.files.of(encoder.manifest.path(sample.context)).size
        groups.setdefault(encoder.size_of(*own), []).append(sample)
    return max(groups.values(), key=len, default=[])[:count]


def bucket_remark(examples: TrainingExamples, lost: tuple[float, float]) -> str:
    """At which sizes the model sees the images; and what `seen_of` says is cut off."""
    counts = np.bincount(examples.buckets, minlength=len(examples.sizes)).tolist()
    found = sorted(zip(counts, examples.sizes, strict=True), reverse=True)
    shown = ", ".join(f"{width}x{height} ({count})" for count, (height, width) in found[:8])
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    cut = ""
    if lost[1]:
        cut = f"; edges cut off: {lost[0]:.1%} of an image on average, {lost[1]:.1%} at most"
    return f"images at {shown}{more}{cut}"
