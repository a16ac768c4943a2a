"""Errors a user can fix, and the wrapper that turns them into one sentence and an exit code."""

import argparse
import difflib
import errno
import functools
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable
from typing import NoReturn

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another folder",
    errno.EFBIG: "the file would be larger than this system allows: choose another place",
    errno.ENOENT: "no such file or folder: check the path",
    errno.ELOOP: "links lead in a circle: check the path",
    errno.EACCES: "no permission: change the file's rights or choose another place",
    errno.EPERM: "no permission: change the file's rights or choose another place",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.EEXIST: "a file of this name is in the way: remove it or choose another place",
    errno.ENOTEMPTY: "the folder is not empty: choose another",
    errno.EISDIR: "this is a folder where a file is needed",
    errno.ENOTDIR: "a part of this path is a file where a folder is needed",
    errno.ENAMETOOLONG: "the file name is too long: choose a shorter one",
}
LONGEST_SHOWN = 300  # characters of what was typed in an error's sentence
_TORCH_SAVE = ("PytorchStreamWriter failed", "] . unexpected pos", "iostream error")


class UserError(ValueError):
    """A mistake in what the user gave: one sentence that names the file or key and the remedy."""


class StoreError(OSError):
    """An object store that does not answer or refuses: no fault of the file that was worked on.

    Args:
        url: of the object.
        sentence: what is wrong, and the remedy.
    """

    def __init__(self, url: str, sentence: str) -> None:
        super().__init__(errno.EIO, sentence, url)

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return StoreError, (self.filename, self.strerror or "")


class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        """Raises the message as a `UserError`, for one form of all mistakes."""
        shown = message if len(message) <= LONGEST_SHOWN else f"{message[:LONGEST_SHOWN]}..."
        raise UserError(f"{shown}; see `{self.prog} --help`")


def printable(text: str) -> str:
    """A text with its control characters written as escapes, so that no terminal acts on them.

    Halves of characters, which no terminal can show, are escaped too.
    """
    return "".join(c if _harmless(c) else ascii(c)[1:-1] for c in text)


def _harmless(character: str) -> bool:
    return character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs")


def remedy(error: OSError) -> str | None:
    """What is wrong and what helps, for system errors that a user can fix."""
    return _REMEDIES.get(error.errno) if error.errno is not None else None


def first_line(error: BaseException) -> str:
    """What an error says, without the rest; its class if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name most like `word`, for the sentence that refuses it.

    Dotted names are compared as a whole and by their last part, so that a right key in the wrong
    group is found as well as a misspelt one.

    Raises:
        ValueError: nothing is known.

    >>> nearest("train.step", ["train.steps", "train.save_every"])
    'train.steps'
    """

    def likeness(name: str) -> float:
        whole = difflib.SequenceMatcher(None, word.lower(), name.lower()).ratio()
        last = difflib.SequenceMatcher(
            None, word.lower().rpartition(".")[2], name.lower().rpartition(".")[2]
        ).ratio()
        return whole + last

    return max(known, key=likeness)


def command(main: Callable[[list[str] | None], int]) -> Callable[..., int]:
    """Wraps a command's entry point so that user mistakes end without a traceback.

    Args:
        main: takes the argument list (None: the process's own) and returns the exit code.

    Returns:
        A function of the same form. It prints ``error: <sentence>`` on stderr and returns 2 for
        `UserError` and for system errors a user can fix (disk full, no permission, not enough
        memory, ...), returns 130 after Ctrl-C and 141 when the reader of our output has gone.
        Anything else is a bug of ours and keeps its traceback.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        try:
            return main(argv)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            # The interpreter would flush stdout once more on exit and complain: give it a sink.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
        print(f"error: {printable(sentence)}", file=sys.stderr)
        return 2

    return run


def _sentence(error: Exception) -> str | None:
    """What to tell the user; None for a bug of ours."""
    text = str(error)
    if isinstance(error, UserError):
        return text
    if isinstance(error, StoreError):
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return where + _REMEDIES[error.errno] if error.errno in _REMEDIES else None
    # Python and numpy have a class for it, torch one for GPUs and on the processor only words.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if named or "can't allocate memory" in text:
        return "not enough memory: use smaller images or a smaller batch"
    # Libraries written in Rust, such as safetensors, put the number into words of their own.
    number = re.search(r"\(os error (\d+)\)", text)
    if number and int(number[1]) in _REMEDIES:
        return _REMEDIES[int(number[1])]
    # All that torch.save says when the disk is full.
    if isinstance(error, RuntimeError) and any(part in text for part in _TORCH_SAVE):
        return "a file could not be written, most likely " + _REMEDIES[errno.ENOSPC]
    return None
