"""Puts configs/ into the wheel as regionroute/configs; all else is declared in pyproject.toml."""

from setuptools import find_namespace_packages, setup

PACKAGES = find_namespace_packages(include=["regionroute*", "pseudo_labels*", "train*", "eval*"])

setup(
    packages=[*PACKAGES, "regionroute.configs"],
    package_dir={"regionroute.configs": "configs"},
)
