"""``regionroute rehearse``: every stage at a model's true size, on random weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from regionroute.cli.options import add_seed, check_least, comma_list, command_parser
from regionroute.errors import Parser, UserError, command
from regionroute.files import check_output_folder, write_json

if TYPE_CHECKING:
    from regionroute.rehearsal.settings import Settings

EPILOG = """\
examples:
  regionroute rehearse --base flux2-klein-4b --out out/klein --dry-run
  regionroute rehearse --base flux2-klein-4b --resolution 256 --out out/klein
  regionroute rehearse --base flux1-kontext-12b --quantize nf4 --out out/kontext
  regionroute rehearse --base tiny-klein --resolution 64 --text-length 64 --out out/tiny

Writes a folder with the published configuration and seeded random weights, then loads, encodes,
trains, resumes, edits and exports as with the real weights, each stage by the command that a user
types, in a process of its own. The last stage loads the exported expert into the stock pipeline of
diffusers and compares the images. What the images show is noise: sizes, names, files and memory are
tested, skill is not. A second run in the same folder resumes; --stages runs stages again."""


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    parser = command_parser(
        "rehearse",
        "Run every stage at the true size of a model, with random weights, and print a table: "
        "time, peak memory, and what `regionroute plan` predicts.",
        EPILOG,
    )
    add = parser.add_argument
    names = "flux2-klein-4b or flux1-kontext-12b; tiny-klein or tiny for a trial"
    add("--base", required=True, metavar="NAME", help=names)
    add("--out", required=True, type=Path, metavar="DIR", help="folder for everything")
    stored = "nf4: write the transformer in 4 bits; fp8: quantise it when it is loaded (none)"
    add("--quantize", choices=("nf4", "fp8", "none"), default="none", help=stored)
    add("--resolution", type=int, default=256, metavar="PX", help="side of the images (256)")
    add("--text-length", type=int, default=512, metavar="N", help="tokens of a prompt (512)")
    add("--steps", type=int, default=2, metavar="N", help="sampling steps of an edit (2)")
    add("--stages", metavar="A,B", help="run these stages, also again (those not run yet)")
    add("--dry-run", action="store_true", help="say the stages and the disk needed, and end")
    add_seed(parser, "weights, scenes and noise")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments, None for the process's own.

    Returns:
        0.

    Raises:
        UserError: wrong arguments, too little disk, or a stage failed.
    """
    args = parser().parse_args(argv)
    check_least(args, {"resolution": 64, "text_length": 16, "steps": 1, "seed": 0})
    if args.text_length > 512:
        raise UserError(f"--text-length {args.text_length}: the pipelines read at most 512 tokens")
    check_output_folder(str(args.out))
    from regionroute.models.devices import quiet_libraries

    quiet_libraries()
    from regionroute.rehearsal import stages

    chosen = comma_list(args.stages)
    for name in chosen or ():
        if name not in stages.NAMES:
            raise UserError(f"--stages {name}: must be among {', '.join(stages.NAMES)}")
    settings = _settings(args)
    sizes = _sizes(settings)
    needed = sum(sizes.values())
    for part, size in sizes.items():
        print(f"{part:<16}{size / stages.GB:>8.2f} GB")
    print(f"needs {needed * stages.MARGIN / stages.GB:.1f} GB of disk in {args.out}")
    if args.dry_run:
        for stage in stages.STAGES:
            if stage.name in (chosen or stages.NAMES):
                print(f"{stage.name:<10}{stage.what}")
        return 0
    stages.check_disk(args.out, needed)
    _rehearse(settings, chosen)
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    from regionroute.rehearsal.bases import Shape
    from regionroute.rehearsal.settings import Settings

    quantize = None if args.quantize == "none" else args.quantize
    shape = Shape(args.resolution, args.text_length, args.steps)
    return Settings(args.out, args.base, shape, quantize, args.seed)


def _sizes(settings: Settings) -> dict[str, int]:
    """Bytes of each network's weights, by configurations in a folder that is dropped."""
    import tempfile

    from regionroute.rehearsal.bases import write_configurations
    from regionroute.rehearsal.weights import stored_sizes

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_configurations(settings.name, folder, settings.shape, settings.quantize)
        return stored_sizes(folder, settings.quantize)


def _rehearse(settings: Settings, chosen: list[str] | None) -> None:
    from regionroute.rehearsal import stages
    from regionroute.rehearsal.expected import expected
    from regionroute.rehearsal.settings import write_settings
    from train.planned import planned_step

    settings.folder.mkdir(parents=True, exist_ok=True)
    write_settings(settings)
    try:
        stages.run_stages(settings, chosen)
    finally:
        results = stages.read_results(settings.folder)
        planned = {}
        if {"start", "write", "pairs"} <= results.keys():
            planned = expected(settings, results["start"]["peak"], planned_step)
        write_json(settings.folder / "expected.json", planned)
        print("\n".join(["", *stages.table(results, planned)]))
