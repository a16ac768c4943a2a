"""``regionroute doctor``: list whether this machine can edit, train and score, and why not."""

import importlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from regionroute.cli.options import command_parser
from regionroute.errors import Parser, UserError, command, first_line
from regionroute.models.devices import quiet_libraries

PACKAGE = "regionroute"
IMPORTED = ("torch", "torchvision", "diffusers", "transformers", "peft", "deepspeed", "lpips")
LOW_DISK_GB = 2
LPIPS_VARIABLE = "REGIONROUTE_LPIPS"
ALEXNET_FILE = "alexnet-owt-7be5be79.pth"  # torchvision's own name in the torch hub cache
CLIP_NAME = "openai/clip-vit-large-patch14"


class Finding(NamedTuple):
    """One line of the report: "ok", "note" (works without it) or "bad" (something needs it)."""

    state: Literal["ok", "note", "bad"]
    what: str
    detail: str


def check_packages(requirements: list[str] | None = None) -> Iterator[Finding]:
    """Are the required packages installed, in the versions that `pyproject.toml` asks for?

    Args:
        requirements: lines such as ``"torch>=2.10,<2.16"``, None for the package's own.
    """
    if requirements is None:
        requirements = metadata.requires(PACKAGE) or []
    for line in requirements:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield Finding("bad", wanted.name, f"not installed, {wanted.specifier} is needed")
            continue
        fits = wanted.specifier.contains(version, prereleases=True)
        detail = version if fits else f"{version}, but {wanted.specifier} is needed"
        yield Finding("ok" if fits else "bad", wanted.name, detail)


def check_imports(names: tuple[str, ...] = IMPORTED) -> Iterator[Finding]:
    """Do the large libraries import together?"""
    with suppress(Exception):  # it imports torch, which may be what is broken
        quiet_libraries()
    for name in names:
        try:
            importlib.import_module(name)
        # A broken binary may raise anything while it loads; the report has to continue.
        except Exception as error:
            yield Finding("bad", f"import {name}", f"{type(error).__name__}: {error}")
        else:
            yield Finding("ok", f"import {name}", "works")


def check_devices() -> Iterator[Finding]:
    """Processors, threads and accelerators."""
    import torch

    asked = os.environ.get("OMP_NUM_THREADS", "not set")
    yield Finding(
        "ok",
        "cpu",
        f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads "
        f"(OMP_NUM_THREADS {asked})",
    )
    if not torch.cuda.is_available():
        yield Finding("note", "gpu", "none; everything runs on the CPU, at nano's size")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bfloat = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        detail = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bfloat}"
        yield Finding("ok", f"gpu {index}", detail)


def check_attention() -> Iterator[Finding]:
    """Which kernels can supervise attention here, in bfloat16 with heads as wide as Flux's."""
    import torch

    from regionroute.attention.dispatch import refusal_of
    from regionroute.config.choices import BACKENDS

    device = "cuda" if torch.cuda.is_available() else "cpu"
    heads = torch.zeros(1, 1, 16, 128, device=device, dtype=torch.bfloat16)
    for name in BACKENDS:
        if name == "auto":
            continue
        try:
            refusal = refusal_of(name, heads, heads, None)
        # A kernel library that does not fit this machine may raise anything; it is reported.
        except Exception as error:
            refusal = first_line(error)
        yield Finding("note" if refusal else "ok", f"attention {name}", refusal or "works")


def check_training() -> Iterator[Finding]:
    """What DeepSpeed needs to start, with one process or several."""
    import torch.distributed

    gloo = torch.distributed.is_available() and torch.distributed.is_gloo_available()
    yield Finding("ok" if gloo else "bad", "gloo", "available" if gloo else "missing in torch")
    try:
        from deepspeed.accelerator import get_accelerator

        yield Finding("ok", "deepspeed runs on", get_accelerator()._name)
    # Choosing an accelerator runs foreign probes, which may raise anything; it is reported.
    except Exception as error:
        yield Finding("bad", "deepspeed runs on", f"nothing ({type(error).__name__}: {error})")
    for tool in ("deepspeed", "ninja"):
        place = shutil.which(tool)
        detail = place or "not on PATH: put the environment's bin folder there to launch training"
        yield Finding("ok" if place else "note", f"{tool} command", detail)


def check_bases() -> Iterator[Finding]:
    """Are the embedded bases in the package, and do they load?"""
    from regionroute.models import embedded as nano

    for name in nano.NAMES:
        yield from check_base(name)


def check_base(name: str = "nano") -> Iterator[Finding]:
    """Does this base load?"""
    from regionroute.models.loading import load_base

    try:
        base = load_base(name)
    except UserError as error:
        yield Finding("bad", f"base {name}", str(error))
        return
    millions = sum(weight.numel() for weight in base.transformer.parameters()) / 1e6
    yield Finding(
        "ok",
        f"base {name}",
        f"loads: transformer {millions:.2f} M parameters, fingerprint {base.fingerprint}",
    )


def check_weights() -> Iterator[Finding]:
    """Where scoring looks for the networks that the package does not ship."""
    import torch
    from huggingface_hub import try_to_load_from_cache

    given = os.environ.get(LPIPS_VARIABLE)
    place = Path(given) if given else Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET_FILE
    if place.exists():
        yield Finding("ok", "LPIPS weights", str(place))
    else:
        detail = f"not at {place}: LPIPS is skipped, or set {LPIPS_VARIABLE}"
        yield Finding("note", "LPIPS weights", detail)
    cached, what = try_to_load_from_cache(CLIP_NAME, "config.json"), f"CLIP {CLIP_NAME}"
    if isinstance(cached, str):  # else None, or an object that says that there is no such file
        yield Finding("ok", what, f"cached, {Path(cached).parent}")
    else:
        yield Finding("note", what, "not in the hub cache: RSM is skipped, or give --clip")


def check_disk(folder: Path = Path()) -> Iterator[Finding]:
    """Is there room for runs and caches in the current folder?"""
    free = shutil.disk_usage(folder).free / 1e9
    low = free < LOW_DISK_GB
    detail = f"{free:.0f} GB free" + (", caches and checkpoints may not fit" if low else "")
    yield Finding("note" if low else "ok", "disk", detail)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_packages,
    check_imports,
    check_devices,
    check_attention,
    check_training,
    check_bases,
    check_weights,
    check_disk,
)


def parser() -> Parser:
    """The arguments; building it imports nothing heavy."""
    return command_parser(
        "doctor",
        "List whether this machine can edit, train and score, and what is missing.",
        "example:\n  regionroute doctor\n\n"
        "Exit code: 0 all necessary parts work, 1 at least one is broken.",
    )


@command
def main(argv: list[str] | None = None) -> int:
    """``regionroute doctor``: prints one line per finding; 1 if something necessary is broken."""
    parser().parse_args(argv)
    print(f"ok    {'python':28} {platform.python_version()} on {platform.platform()}")
    bad = 0
    for check in CHECKS:
        for finding in _guarded(check):
            bad += finding.state == "bad"
            print(f"{finding.state:5} {finding.what:28} {finding.detail}", flush=True)
    print("\nall necessary parts work" if not bad else f"\nnecessary parts that are broken: {bad}")
    return 1 if bad else 0


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that fails is itself a finding, whatever stopped it."""
    try:
        yield from check()
    # Probing a broken machine may raise anything; the report has to continue.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        name = check.__name__.replace("_", " ")
        yield Finding("bad", name, f"cannot run: {type(error).__name__}: {reason}")


if __name__ == "__main__":
    raise SystemExit(main())
