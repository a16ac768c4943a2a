# PYTHON_ARGCOMPLETE_OK
"""The ``regionroute`` command: names its sub-commands and starts one; imports nothing heavy."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from importlib.metadata import version
from typing import NamedTuple

from regionroute.errors import Parser, UserError, command, nearest


class Command(NamedTuple):
    """A sub-command.

    Attributes:
        module: its ``main(argv)`` runs it.
        summary: what it does.
        arguments: "module:function" that builds its parser and imports nothing heavy; by default
            the module's own ``parser``.
    """

    module: str
    summary: str
    arguments: str = ""

    def parser(self) -> Parser:
        """Its arguments."""
        module, _, function = (self.arguments or f"{self.module}:parser").partition(":")
        parser: Parser = getattr(importlib.import_module(module), function)()
        return parser


COMMANDS = {
    "edit": Command("regionroute.cli.edit", "restyle the named object of an image, or of many"),
    "serve": Command("regionroute.cli.studio.serve", "edit photos in the browser, and by programs"),
    "demo": Command("regionroute.cli.tour.demo", "label, train, edit and score photos, in minutes"),
    "teach": Command("regionroute.cli.tour.teach", "teach a base your own style, in minutes"),
    "study": Command(
        "regionroute.cli.tour.study", "measure what attention supervision does, on drawn scenes"
    ),
    "label": Command("regionroute.cli.label", "turn photos, words and masks into training pairs"),
    "scenes": Command("regionroute.cli.scenes", "draw training scenes with exact targets"),
    "manifest": Command(
        "regionroute.cli.manifest.main", "pack a manifest, so that training starts without its rows"
    ),
    "check": Command("regionroute.cli.check", "open every image of a manifest, list problems"),
    "plan": Command("regionroute.cli.plan", "predict memory, time and disk of a training run"),
    "rehearse": Command(
        "regionroute.cli.tour.rehearse", "run every stage at a model's true size, on random weights"
    ),
    "train": Command("train.run", "train style experts on a base"),
    "calibrate": Command(
        "regionroute.cli.calibrate", "choose the attention heads that region maps are read from"
    ),
    "score": Command("eval.rses", "score edits of a manifest"),
    "report": Command(
        "eval.report.html",
        "write the report of finished scores",
        "eval.report.arguments:report_parser",
    ),
    "maps": Command(
        "eval.maps",
        "compare region maps with the masks, on one page",
        "eval.report.arguments:maps_parser",
    ),
    "codec": Command(
        "eval.codec",
        "measure what a base's codec alone changes in the images",
        "eval.report.arguments:codec_parser",
    ),
    "experts": Command(
        "regionroute.cli.experts", "convert experts to and from diffusers, PEFT, ComfyUI; merge"
    ),
    "bank": Command("regionroute.cli.bank", "make pairs that a base is pre-trained on"),
    "mamba": Command("regionroute.cli.mamba.main", "restyle photos by words or an image"),
    "gallery": Command(
        "regionroute.cli.gallery", "restyle a photo by reference images, per region"
    ),
    "doctor": Command("regionroute.cli.doctor", "list what this machine can do and what it lacks"),
}

URLS = ("edit", "label", "score", "train")  # may be in their arguments
BUCKET = re.compile(r"(?:^|=)((?:s3|gs|gcs|az|abfs)://\S*)")

EXAMPLES = """\
examples:
  regionroute edit photo.png --object dog --style pixel-art --out out.png --map map.png
  regionroute edit --batch rows.jsonl --batch-size 8
  regionroute serve
  regionroute scenes --train 64 --test 32 --out data/scenes
  regionroute experts export EXPERTS --format comfyui --out loras
  regionroute calibrate --experts runs/nano/experts --manifest data/calibration
  regionroute manifest pack data/pets
  regionroute check data/scenes --sheet sheet.png
  regionroute plan --config kontext --gpus 8
  regionroute train --config nano data.manifest=data/scenes
  regionroute score --manifest data/scenes --edits ours=out/edits --out out/scores

`regionroute COMMAND --help` explains one command. To complete commands and options with TAB:
  eval "$(register-python-argcomplete regionroute)"        # in ~/.bashrc or ~/.zshrc"""


@command
def main(argv: list[str] | None = None) -> int:
    """Runs ``regionroute COMMAND …``.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        The sub-command's exit code; 0 for help; 2 for an unknown command.
    """
    if argv is None and "_ARGCOMPLETE" in os.environ:
        complete(os.environ.get("COMP_LINE", ""))
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"regionroute {version('regionroute')}")
        return 0
    if argv[0] not in COMMANDS:
        near = nearest(argv[0], COMMANDS)
        raise UserError(
            f"there is no command {argv[0]!r}; did you mean {near}? `regionroute --help` lists all"
        )
    if argv[0] not in URLS:
        _refuse_buckets(argv[1:])
    entry = COMMANDS[argv[0]]
    if entry.arguments:
        entry.parser().parse_args(argv[1:])  # help and mistakes, before the module is imported
    return int(importlib.import_module(entry.module).main(argv[1:]))


def _refuse_buckets(arguments: list[str]) -> None:
    """Object stores that a command would take for folders."""
    for argument in arguments:
        if found := BUCKET.search(argument):
            raise UserError(
                f"{found[1]}: this command reads and writes folders; only those of label, edit and "
                "score and data.cache of train may be in an object store: mount the bucket or copy "
                "it"
            )


def complete(line: str) -> None:
    """Answers the shell's question for completions, and ends the process.

    Args:
        line: what is typed; only the named command's module is imported.
    """
    import argcomplete

    words = line.split()
    argcomplete.autocomplete(completion_parser(words[1] if len(words) > 1 else ""))


def completion_parser(name: str) -> argparse.ArgumentParser:
    """All commands, and the arguments of one of them.

    Args:
        name: that command; any other word, for the commands alone.
    """
    parser = Parser(prog="regionroute")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    for known, entry in COMMANDS.items():
        own = []
        if known == name:
            own = [entry.parser()]
        commands.add_parser(known, help=entry.summary, parents=own, add_help=not own)
    return parser


def usage() -> str:
    """The text of ``regionroute --help``."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {entry.summary}" for name, entry in COMMANDS.items()]
    return "\n".join(
        [
            "usage: regionroute COMMAND [arguments]",
            "",
            "Regional style transfer: restyle the named object, keep the rest of the image.",
            "",
            "commands:",
            *lines,
            "",
            EXAMPLES,
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
