"""The ``regionroute`` command: names its sub-commands and starts one; imports nothing heavy."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from typing import NamedTuple

from regionroute.errors import UserError, command, nearest


class Command(NamedTuple):
    """A sub-command.

    Attributes:
        module: its ``main(argv)`` runs it.
        summary: what it is for.
    """

    module: str
    summary: str


COMMANDS = {
    "edit": Command("regionroute.cli.edit", "restyle the named object of an image, or of many"),
    "demo": Command("regionroute.cli.tour.demo", "label, train, edit and score photos, in minutes"),
    "study": Command(
        "regionroute.cli.tour.study", "measure what attention supervision does, on drawn scenes"
    ),
    "label": Command("pseudo_labels.label", "turn photos, words and masks into training pairs"),
    "scenes": Command("pseudo_labels.scenes.command", "draw training scenes with exact targets"),
    "check": Command("regionroute.data.check", "open every image of a manifest, list problems"),
    "plan": Command("regionroute.cli.plan", "predict memory, time and disk of a training run"),
    "train": Command("train.run", "train style experts on a base"),
    "calibrate": Command(
        "regionroute.cli.calibrate", "choose the attention heads that region maps are read from"
    ),
    "score": Command("eval.rses", "score edits of a manifest"),
    "report": Command("eval.report.html", "write the report of scores that are there"),
    "maps": Command("eval.maps", "compare region maps with the masks, on one page"),
    "codec": Command("eval.codec", "measure what a base's codec alone changes in the images"),
    "experts": Command(
        "regionroute.cli.experts", "convert experts to and from diffusers, PEFT, ComfyUI; merge"
    ),
    "bank": Command("pseudo_labels.bank.command", "make pairs that a base is pre-trained on"),
    "mamba": Command("pseudo_labels.stylemamba.command", "restyle photos by words or an image"),
    "gallery": Command(
        "pseudo_labels.stylegallery.command", "restyle a photo by reference images, per region"
    ),
    "doctor": Command("regionroute.cli.doctor", "list what this machine can do and what it lacks"),
}

EXAMPLES = """\
examples:
  regionroute edit photo.png --object dog --style pixel-art --out out.png --map map.png
  regionroute edit --batch rows.jsonl --batch-size 8
  regionroute scenes --train 64 --test 32 --out data/scenes
  regionroute experts export EXPERTS --format comfyui --out loras
  regionroute calibrate --experts runs/nano/experts --manifest data/calibration
  regionroute check data/scenes --sheet sheet.png
  regionroute plan --config kontext --gpus 8
  regionroute train --config nano data.manifest=data/scenes
  regionroute score --manifest data/scenes --edits ours=out/edits --out out/scores

`regionroute COMMAND --help` explains one command."""


@command
def main(argv: list[str] | None = None) -> int:
    """Runs ``regionroute COMMAND …``.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        The sub-command's exit code; 0 for help; 2 for an unknown command.
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
