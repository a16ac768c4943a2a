"""Options that several commands share, each written once. Importing this imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from regionroute.config.choices import DTYPES, QUANTIZE
from regionroute.engines.base import ENGINES, EngineSettings
from regionroute.errors import Parser, UserError
from regionroute.files import check_inputs_kept, check_output_file
from regionroute.settings_files import check_png_name, check_settings_file

# A parser or one of its groups; argparse has no public name for what they share.
Group = argparse.ArgumentParser | argparse._ArgumentGroup

MOST_WORKERS = 256  # processes; more than this is a slip of the finger


def command_parser(name: str, description: str, epilog: str, **how: Any) -> Parser:
    """The parser of ``regionroute NAME``; the epilog keeps its lines."""
    return Parser(
        prog=f"regionroute {name}",
        description=textwrap.fill(description, 90),
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **how,
    )


def add_device(group: Group, default: str | None = None) -> None:
    """``--device``; without a default: a GPU if there is one."""
    usual = default or "a GPU if there is one"
    group.add_argument(
        "--device", default=default, metavar="NAME", help=f"cpu, cuda, cuda:1, … ({usual})"
    )


def add_dtype(group: Group) -> None:
    """``--dtype`` of the networks."""
    group.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="number type of the networks; bfloat16 for FLUX on a GPU (float32)",
    )


def add_quantize(group: Group) -> None:
    """``--quantize`` of the base."""
    group.add_argument(
        "--quantize", choices=QUANTIZE, help="store the base in 4 (nf4) or 8 bits (fp8) (in full)"
    )


def add_base(group: Group, default: str | None, usual: str = "") -> None:
    """``--base``; `usual` says what is meant without it, if that is not `default`."""
    group.add_argument(
        "--base",
        default=default,
        metavar="NAME",
        help="nano-photos, nano (scenes), a pipeline's folder, or a hub id, also ID@REVISION "
        f"({usual or default})",
    )


def add_seed(group: Group, of: str) -> None:
    """``--seed``; `of` says what it decides."""
    group.add_argument("--seed", type=int, default=0, metavar="N", help=f"seed of {of} (0)")


def add_batch_size(group: Group, default: int | None = 8) -> None:
    """``--batch-size`` in images of one size."""
    group.add_argument(
        "--batch-size",
        type=int,
        default=default,
        metavar="N",
        help="images of one size that are processed together (8)",
    )


def add_workers(group: Group) -> None:
    """``--workers``, checked by `check_workers`."""
    group.add_argument(
        "--workers", type=int, metavar="N", help="processes (chosen by the amount of work)"
    )


def add_engine(parser: Parser, processes: str = "chosen by the amount of work") -> None:
    """``--engine``, ``--workers`` and the options of Ray, read by `engine_of` and `device_of`.

    Args:
        parser: of the command.
        processes: number of local processes without ``--workers``.
    """
    group = parser.add_argument_group("where the work is done")
    add = group.add_argument
    add("--engine", choices=ENGINES, default="local", help="this machine, or a Ray cluster (local)")
    workers = f"processes ({processes}; on Ray as many as there is room for)"
    add("--workers", type=int, metavar="N", help=workers)
    address = "running cluster, such as auto or HOST:6379 (one is started on this machine)"
    add("--ray-address", metavar="ADDRESS", help=address)
    gpus = "GPUs of each Ray worker, such as 0.5 (1 with --device cuda, else 0)"
    add("--num-gpus", type=float, metavar="X", help=gpus)


def engine_of(args: argparse.Namespace) -> EngineSettings:
    """Where the work of a command is done.

    Raises:
        UserError: an option of Ray without ``--engine ray``, or a number out of range.
    """
    check_workers(args)
    if args.engine == "local":
        for name in ("ray_address", "num_gpus"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} goes with --engine ray")
        return EngineSettings(workers=args.workers)
    on_gpu = (args.device or "").startswith("cuda")
    gpus = args.num_gpus if args.num_gpus is not None else float(on_gpu)
    if not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus)):
        raise UserError(f"--num-gpus {gpus:g}: must be a fraction of 1, or a whole number")
    if on_gpu and not gpus:
        raise UserError("--num-gpus 0: --device cuda needs a GPU, or a fraction of one")
    return EngineSettings("ray", args.workers, args.ray_address, gpus)


def device_of(args: argparse.Namespace) -> str:
    """The device of the networks: on Ray one of the workers', "cpu" unless it is named.

    Raises:
        UserError: it cannot be used on this machine, where the work is done here.
    """
    if args.engine == "ray":
        return args.device or ("cuda" if args.num_gpus else "cpu")
    from regionroute.models.devices import pick_device

    return str(pick_device(args.device))


def add_manifest(group: Group, what: str = "score") -> None:
    """``--manifest`` (required) and ``--split``."""
    group.add_argument(
        "--manifest",
        required=True,
        metavar="PATH",
        help="manifest.jsonl, its folder, or 'manifest-*.jsonl'",
    )
    group.add_argument(
        "--split",
        default="test",
        metavar="NAME",
        help=f'split to {what}, "all" for every sample (test)',
    )


def add_styles(group: Group, default: str) -> None:
    """``--styles`` and ``--only``: which styles pairs are made in."""
    group.add_argument(
        "--styles",
        default=default,
        metavar="FILE",
        help=f"styles file, or a packaged one: {', '.join(packaged_styles())} ({default})",
    )
    only = "use only these styles of the file (all)"
    group.add_argument("--only", type=comma_list, metavar="A,B", help=only)


def add_region(group: Group, verb: str) -> None:
    """``--region`` and ``--labels``: an object of a photo, by mask or by word."""
    group.add_argument(
        "--region", metavar="MASK", help=f"{verb}: a mask image, or a word with --labels"
    )
    group.add_argument(
        "--labels", metavar="FILE", help="labels file that holds the masks of --region WORD"
    )


class _Renamed(argparse.Action):
    """Stores what an option's old name was given, and prints one line that names the new one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        print(f"note: {option_string} is now called {self.metavar}", file=sys.stderr)
        value = self.const if self.nargs == 0 else values
        if self.const is list:
            value = [*(getattr(namespace, self.dest, None) or ()), values]
        setattr(namespace, self.dest, value)


