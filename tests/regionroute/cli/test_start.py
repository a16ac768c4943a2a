"""Commands start with what they need alone, and end at once but not too early."""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from regionroute.cli import main as cli
from regionroute.cli import start

# What an edit never uses; those of the first lines cost three seconds.
UNUSED = (
    "torch._inductor", "torch._dynamo.utils", "torchvision.ops.roi_align", "bitsandbytes.nn",
    "networkx", "scipy.stats._stats_py", "scipy.optimize._optimize", "torchvision.models.resnet",
    "torchao", "deepspeed", "sklearn", "pandas", "onnxruntime", "lpips", "tensorboard", "cv2",
    "torchmetrics", "skimage", "pytorch_optimizer", "train", "eval", "pseudo_labels",
)  # fmt: skip
HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL", "scipy", "pydantic")


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | environment
    )


def loaded_after(code: str, names: tuple[str, ...]) -> list[str]:
    result = python(f"{code}\nimport sys\nprint('loaded:', *(set({names!r}) & set(sys.modules)))")
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].removeprefix("loaded:").split()


def test_an_edit_imports_nothing_that_it_does_not_need() -> None:
    code = """if True:
        from regionroute.cli.edit_libraries import import_libraries
        import_libraries()
        from regionroute.pipeline import RegionRoutePipeline
        RegionRoutePipeline.from_pretrained("nano")
    """
    assert loaded_after(textwrap.dedent(code), UNUSED) == []


