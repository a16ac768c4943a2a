"""The ``regionroute`` command: names its sub-commands and starts one; imports nothing heavy."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from typing import NamedTuple

from regionroute.cli import start
from regionroute.errors import UserError, command, nearest


class Command(NamedTuple):
    """A sub-command.

    Attributes:
        module: its ``main(argv)`` runs it.
        summary: what it is for.
        short: over in seconds, and leaves nothing behind that is not written down; its process
            ends as `start.end_quickly` says.
    """

    module: str
    summary: str
    short: bool = False


COMMANDS = {
    "edit": Command(
        "regionroute.cli.edit", "restyle the named object of a picture, or of many", short=True
    ),
    "demo": Command(
        "regionroute.cli.tour.demo", "photos: labels, a new style, edits, scores, in minutes"
    ),
    "study": Command(
        "regionroute.cli.tour.study", "what attention supervision does, on drawn scenes"
    ),
    "scenes": Command("pseudo_labels.scenes.command", "draw training scenes with exact targets"),
    "label": Command("pseudo_labels.label", "turn photos, words and masks into training pairs"),
    "bank": Command("pseudo_labels.bank.command", "photos in every style, to pre-train a base on"),
    "mamba": Command("pseudo_labels.stylemamba.command", "restyle photos after words or a picture"),
    "gallery": Command(
        "pseudo_labels.stylegallery.command", "restyle a photo after reference pictures, by region"
    ),
    "experts": Command(
        "regionroute.cli.experts", "experts to and from diffusers, PEFT, ComfyUI; merging"
    ),
    "calibrate": Command(
        "regionroute.cli.calibrate", "choose the attention heads that maps are read from"
    ),
    "plan": Command("regionroute.cli.plan", "memory, time and disk that training takes"),
    "check": Command(
        "regionroute.data.check", "open every picture of a manifest, list what is wrong"
    ),
    "doctor": Command(
        "regionroute.cli.doctor", "tell what this machine can do and what is missing"
    ),
}

EXAMPLES = """\
examples:
  regionroute edit photo.png --object dog --style pixel-art --out out.png --map map.png
  regionroute edit --batch rows.jsonl --batch-size 8
  regionroute scenes --train 64 --test 32 --out data/scenes
  regionroute experts export EXPERTS --format comfyui --out loras
  regionroute calibrate --experts runs/nano/experts --manifest data/calibration
  regionroute check data/scenes --sheet sheet.png
  regionroute plan --config configs/kontext.yaml --gpus 8
  python train/run.py --config configs/nano.yaml
  python eval/rses.py --help

`regionroute COMMAND --help` explains one command."""


def main(argv: list[str] | None = None) -> int:
    """Runs ``regionroute COMMAND …``.

    Args:
        argv: arguments, None for the process's own, which then may end quickly.

    Returns:
        The sub-command's exit code; 0 for help; 2 for an unknown command.
    """
    if argv is not None:
        return _run(argv)
    argv = sys.argv[1:]
    known = COMMANDS.get(argv[0]) if argv else None
    if known is None or not known.short:
        return _run(argv)
    done = start.end_quickly()
    code = _run(argv)
    done(code)
    return code


@command
def _run(argv: list[str] | None) -> int:
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
    start.collect_rarely()
    try:
        return int(importlib.import_module(COMMANDS[argv[0]].module).main(argv[1:]))
    finally:
        start.collect_as_usual()


def usage() -> str:
    """The text of ``regionroute --help``."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {entry.summary}" for name, entry in COMMANDS.items()]
    return "\n".join(
        [
            "usage: regionroute COMMAND [arguments]",
            "",
            "Regional style transfer: restyle the named object, keep the rest of the picture.",
            "",
            "commands:",
            *lines,
            "",
            EXAMPLES,
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
