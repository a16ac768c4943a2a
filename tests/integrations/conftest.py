"""The node pack, on ComfyUI's own `comfy_api` where COMFYUI_PATH names a checkout of ComfyUI."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def script():
    """The module `make_workflows`, which loads the pack as ComfyUI does."""
    if checkout := os.environ.get("COMFYUI_PATH"):
        sys.path.append(checkout)
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
    path = REPOSITORY / "integrations" / "comfyui" / "make_workflows.py"
    spec = importlib.util.spec_from_file_location("make_workflows", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.load_pack()
    return module


@pytest.fixture(scope="session")
def pack(script):
    """A function: a module of the pack by its name."""
    return lambda name: sys.modules[f"{script.NAME}.{name}"]


@pytest.fixture(scope="session")
def workflows(script):
    return importlib.import_module(f"{script.NAME}.workflows")


@pytest.fixture(scope="session")
def nodes(workflows):
    """The node classes by node id."""
    return workflows.pack_nodes()


@pytest.fixture(scope="session")
def pipe():
    from regionroute import RegionRoutePipeline  # imported here: slow, and workflows do without

    return RegionRoutePipeline.from_pretrained("nano")
