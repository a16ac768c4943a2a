"""Imports run downhill only, between the packages and inside the library: docs/explanation.

Read from the source, so that imports inside functions, type-checking blocks and `import_module`
calls count as well. The entry points, `regionroute.cli` and
`regionroute.studio`, alone may start the other packages, from inside functions.
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
    "integrations": {"regionroute", "eval"},
}
ENTRY_POINTS = ("regionroute.cli.", "regionroute.studio.")
LEVELS = (  # rooms and root files of regionroute, from the bottom; each imports only lower ones
    "errors",
    "stores",
    "remote",
    "files",
    "folders",
    "markdown",
    "settings_files",
    "hub",
    "hub_names",
    "pretrained",
    "engines",
    "compat",
    "config",
    "data",
    "diffusion",
    "attention",
    "adapters",
    "models",
    "routing",
    "editing",
    "planning",
    "pipeline",
    "rehearsal",
    "studio",
    "cli",
)
LEVEL = {name: height for height, name in enumerate(LEVELS)}
MOST_FILES = 15  # of one room, `__init__` aside


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    lazy: bool  # inside a function
    type_checking: bool  # inside an `if TYPE_CHECKING` block


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
    guards = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
    ]
    checking = {id(n) for guard in guards for n in ast.walk(guard)}
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        for target in _targets(node, package):
            # "from a import b" names the module a.b if there is one, else something in a.
            target = target if target in known else target.rpartition(".")[0]
            if target.partition(".")[0] in ROOMS:
                yield Import(name, target, node.lineno, id(node) in lazy, id(node) in checking)


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
        later = found.lazy or found.type_checking
        may_start = f"{found.importer}.".startswith(ENTRY_POINTS) and later
        if other in ROOMS[room] or may_start:
            return None
        return f"{room} must not know {other}"
    if room != "regionroute" or found.imported == "regionroute":
        return None
    importer, imported = found.importer.split(".")[1:2], found.imported.split(".")[1:2]
    if importer == imported:
        return None  # within one file or package
    if not importer:
        lazy = found.lazy or found.type_checking
        return (
            None
            if lazy
            else "regionroute/__init__.py imports lazily, so that every part stays light"
        )
    for name in importer + imported:
        if name not in LEVEL:
            return f"give {name} its place in LEVELS ({Path(__file__).name})"
    if LEVEL[imported[0]] >= LEVEL[importer[0]]:
        return f"{importer[0]} stands below or beside {imported[0]}"
    return None


def test_imports_run_downhill():
    assert violations(REPOSITORY) == []


def test_no_module_needs_itself():
    """No circle of imports, not even inside one room; type-checking blocks aside."""
    known = modules(REPOSITORY)
    needs = {
        name: {i.imported for i in imports(name, path, set(known)) if not i.type_checking} - {name}
        for name, path in known.items()
    }
    assert _circles(needs) == []


def _circles(needs: dict[str, set[str]]) -> list[list[str]]:
    """The circles of a graph, each once, by depth-first search."""
    done: set[str] = set()
    found: list[list[str]] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            found.append([*path[path.index(name) :], name])
        elif name not in done:
            for other in sorted(needs.get(name, ())):
                visit(other, [*path, name])
            done.add(name)

    for name in sorted(needs):
        visit(name, [])
    return found


def test_no_room_is_crowded():
    files: dict[Path, int] = {}
    for path in modules(REPOSITORY).values():
        files[path.parent] = files.get(path.parent, 0) + (path.name != "__init__.py")
    assert {str(room): n for room, n in files.items() if n > MOST_FILES} == {}


def test_every_room_is_there():
    assert {name.partition(".")[0] for name in modules(REPOSITORY)} == set(ROOMS)


@pytest.mark.parametrize(
    ("file", "source", "why"),
    [
        ("train/run.py", "from eval.summary import mean", "train must not know eval"),
        ("eval/rses.py", "import train.run", "eval must not know train"),
        ("eval/rses.py", "import pseudo_labels", "eval must not know pseudo_labels"),
        ("pseudo_labels/label.py", "def f():\n    import train.run", "must not know train"),
        ("regionroute/files.py", "from train import run", "regionroute must not know train"),
        ("regionroute/data/images.py", "def f():\n    import eval.rses", "must not know eval"),
        ("regionroute/cli/main.py", "import eval.rses", "regionroute must not know eval"),
        ("regionroute/studio/scores.py", "import eval.rses", "regionroute must not know eval"),
        ("regionroute/studio/scores.py", "import regionroute.cli.main", "beside cli"),
        ("regionroute/files.py", "import_module('train.run')", "must not know train"),
        ("regionroute/diffusion/flow.py", "from regionroute import pipeline", "beside pipeline"),
        ("regionroute/files.py", "from . import pipeline", "below or beside pipeline"),
        ("regionroute/diffusion/flow.py", "from ..models.nano import x", "below or beside models"),
        ("regionroute/attention/losses.py", "from ..adapters import x", "or beside adapters"),
        ("regionroute/files.py", "def f():\n    import regionroute.cli", "or beside cli"),
        (
            "regionroute/errors.py",
            "if TYPE_CHECKING:\n    import regionroute.files",
            "or beside files",
        ),
        ("regionroute/novelty.py", "from regionroute.files import x", "give novelty its place"),
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
            "regionroute/cli/main.py": "def f():\n    from pseudo_labels.label import main",
            "regionroute/cli/label.py": "def f():\n    from pseudo_labels.label import main",
            "regionroute/studio/scores.py": "def f():\n    import eval.rses",
            "regionroute/pipeline.py": "from regionroute.errors import x\nfrom . import files",
            "regionroute/attention/losses.py": "from .columns import attend",
            "regionroute/__init__.py": "def __getattr__(name):\n    import regionroute.pipeline",
        },
    )
    assert violations(tmp_path) == []


def _tree(root, extra):
    """A small copy of the layout with the given files in it."""
    files = ["train/data", "eval/stats", "pseudo_labels/label", "regionroute/attention/columns"]
    files += ["train/run", "eval/rses", "regionroute/models/nano", "regionroute/adapters/inject"]
    files += ["regionroute/studio/scores"]
    files += ["regionroute/data/images", "regionroute/diffusion/flow", "regionroute/cli/main"]
    files += [f"regionroute/{name}" for name in ("errors", "files", "pipeline")]
    for name in files:
        for package in Path(name).parents[:-1]:
            (root / package).mkdir(parents=True, exist_ok=True)
            (root / package / "__init__.py").touch()
        (root / f"{name}.py").touch()
    for name, source in extra.items():
        (root / name).write_text(source)
