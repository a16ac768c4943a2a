"""The documentation names only files, commands and flags that exist."""

import ast
import functools
import importlib
import os
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from regionroute.cli.main import main

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted(
        path
        for path in (REPOSITORY / "docs").rglob("*.md")
        if not {"_build", "cli", "settings", "cards"} & set(path.parts)
    ),
]
# The pages on settings come from every configuration model: torch and diffusers are imported.
pytestmark = pytest.mark.timeout(900)
REFERENCE = REPOSITORY / "docs" / "reference"
FOLDERS = "regionroute|pseudo_labels|train|eval|integrations|bench|configs|docs|tests"
OURS = {"regionroute", "pseudo_labels", "train", "eval"}
GROUPS = {"experts", "mamba"}  # commands with actions of their own


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands() -> dict[tuple[str, ...], set[str]]:
    """``("experts", "show")`` -> the flags that some page gives it."""
    found: dict[tuple[str, ...], set[str]] = {}
    for page in PAGES:
        for block in re.findall(r"^```\w*\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("regionroute "):
                    words = shlex.split(line.replace("…", ""), comments=True)[1:]
                    length = 2 if words[0] in GROUPS else 1
                    flags = {word for word in words if word.startswith("--")}
                    found.setdefault(tuple(words[:length]), set()).update(flags)
    return found


@functools.cache
def reference_pages() -> ModuleType:
    """What writes pages from the code when the site is built."""
    sys.path.insert(0, str(REPOSITORY / "docs" / "_ext"))
    try:
        return importlib.import_module("reference_pages")
    finally:
        sys.path.pop(0)


def exists(path: Path) -> bool:
    generated = {REFERENCE / f"{name}.md" for name in reference_pages().page_names()}
    return path.exists() or Path(os.path.normpath(path)) in generated


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_and_paths_exist(page):
    text = text_of(page)
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text)
    missing = [link for link in links if "://" not in link and not exists(page.parent / link)]
    named = re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./*-]*\w[/\w]?)", text)
    named = [path for path in named if "_build" not in path.split("/")]  # not in a fresh clone
    missing += [path for path in named if not list(REPOSITORY.glob(path))]
    modules = {path.name for path in REPOSITORY.glob("[!.]*/**/*.py")}
    missing += [name for name in re.findall(r"`(\w+\.py)`", text) if name not in modules]
    assert missing == []


def test_readme_is_short():
    assert len(text_of(REPOSITORY / "README.md").splitlines()) <= 180


def test_readme_links_every_section():
    readme = text_of(REPOSITORY / "README.md")
    sections = [page.parent.name for page in (REPOSITORY / "docs").glob("[!_]*/index.md")]
    assert {"tutorials", "howto", "explanation", "reference", "measured"} <= set(sections)
    assert [name for name in sections if f"docs/{name}/index.md" not in readme] == []


def test_reference_names_every_command_and_setting():
    from regionroute.cli.main import COMMANDS
    from regionroute.config.io import known_keys
    from regionroute.config.run import RunConfig

    pages = reference_pages().all_pages()
    assert set(pages) == reference_pages().page_names()
    commands, settings = (
        "".join(text for name, text in pages.items() if name.startswith(f"{part}/"))
        for part in ("cli", "settings")
    )
    assert [name for name in COMMANDS if f"# regionroute {name}\n" not in commands] == []
    assert "`--region-map" in commands
    assert [key for key in known_keys(RunConfig) if f"`{key}`" not in settings] == []


def test_metrics_page_names_every_metric():
    from eval.metrics import CATALOGUE

    page = text_of(REPOSITORY / "docs" / "explanation" / "metrics.md")
    page = page.replace("`q1` … `q4`", "`q1` `q2` `q3` `q4`")
    assert [name for name in CATALOGUE if f"`{name}`" not in page] == []


def test_commands_and_flags_exist(capsys):
    found = commands()
    assert {("edit",), ("label",), ("experts", "export"), ("mamba", "fit")} <= set(found)
    wrong = []
    for command, flags in found.items():
        if command[0].startswith("-"):
            continue
        with pytest.raises(SystemExit) as ended:
            main([*command, "--help"])
        shown = capsys.readouterr().out
        known = set(re.findall(r"--[a-z][a-z-]*", shown))
        if ended.value.code or not shown:
            wrong.append(f"{' '.join(command)}: no such command")
        wrong += [f"{' '.join(command)} {flag}" for flag in flags - known - {"--help"}]
    assert wrong == []


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    [block] = re.findall(r"^```python\n(.*?)^```", text_of(REPOSITORY / "README.md"), re.S | re.M)
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((144, 96)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert Image.open("out.png").size == (144, 96)
    assert Image.open("map.png").size == (144, 96)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_python_compiles_and_imports_exist(page):
    """Every Python block; those of the tutorials also run, in tests/docs."""
    for block in re.findall(r"^```python\n(.*?)^```", text_of(page), re.S | re.M):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in OURS:
                module = importlib.import_module(node.module)
                assert [one.name for one in node.names if not hasattr(module, one.name)] == []
