"""The examples of cluster runs in docs/cluster are well formed, and their commands exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from regionroute.cli import label
from regionroute.cli.manifest import main as manifest

FOLDER = Path(__file__).parent.parent / "docs" / "cluster"
PARSERS = {"label": label.parser, "manifest": manifest.parser}


@pytest.mark.parametrize("name", ["slurm.sh", "kubernetes.yaml"])
def test_commands_parse(name):
    text = re.sub(r"\s+", " ", (FOLDER / name).read_text())
    commands = re.findall(r"regionroute ((?:label|manifest) .*?)(?= regionroute| &&|\"|$)", text)
    assert len(commands) == 2
    for command in commands:
        name, *arguments = shlex.split(command)
        args = PARSERS[name]().parse_args(arguments)
        assert args.engine == "ray"


def test_slurm_script_is_bash():
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    subprocess.run([bash, "-n", FOLDER / "slurm.sh"], check=True)


def test_kubernetes_job_is_whole():
    job = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    [group] = cluster["workerGroupSpecs"]
    [node] = group["template"]["spec"]["containers"]
    assert node["image"] == cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    assert node["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.mark.slow
def test_launcher_file_fits_rays_schema():
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray is not installed")
    config = yaml.safe_load((FOLDER / "ray.yaml").read_text())
    util.validate_config(util.fillout_defaults(config))
