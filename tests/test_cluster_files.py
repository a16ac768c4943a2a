"""The examples of cluster runs in docs/cluster are well formed, and their commands exist."""

import os
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


def test_slurm_script_runs_its_commands_in_order(tmp_path):
    """With the cluster's programs replaced by some that only note how they were called."""
    bash, log = shutil.which("bash"), tmp_path / "calls"
    if bash is None:
        pytest.skip("no bash")
    for name in ("scontrol", "srun", "sleep", "regionroute"):
        answer = "printf 'n1\\nn2\\n'" if name == "scontrol" else ":"
        program = tmp_path / name
        program.write_text(f'#!{bash}\necho "{name} $*" >> {log}\n{answer}\n')
        program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2"}
    subprocess.run([bash, FOLDER / "slurm.sh"], check=True, env=environment, timeout=60)
    calls = [line for line in log.read_text().splitlines() if not line.startswith("sleep")]
    head = [line for line in calls if "ray start --head --port=6379 --block" in line]
    others = [line for line in calls if "ray start --address=n1:6379 --block" in line]
    assert head == [
        "srun --nodes=1 --ntasks=1 --overlap -w n1 ray start --head --port=6379 --block"
    ]
    assert [line[:50] for line in others] == ["srun --nodes=1 --ntasks=1 --overlap --exclude=n1 r"]
    assert [line.split()[1] for line in calls if line.startswith("regionroute")] == [
        "label",
        "manifest",
    ]


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
