"""Selection of metrics by name and group, and what they need."""

from collections.abc import Sequence

from eval.metrics.catalogue import AGGREGATE, CATALOGUE, COMPONENTS, GROUPS
from regionroute.errors import UserError, nearest

SET_METRICS = {  # of no single sample, see eval/sets.py: what they need and the group they are in
    "fid": (("inception", "styles"), "stylegallery"),
    "artfid": (("inception", "styles", "lpips"), "stylegallery"),
}


def choose_metrics(text: str, judged: bool = False) -> list[str]:
    """Names of the selected metrics, in the catalogue's order.

    Args:
        text: names and groups with commas between them; "all" is every one.
        judged: whether there is a judge; its four questions are then included.

    Raises:
        UserError: an unknown name.
    """
    asked = {word.strip() for word in text.split(",") if word.strip()}
    groups = {info.name: info.group for info in CATALOGUE.values()}
    groups |= {name: group for name, (_, group) in SET_METRICS.items()}
    known = {*groups, *GROUPS, "all"}
    for word in sorted(asked - known):
        close = nearest(word, sorted(known))
        raise UserError(f"--metrics {word}: unknown, the nearest known name is {close!r}")
    if not asked:
        raise UserError(f"--metrics: no name given, groups are {', '.join(GROUPS)} and all")
    asked |= {"vlm"} if judged else set()
    if asked & {AGGREGATE, "aggregate"}:  # never the only number
        asked |= set(COMPONENTS)
    return [n for n, group in groups.items() if asked & {n, group, "all"}]


def needs_of(names: Sequence[str]) -> set[str]:
    """Everything that these metrics need."""
    found: set[str] = set()
    for name in names:
        found.update(SET_METRICS[name][0] if name in SET_METRICS else CATALOGUE[name].needs)
    return found
