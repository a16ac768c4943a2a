"""Imports run downhill only (README, "Where things are"): between the rooms and inside the library.

Read from the source, so that imports inside functions, type-checking blocks and `import_module`
calls count as well. `regionroute/cli.py` alone may start the other rooms, from inside functions.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = {  # room -> rooms it may import
    "regionroute": set(),
    "pseudo_labels": {"regionroute"},
    "train": {"regionroute"},
    "eval": {"regionroute"},
}
COMMAND = "regionroute.cli"
LEVELS = (  # inside regionroute, from the bottom; each imports only what stands below it
    {"errors", "start"},
    {"io", "devices", "manifest_names", "manifest_shards", "vgg"},
    {"config_io", "config_base", "manifest", "readings", "latents", "prompts"},
    {"config_train"},
    {"config", "families", "buckets"},
    {"attention", "adapters", "instances"},
    {"flow", "styles"},
    {"routing", "request"},
    {"backbones", "region_maps", "pixel_gates"},
    {"expert_settings", "planning", "bundled"},
    {"sampler", "closer"},
    {"calibration", "edit_facts", "stages"},
    {"pipeline"},
    {"outputs", "head_scan", "edit_libraries"},
    {"batch"},
    {
        "edit_command",
        "calibrate",
        "experts_command",
        "check",
        "doctor",
        "demo",
        "study",
        "plan_command",
    },
    {"cli"},
)
LEVEL = {name: height for height, names in enumerate(LEVELS) for name in names}


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    lazy: bool  # inside a function


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module in the rooms under `root`."""
    found = {}
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    lazy = {id(n) for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        for target in _targets(node, package):
            # "from a import b" names the module a.b if there is one, else something in a.
            target = target if target in known else target.rpartition(".")[0]
            if target.partition(".")[0] in ROOMS:
                yield Import(name, target, node.lineno, id(node) in lazy)


def _targets(node: ast.AST, package: str) -> list[str]:
    """Names a node may import, for `from a import b` both possible readings as ``a.b``."""
    if isinstance(node, ast.Import):
        return [f"{alias.name}.*" for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        function = node.func.id if isinstance(node.func, ast.Name) else function
        if function in ("import_module", "__import__"):
            return [f"{node.args[0].value}.*"]
    return []


def violations(root: Path) -> list[str]:
    """One line for each import that runs uphill or sideways."""
    known = modules(root)
    every = [i for name, path in known.items() for i in imports(name, path, set(known))]
    found = dict.fromkeys(every)  # `from a import b, c` names a twice
    return [f"{i.importer}:{i.line} imports {i.imported}: {why}" for i in found if (why := _why(i))]


def _why(found: Import) -> str | None:
    room, other = found.importer.partition(".")[0], found.imported.partition(".")[0]
    if room != other:
        if other in ROOMS[room] or (found.importer == COMMAND and found.lazy):
            return None
        return f"{room} must not know {other}"
    if room != "regionroute" or found.imported == "regionroute":
        return None
    importer, imported = found.importer.split(".")[1:2], found.imported.split(".")[1:2]
    if importer == imported:
        return None  # within one file or package
    if not importer:
        return "regionroute/__init__.py imports nothing of its own, so that every part stays light"
    for name in importer + imported:
        if name not in LEVEL:
            return f"give {name} its place in LEVELS ({Path(__file__).name})"
    if LEVEL[imported[0]] >= LEVEL[importer[0]]:
        return f"{importer[0]} stands below or beside {imported[0]}"
    return None


def test_imports_run_downhill():
    assert violations(REPOSITORY) == []


def test_every_room_is_there():
    assert {name.partition(".")[0] for name in modules(REPOSITORY)} == set(ROOMS)


@pytest.mark.parametrize(
    ("file", "source", "why"),
    [
        ("train/run.py", "from eval.stats import mean", "train must not know eval"),
        ("eval/rses.py", "import train.run", "eval must not know train"),
        ("eval/rses.py", "import pseudo_labels", "eval must not know pseudo_labels"),
        ("pseudo_labels/label.py", "def f():\n    import train.run", "must not know train"),
        ("regionroute/flow.py", "from train import run", "regionroute must not know train"),
        ("regionroute/demo.py", "def f():\n    import eval.rses", "regionroute must not know eval"),
        ("regionroute/cli.py", "import eval.rses", "regionroute must not know eval"),
        ("regionroute/io.py", "import_module('train.run')", "regionroute must not know train"),
        ("regionroute/flow.py", "from regionroute import pipeline", "below or beside pipeline"),
        ("regionroute/flow.py", "from . import pipeline", "below or beside pipeline"),
        ("regionroute/flow.py", "from .backbones.nano import x", "below or beside backbones"),
        ("regionroute/attention/losses.py", "from ..adapters import x", "or beside adapters"),
        ("regionroute/prompts.py", "def f():\n    import regionroute.cli", "or beside cli"),
        ("regionroute/errors.py", "if TYPE_CHECKING:\n    import regionroute.io", "or beside io"),
        ("regionroute/novelty.py", "from regionroute.io import x", "give novelty its place"),
        ("regionroute/__init__.py", "from regionroute.pipeline import edit", "stays light"),
    ],
)
def test_uphill_imports_are_found(tmp_path, file, source, why):
    _tree(tmp_path, {file: source})
    found = violations(tmp_path)
    assert len(found) == 1, found
    assert why in found[0]


def test_downhill_imports_are_left_alone(tmp_path):
    _tree(
        tmp_path,
        {
            "train/run.py": "import torch, train.data\nfrom regionroute.pipeline import edit",
            "regionroute/cli.py": "def f():\n    from pseudo_labels.label import main",
            "regionroute/pipeline.py": "from regionroute.errors import UserError\nfrom . import io",
            "regionroute/attention/losses.py": "from .columns import attend",
        },
    )
    assert violations(tmp_path) == []


def _tree(root, extra):
    """A small copy of the layout with the given files in it."""
    files = ["train/data", "eval/stats", "pseudo_labels/label", "regionroute/attention/columns"]
    files += ["train/run", "eval/rses", "regionroute/backbones/nano", "regionroute/adapters/inject"]
    files += [f"regionroute/{name}" for name in ("errors", "io", "flow", "pipeline", "cli", "demo")]
    for name in files:
        for package in Path(name).parents[:-1]:
            (root / package).mkdir(parents=True, exist_ok=True)
            (root / package / "__init__.py").touch()
        (root / f"{name}.py").touch()
    for name, source in extra.items():
        (root / name).write_text(source)
