"""Arguments that are URLs of object stores; imports nothing heavy."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable

PROTOCOLS = "s3|gs|gcs|az|abfs|memory|file"
ARGUMENT = re.compile(rf"^(.*=)?((?:{PROTOCOLS})://\S*)$")  # also --out=URL and NAME=URL


def staged(main: Callable[[list[str] | None], int]) -> Callable[[list[str] | None], int]:
    """Let the arguments of a command be URLs, see `regionroute.remote`.

    Args:
        main: takes the argument list (None: the process's own) and returns the exit code.

    Returns:
        A function of the same form.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        arguments = sys.argv[1:] if argv is None else argv
        if not any(ARGUMENT.match(argument) for argument in arguments):
            return main(argv)
        from regionroute.remote import run_staged

        return run_staged(main, arguments)

    return run
