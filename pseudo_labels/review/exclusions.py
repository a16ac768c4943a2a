"""Samples that a person excluded from a data set."""

from collections.abc import Iterable
from pathlib import Path

from regionroute.errors import UserError
from regionroute.files import atomic_write, numbered_lines

EXCLUDED_FILE = "exclude.txt"
OLD_FILE = "struck.txt"  # its name in data sets made before; still read


def read_excluded(out: Path) -> frozenset[str]:
    """Ids of samples that are kept out of the manifest.

    Args:
        out: folder of the data set; `exclude.txt` in it holds one id per line, "#" starts a
            comment. `struck.txt`, its former name, is read as well.

    Raises:
        UserError: a file is not text.
    """
    files = [out / name for name in (EXCLUDED_FILE, OLD_FILE)]
    return frozenset[str]().union(*(_ids(file) for file in files if file.exists()))


def add_excluded(out: Path, source: Path) -> None:
    """Add the ids of another file, such as one saved on the review page, to the data set's own.

    Args:
        out: folder of the data set.
        source: one id per line.

    Raises:
        UserError: there is no such file, or it is not text.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such list of excluded samples, save it on the review page")
    write_excluded(out, read_excluded(out) | _ids(source))


def write_excluded(out: Path, ids: Iterable[str]) -> None:
    """Make these ids the whole list of a data set; a list under the former name goes into it.

    Args:
        out: folder of the data set.
        ids: of the samples to exclude.
    """
    with atomic_write(out / EXCLUDED_FILE) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in sorted(ids)), encoding="utf-8")
    (out / OLD_FILE).unlink(missing_ok=True)  # after the new list: an id is never lost


def _ids(file: Path) -> frozenset[str]:
    lines = (line.split("#")[0].strip() for _, line in numbered_lines(file))
    return frozenset(line for line in lines if line)
