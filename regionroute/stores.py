"""Object stores and other places that fsspec opens by URL: connecting, and trying again.

Credentials are those that fsspec's libraries find in the environment.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from regionroute.errors import StoreError, UserError

LIBRARIES = ("adlfs", "aiohttp", "azure", "botocore", "gcsfs", "google", "s3fs")
ATTEMPTS = 3
PAUSE = 1.0  # seconds before the second attempt, twice that before the third
Result = TypeVar("Result")


def connect(url: str) -> tuple[Any, str]:
    """The file system of a URL, and its path there.

    Raises:
        UserError: the protocol is unknown, or its library is not installed.
    """
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{url}: {error}; s3:// and gs:// need pip install 'regionroute[remote]'"
        ) from error
    return files, str(path)


def attempt(url: str, action: Callable[[], Result]) -> Result:
    """Do something with a URL; network errors are tried again.

    Raises:
        FileNotFoundError: it is not there.
        StoreError: every attempt failed, or there is no permission.
    """
    for number in range(1, ATTEMPTS + 1):
        try:
            return action()
        except FileNotFoundError:
            raise
        except Exception as error:
            if not isinstance(error, OSError) and not _of_a_store(error):
                raise
            if number == ATTEMPTS or isinstance(error, PermissionError):
                raise StoreError(
                    url,
                    f"{error or type(error).__name__} (attempt {number} of {ATTEMPTS}): check the "
                    "network and the credentials in the environment, then start the same command "
                    "again",
                ) from error
            time.sleep(PAUSE * 2 ** (number - 1))
    raise AssertionError("unreachable")


def _of_a_store(error: Exception) -> bool:
    """Whether an error comes from an object store's library, such as one of credentials."""
    return type(error).__module__.partition(".")[0] in LIBRARIES
