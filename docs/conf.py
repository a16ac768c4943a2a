"""Settings of the documentation site: `make docs` builds it offline, warnings are errors."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

os.environ["HF_HUB_OFFLINE"] = "1"  # building the site asks no server for anything

import measured  # noqa: E402  # lies in _ext

project = "RegionRoute"
author = "RegionRoute contributors"
project_copyright = "RegionRoute contributors, Apache-2.0"
version = release = installed_version("regionroute")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "reference_pages",  # writes reference/cli and reference/settings from the code
]
exclude_patterns = ["_build", "_ext"]

nb_execution_mode = "off"  # outputs are stored; tests/docs/test_notebooks.py executes them
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types are in the docstrings, with shapes and ranges
autodoc_default_options = {"members": True}
python_display_short_literal_types = True

smartquotes = False
highlight_language = "text"

html_theme = "furo"
html_title = f"RegionRoute {version}"
html_static_path: list[str] = []
html_show_sphinx = False
html_copy_source = False


def setup(app: object) -> None:
    """Draws the tables of docs/measured from bench/results before pages are read."""
    measured.main()
