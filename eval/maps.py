"""``regionroute maps``: a page of region maps, over images and in numbers."""

import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from eval.edits import map_path, parse_edits
from eval.metrics import MAP_METRICS
from eval.metrics.build import build_metrics
from eval.report.arguments import maps_parser as parser
from eval.report.maps_view import maps_view
from eval.report.page import check_page, write_page
from eval.scoring import Row, Scorer
from eval.sources import select_split
from eval.summary import edit_methods, summarise
from regionroute.cli.options import check_least
from regionroute.data.manifest import EditSample, load_manifest
from regionroute.errors import UserError, command


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command; prints the means and the page's path."""
    args = parser().parse_args(argv)
    check_least(args, {"count": 1, "seed": 0})
    check_page("--out", args.out)
    out = Path(args.out)
    methods = parse_edits(args.edits)
    manifest = load_manifest(args.manifest)
    samples = select_split(manifest, args.split)
    require_maps(methods, samples)
    metrics = build_metrics(names=MAP_METRICS)
    # The page embeds its images, so file names relative to the working folder will do.
    scorer = Scorer(manifest, methods, metrics, Path(), on_problem=_say)
    rows = scorer.score(samples)
    require_readable(rows)
    view = maps_view(
        summarise(rows, MAP_METRICS, args.seed),
        rows,
        choose(rows, args.count, args.seed),
        Path(),
    )
    source = {"path": str(args.manifest), "split": args.split, "samples": len(samples)}
    write_page("maps.html.j2", out, title=args.title, manifest=source, **view)
    for line in view["lines"]:
        print(line)
    print(f"maps: {out}")
    return 0


def require_maps(methods: dict[str, Path], samples: Sequence[EditSample]) -> None:
    """Rejects a folder without a single map of these samples.

    Raises:
        UserError: naming the folder and the command that makes maps.
    """
    for folder in methods.values():
        if not any(map_path(folder, sample.id).exists() for sample in samples):
            raise UserError(
                f"--edits {folder}: no attention map of the {len(samples)} samples there "
                f"({samples[0].id}.map.png and so on), make them with "
                "`regionroute edit --manifest … --out-dir …`"
            )


def require_readable(rows: Sequence[Row]) -> None:
    """Rejects a method without a single measurable map.

    Raises:
        UserError: naming the method and what was wrong with its first sample.
    """
    for method in edit_methods(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == method]
        if not any(has_map(row) for row in own):
            problems = (row["error"] or row["map_problem"] for row in own)
            first = next((problem for problem in problems if problem), "maps are missing")
            raise UserError(f"{method}: no map could be read, the first problem is: {first}")


def has_map(row: Row) -> bool:
    """Whether a row has numbers of a map."""
    return not row["error"] and row["metrics"][MAP_METRICS[0]] is not None


def choose(rows: Sequence[Row], count: int, seed: int) -> list[list[Row]]:
    """The samples to show, as the rows of their edits in the samples' order.

    Greedy: the next sample is the one that adds most: an image not shown yet, then the style
    shown least, then the flag shown least; ties are broken at random. Samples with a map of every
    method come first; those without any map are not shown.

    Args:
        rows: of every sample and method.
        count: the most samples.
        seed: of the draw.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if edit_methods([row["method"]]):
            groups.setdefault(row["id"], []).append(row)
    places = {sample_id: place for place, sample_id in enumerate(groups)}
    waiting = [group for group in groups.values() if any(map(has_map, group))]
    random.Random(seed).shuffle(waiting)
    shown: Counter[tuple[str, str]] = Counter()

    def rank(group: list[Row]) -> tuple[float, ...]:
        lacking = sum(not has_map(row) for row in group)
        row = group[0]
        image = shown["image", row["files"]["source"]]
        style = sum(shown["style", style] for style in row["styles"])
        flags = [shown["flag", flag] for flag in row["flags"] or [""]]
        return lacking, image, style, min(flags), sum(flags)

    chosen: list[list[Row]] = []
    while waiting and len(chosen) < count:
        best = min(waiting, key=rank)
        waiting.remove(best)
        chosen.append(best)
        row = best[0]
        shown.update(("style", style) for style in row["styles"])
        shown.update(("flag", flag) for flag in row["flags"] or [""])
        shown["image", row["files"]["source"]] += 1
    return sorted(chosen, key=lambda group: places[group[0]["id"]])


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


if __name__ == "__main__":
    raise SystemExit(main())