@pytest.mark.parametrize("arguments", [["--help"], ["edit", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import contextlib
from regionroute.cli import main as cli
with contextlib.suppress(SystemExit):
    cli.main({arguments!r})"""
    assert loaded_after(code, HEAVY) == []


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package that notes in `os.environ` that its code ran."""
    folder = tmp_path / "rr_late"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import os\nos.environ['RR_LATE'] = os.environ.get('RR_LATE', '') + 'x'\nVALUE = 7\n"
    )
    (folder / "part.py").write_text("from rr_late import VALUE\nTWICE = 2 * VALUE\n")
    (tmp_path / "rr_broken.py").write_text("raise ImportError('no driver')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("RR_LATE", "")
    yield "rr_late"
    for name in ("rr_late", "rr_late.part", "rr_broken", "rr_sums"):
        sys.modules.pop(name, None)


def runs() -> int:
    return len(os.environ["RR_LATE"])


def test_a_module_that_is_put_off_runs_once_when_it_is_used(package: str) -> None:
    with start.put_off(package):
        module = importlib.import_module(package)
    again = importlib.import_module(package)
    assert again is module
    assert importlib.util.find_spec(package) is module.__spec__
    assert Path(module.__file__).name == "__init__.py"
    inspect.getmodule(runs)  # looks at every module there is
    assert runs() == 0
    assert module.VALUE == 7
    assert inspect.getsource(module).startswith("import os")
    assert not hasattr(module, "ABSENT")
    assert runs() == 1


def test_a_submodule_runs_its_package_first(package: str) -> None:
    with start.put_off(package):
        importlib.import_module(package)
        assert importlib.import_module(f"{package}.part").TWICE == 14
    assert runs() == 1


def test_a_submodule_that_is_put_off_too_leaves_its_package_alone(package: str) -> None:
    with start.put_off(package, f"{package}.part:absent"):
        part = importlib.import_module(f"{package}.part")
        assert sys.modules[package].part is part
    assert runs() == 0
    assert part.TWICE == 14
    assert runs() == 1


def test_afterwards_too_a_package_runs_before_its_submodules(package: str) -> None:
    with start.put_off(package):
        importlib.import_module(package)
    assert importlib.import_module(f"{package}.part").TWICE == 14
    assert runs() == 1


def test_a_decorator_gives_back_what_it_decorates_until_its_module_runs(
    package: str, tmp_path: Path
) -> None:
    init = tmp_path / package / "__init__.py"
    init.write_text(init.read_text() + "def mark(function=None, **how):\n    return 'marked'\n")
    with start.put_off(f"{package}:@mark"):
        module = importlib.import_module(package)
    assert module.mark(runs) is runs
    assert module.mark(why="not")(runs) is runs
    assert runs() == 0
    assert module.VALUE == 7
    assert module.mark(runs) == "marked"


def test_what_is_taken_from_a_module_is_there_at_once(package: str) -> None:
    with start.put_off(package):
        from rr_late import VALUE
    assert (VALUE, runs()) == (7, 1)


def test_a_function_taken_from_a_module_runs_it_when_called(package: str, tmp_path: Path) -> None:
    code = (tmp_path / package / "__init__.py").read_text()
    (tmp_path / "rr_sums.py").write_text(f"{code}def add(a, b=1):\n    return a + b\n")
    with start.put_off("rr_sums:add,absent", "rr_broken:add"):
        from rr_broken import add as broken
        from rr_sums import add
    assert runs() == 0
    assert (add(2), add(2, b=3), runs()) == (3, 5, 1)
    assert importlib.import_module("rr_sums").add(1) == 2
    assert not hasattr(importlib.import_module("rr_sums"), "absent")
    with pytest.raises(ImportError, match="no driver"):
        broken(1)


def test_only_the_named_are_put_off_and_only_within(package: str) -> None:
    before = list(sys.meta_path)
    with start.put_off("rr_other", "rr_absent"):
        importlib.import_module(package)
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("rr_absent")
    assert runs() == 1
    assert sys.meta_path == before


def test_a_module_that_cannot_be_imported_says_so_each_time(package: str) -> None:
    with start.put_off("rr_broken"):
        module = importlib.import_module("rr_broken")
    with pytest.raises(ImportError, match="no driver"):
        _ = module.anything
    with pytest.raises(ImportError, match="no driver"):
        importlib.import_module("rr_broken")


def test_garbage_is_collected_as_usual_after_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, seen = gc.get_threshold(), []
    module = importlib.import_module(cli.COMMANDS["doctor"].module)
    monkeypatch.setattr(module, "main", lambda argv: seen.append(gc.get_threshold()[0]) or 0)
    assert cli.main(["doctor"]) == 0
    assert seen == [start.RARE]
    assert gc.get_threshold() == usual


QUICK = """
    import atexit, sys, threading, time
    from regionroute import start
    # Comes after the one that leaves, unless that lets the process end as ever.
    atexit.register(lambda: print("as ever", end="", file=sys.stderr))
    done = start.end_quickly()
    atexit.register(lambda: print("handler"))
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    if sys.argv[1] == "error":
        raise ValueError("ours")
    if sys.argv[1] == "traced":
        sys.setprofile(lambda *_: None)
    done(3)
    print("last word", end="")
    raise SystemExit(3)
"""


def test_a_quick_end_waits_for_threads_handlers_and_streams() -> None:
    result = python(QUICK, "well", PYTHONUNBUFFERED="")
    assert result.returncode == 3
    assert result.stdout == "last wordthread\nhandler\n"
    assert result.stderr == ""


def test_after_an_error_of_ours_the_process_ends_as_ever() -> None:
    result = python(QUICK, "error")
    assert result.returncode == 1
    assert "ValueError: ours" in result.stderr
    assert result.stderr.endswith("as ever")


def test_under_a_profiler_the_process_ends_as_ever() -> None:
    result = python(QUICK, "traced")
    assert result.returncode == 3
    assert result.stderr.endswith("as ever")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_stream_that_cannot_be_flushed_is_told() -> None:
    command = [sys.executable, "-c", textwrap.dedent(QUICK), "well"]
    with open("/dev/full", "w") as full:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment
        )
    assert result.returncode == 120
    assert "No space left" in result.stderr
    assert "as ever" in result.stderr


def test_the_process_of_a_short_command_ends_with_its_code() -> None:
    command = [sys.executable, "-m", "regionroute.cli", "edit", "absent.png"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
