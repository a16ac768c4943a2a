"""The ``regionroute`` command: names its sub-commands and starts one; imports nothing heavy."""

from __future__ import annotations

import gc
import importlib
import sys
from importlib.metadata import version
from typing import NamedTuple

from regionroute.errors import UserError, command, nearest


class Command(NamedTuple):
    """A sub-command: the module whose ``main(argv)`` runs it, and what it is for."""

    module: str
    summary: str


COMMANDS = {
    "edit": Command(
        "regionroute.edit_command", "restyle the named object of a picture, or of many"
    ),
    "demo": Command("regionroute.demo", "photos: labels, a new style, edits, scores, in minutes"),
    "study": Command("regionroute.study", "what attention supervision does, on drawn scenes"),
    "scenes": Command("pseudo_labels.scenes_cli", "draw training scenes with exact targets"),
    "label": Command("pseudo_labels.label", "turn photos, words and masks into training pairs"),
    "bank": Command("pseudo_labels.bank_command", "photos in every style, to pre-train a base on"),
    "mamba": Command("pseudo_labels.stylemamba.command", "restyle photos after words or a picture"),
    "gallery": Command(
        "pseudo_labels.stylegallery.command", "restyle a photo after reference pictures, by region"
    ),
    "experts": Command(
        "regionroute.experts_command", "experts to and from diffusers, PEFT, ComfyUI; merging"
    ),
    "calibrate": Command(
        "regionroute.calibrate", "choose the attention heads that maps are read from"
    ),
    "plan": Command("regionroute.plan_command", "memory, time and disk that training takes"),
    "check": Command("regionroute.check", "open every picture of a manifest, list what is wrong"),
    "doctor": Command("regionroute.doctor", "tell what this machine can do and what is missing"),
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


@command
def main(argv: list[str] | None = None) -> int:
    """Runs ``regionroute COMMAND …``.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        The sub-command's exit code; 0 for help.

    Raises:
        UserError: an unknown command; names the nearest.
    """
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
    # Half a million objects of imports are looked through again and again otherwise: 1.3 s.
    gc.set_threshold(100_000)
    return int(importlib.import_module(COMMANDS[argv[0]].module).main(argv[1:]))


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
