"""Commands import what they need alone, and an edit's process ends without complaints."""

from __future__ import annotations

import gc
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from regionroute.cli import start

# Installed with the tests' requirements, and of no use to an edit.
UNUSED = (
    "bitsandbytes", "peft", "torchvision", "triton", "scipy.stats", "scipy.optimize", "networkx",
    "torchao", "deepspeed", "sklearn", "pandas", "onnxruntime", "lpips", "tensorboard", "cv2",
    "torchmetrics", "skimage", "pytorch_optimizer", "train", "eval", "pseudo_labels",
    "regionroute.diffusion.flux2_klein",
)  # fmt: skip
HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL", "scipy", "pydantic")


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def loaded_after(code: str, names: tuple[str, ...]) -> list[str]:
    """Which of the modules a process has imported once it has run `code`."""
    result = python(
        "-c", f"{code}\nimport sys\nprint('loaded:', *(set({names!r}) & set(sys.modules)))"
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].removeprefix("loaded:").split()


@pytest.fixture(scope="module")
def edit_process() -> subprocess.CompletedProcess[str]:
    """A process that has imported what an edit needs and loaded a base; ends with code 3.

    Its output: the names of `UNUSED`, and diffusers, that are imported, and two facts of the
    garbage collector in a second line.
    """
    code = f"""
import gc, sys
usual = gc.get_threshold()
from regionroute.cli.start import import_pipeline
import_pipeline()
same, frozen = gc.get_threshold() == usual, gc.get_freeze_count()
import_pipeline()
from regionroute.pipeline import RegionRoutePipeline
RegionRoutePipeline.from_pretrained("nano")
print(*sorted(set({(*UNUSED, "diffusers")!r}) & set(sys.modules)))
print(same, frozen)
raise SystemExit(3)"""
    return python("-c", code)


def test_an_edit_imports_nothing_that_it_does_not_need(
    edit_process: subprocess.CompletedProcess[str],
) -> None:
    # diffusers shows that the check sees what is imported.
    assert edit_process.stdout.splitlines()[0] == "diffusers"


def test_help_imports_nothing_heavy() -> None:
    code = """
import contextlib
from regionroute.cli import main as cli
for arguments in (["--help"], ["edit", "--help"], ["--version"]):
    with contextlib.suppress(SystemExit):
        cli.main(arguments)"""
    assert loaded_after(code, HEAVY) == []


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an installed package that nothing has imported."""
    (tmp_path / "rr_hidden.py").write_text("VALUE = 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rr_hidden", raising=False)
    return "rr_hidden"


def test_a_hidden_package_is_not_installed_until_afterwards(package: str) -> None:
    with start.hidden(package):
        assert importlib.util.find_spec(package) is None
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(package)
    assert importlib.util.find_spec(package) is not None
    assert importlib.import_module(package).VALUE == 7


def test_a_package_that_is_imported_already_is_not_hidden(package: str) -> None:
    module = importlib.import_module(package)
    with start.hidden(package):
        assert importlib.import_module(package) is module
    assert sys.modules[package] is module


def test_an_error_hides_nothing_for_good(package: str) -> None:
    with pytest.raises(ValueError, match="ours"), start.hidden(package):
        raise ValueError("ours")
    assert importlib.import_module(package).VALUE == 7


def test_importing_the_pipeline_leaves_the_garbage_collector_as_it_was(
    edit_process: subprocess.CompletedProcess[str],
) -> None:
    assert edit_process.stdout.splitlines()[1] == "True 0"


def test_at_exit_the_garbage_is_left_alone_unless_triton_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frozen: list[str] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append("frozen"))
    monkeypatch.setitem(sys.modules, "triton", gc)
    start._skip_last_collections()
    assert frozen == []
    monkeypatch.delitem(sys.modules, "triton")
    start._skip_last_collections()
    assert frozen == ["frozen"]


def test_the_process_of_an_edit_ends_without_complaints(
    edit_process: subprocess.CompletedProcess[str],
) -> None:
    assert (edit_process.returncode, edit_process.stderr) == (3, "")


def test_bitsandbytes_may_warn_but_not_advertise() -> None:
    """It does so when it is imported, on processors with AVX512-BF16."""
    code = """
import logging
import regionroute
logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no kernels")
logger.warning("of use")"""
    result = python("-c", code)
    assert (result.returncode, result.stderr) == (0, "of use\n")


def test_a_mistake_is_one_line_and_code_2() -> None:
    result = python("-m", "regionroute.cli", "edit", "absent.png")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_packages_hidden_from_the_libraries_can_be_used_afterwards() -> None:
    """As 4-bit bases use bitsandbytes and instances use scipy."""
    code = """
from regionroute.cli.start import import_pipeline
import_pipeline()
import bitsandbytes.nn, peft, scipy.stats, torchvision"""
    assert sorted(loaded_after(code, ("bitsandbytes.nn", "peft"))) == ["bitsandbytes.nn", "peft"]