def add_renamed(group: Group, old: str, new: str, **how: Any) -> None:
    """An option's old name: still read, absent from ``--help``, and it prints one line.

    Args:
        group: where the new option is.
        old: ``--old``.
        new: ``--new``.
        how: `type`; ``nargs=0, const=value`` of a flag; ``const=list`` if it may be repeated;
            `dest` if `new` does not say it.
    """
    dest = how.pop("dest", new.removeprefix("--").replace("-", "_"))
    group.add_argument(
        old,
        dest=dest,
        metavar=new,
        action=_Renamed,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
        **how,
    )


def packaged_styles() -> list[str]:
    """Names of the styles files that come with the package."""
    folder = resources.files("pseudo_labels") / "styles"
    return sorted(Path(file.name).stem for file in folder.iterdir() if file.name.endswith(".yaml"))


def comma_list(text: str | None) -> list[str] | None:
    """The words of ``A,B``, each once; None for None."""
    if text is None:
        return None
    words = (" ".join(word.split()) for word in text.split(","))
    return list(dict.fromkeys(word for word in words if word))


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given, as keyword arguments: a function's own defaults hold else."""
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def check_least(args: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Refuses numbers that are too small; options without a value are left alone.

    Args:
        args: of the command.
        least: smallest value by option name, with underscores.

    Raises:
        UserError: names the option.
    """
    for name, number in least.items():
        value = getattr(args, name)
        if value is not None and value < number:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {value}: must be at least {number}")


def check_no_empty(args: argparse.Namespace) -> None:
    """Refuses options whose text is empty, as a shell's variable without a value gives them.

    Raises:
        UserError: names the option.
    """
    for name, value in vars(args).items():
        if name != "overrides" and "" in (value if isinstance(value, list) else [value]):
            raise UserError(f"--{name.replace('_', '-')} is empty: give a value or leave it out")


def check_workers(args: argparse.Namespace) -> None:
    """Refuses a senseless number of ``--workers``.

    Raises:
        UserError: fewer than 1, or more than `MOST_WORKERS`.
    """
    check_least(args, {"workers": 1})
    if args.workers is not None and args.workers > MOST_WORKERS:
        raise UserError(f"--workers {args.workers}: must be at most {MOST_WORKERS}")


def check_image_output(out: Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse, before any work, an image or the settings file beside it that costs another file.

    Args:
        out: the image.
        inputs: everything that is read; a folder counts with the files in it, None and what is no
            file or folder not at all.

    Raises:
        UserError: no PNG can be written there, an input, or a JSON file of another origin.
    """
    check_png_name(out)
    files = [out, out.with_suffix(".json")]
    for path in files:
        check_output_file(path)
    read = [Path(name) for name in inputs if name is not None]
    inside = [one for path in read if path.is_dir() for one in path.iterdir()]
    check_inputs_kept(files, [*inside, *(path for path in read if path.is_file())])
    check_settings_file(out)
