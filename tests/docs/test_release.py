"""What a release needs: one version, known licences, files that fit each other."""

import fnmatch
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = {".png", ".jpg", ".safetensors", ".onnx", ".bin", ".npz", ".pt", ".gz", ".webp"}


@pytest.fixture(scope="module")
def licences():
    sys.path.insert(0, str(REPOSITORY / "docs" / "_ext"))
    try:
        yield importlib.import_module("licences")
    finally:
        sys.path.pop(0)


def project(path="pyproject.toml"):
    return tomllib.loads((REPOSITORY / path).read_text())["project"]


def test_files_that_repeat_the_version_agree():
    version = project()["version"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert str(citation["version"]) == version
    assert project("integrations/comfyui/pyproject.toml")["version"] == version
    assert re.search(rf"^## \[({re.escape(version)}|Unreleased)\]", changelog(), re.M)


def changelog():
    return (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_origin_of_every_binary_file_is_stated(licences):
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    files = [name for name in listed if Path(name).suffix in BINARY]
    assert len(files) > 20
    patterns = [entry[0] for entry in licences.SHIPPED]
    unknown = [
        name for name in files if not any(fnmatch.fnmatchcase(name, each) for each in patterns)
    ]
    assert unknown == [], "state origin and licence in docs/_ext/licences.py"


def test_the_bill_of_materials_holds_the_core(licences):
    bill = licences.sbom()
    assert bill["bomFormat"] == "CycloneDX"
    named = {entry["name"]: entry for entry in bill["components"]}
    assert {"torch", "diffusers", "peft", "safetensors"} <= set(named)
    assert named["torch"]["scope"] == "required"
    assert "pytest" not in named
    assert all(entry["licenses"][0]["license"]["name"] for entry in named.values())


def test_the_workflow_uses_targets_that_exist():
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    for path in (REPOSITORY / ".github" / "workflows").glob("*.yml"):
        workflow = yaml.safe_load(path.read_text())
        runs = [
            step["run"]
            for job in workflow["jobs"].values()
            for step in job["steps"]
            if "run" in step
        ]
        used = {match for run in runs for match in re.findall(r"^make ([a-z-]+)", run, re.M)}
        assert used <= targets, path.name
        needed = {need for job in workflow["jobs"].values() for need in [job.get("needs")] if need}
        assert needed <= set(workflow["jobs"])
    kinds = yaml.safe_load((REPOSITORY / ".github/workflows/release.yml").read_text())
    for kind in kinds["jobs"]["image"]["strategy"]["matrix"]["kind"]:
        assert (REPOSITORY / "docker" / f"Dockerfile.{kind}").is_file()


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_images_install_extras_that_exist(kind):
    text = (REPOSITORY / "docker" / f"Dockerfile.{kind}").read_text()
    [extras] = re.findall(r"\$\{wheel\}\[([a-z0-9,]+)\]", text)
    assert set(extras.split(",")) <= set(project()["optional-dependencies"])
    for name in re.findall(r"^COPY ([\w./-]+) /tmp", text, re.M):
        assert (REPOSITORY / name).is_file()


def test_scripts_are_shell(tmp_path):
    bash = shutil.which("bash")
    for name in ("release", "run", "browser"):
        subprocess.run([bash, "-n", REPOSITORY / ".ci" / name], check=True)
