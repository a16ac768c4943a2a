"""User mistakes end in one sentence and an exit code; our own bugs keep their traceback."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from regionroute.errors import Parser, UserError, command, first_line, nearest

FULL = Path("/dev/full")  # a device on which every write finds the disk full


def _raising(error):
    @command
    def main(argv):
        raise error

    return main


def test_the_exit_code_and_the_arguments_pass_through():
    seen = []

    @command
    def main(argv):
        seen.append(argv)
        return 3

    assert main(["a"]) == 3
    assert main() == 3
    assert seen == [["a"], None]
    assert main.__name__ == "main"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UserError("photo.png: no such image"), "error: photo.png: no such image\n"),
        (OSError(errno.ENOSPC, "No space", "runs/x"), "error: runs/x: the disk is full"),
        (OSError(errno.ENOSPC, "No space"), "error: the disk is full"),
        (PermissionError(errno.EACCES, "Denied", "a.png"), "error: a.png: no permission"),
        (FileNotFoundError(errno.ENOENT, "None", "a.png"), "error: a.png: no such file or folder"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "out"), "error: out: this is a folder"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(error, told, capsys):
    assert _raising(error)() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(told)
    assert err.count("\n") == 1


@pytest.mark.parametrize("allocate", [lambda: np.empty(1 << 50), lambda: torch.empty(1 << 50)])
def test_too_little_memory_is_one_sentence(allocate, capsys):
    @command
    def main(argv):
        return len(allocate())

    assert main() == 2
    assert capsys.readouterr().err.startswith("error: not enough memory: ")


@pytest.mark.skipif(not FULL.is_char_device(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "save",
    [
        lambda: FULL.write_text("x"),
        lambda: torch.save({"a": torch.zeros(10**5)}, FULL),
    ],
)
def test_a_full_disk_is_one_sentence(save, capsys):
    @command
    def main(argv):
        save()
        return 0

    assert main() == 2
    assert "the disk is full" in capsys.readouterr().err


def test_a_system_error_that_a_library_put_into_words_is_one_sentence(capsys):
    error = SafetensorError("Error while serializing: I/O error: No space left (os error 28)")
    assert _raising(error)() == 2
    assert capsys.readouterr().err.startswith("error: the disk is full")
    with pytest.raises(SafetensorError):
        _raising(SafetensorError("header too small"))()


def test_arguments_that_cannot_be_read_are_one_sentence(capsys):
    @command
    def main(argv):
        parser = Parser(prog="regionroute x")
        parser.add_argument("--limit", type=int)
        return parser.parse_args(argv).limit

    assert main(["--limit", "many"]) == 2
    told = "error: argument --limit: invalid int value: 'many'; see `regionroute x --help`\n"
    assert capsys.readouterr().err == told


def test_control_c_is_no_crash(capsys):
    assert _raising(KeyboardInterrupt())() == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    "error", [ValueError("ours"), RuntimeError("ours"), OSError(errno.EIO, "I/O error")]
)
def test_bugs_and_unknown_system_errors_are_not_hidden(error):
    with pytest.raises(type(error)):
        _raising(error)()


def test_a_reader_that_left_gets_no_traceback():
    program = (
        "from regionroute.errors import command\n"
        "def main(argv):\n    for i in range(10**6): print(i)\n    return 0\n"
        "raise SystemExit(command(main)())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.parametrize(
    ("word", "closest"),
    [
        ("train.step", "train.steps"),
        ("train.lr", "optim.lr"),  # right name, wrong group
        ("lr", "optim.lr"),
        ("Output", "output"),
    ],
)
def test_nearest(word, closest):
    assert nearest(word, ["output", "train.steps", "train.keep", "optim.lr", "seed"]) == closest


def test_the_first_line_of_an_error():
    assert first_line(ValueError("\nwhat is wrong\nwhere")) == "what is wrong"
    assert first_line(ValueError()) == "ValueError"
