"""The launchers themselves: two processes on CPU give the losses of one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.distributed import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
DEADLINE = 240


def start(command):
    """A launcher in the background, in a process group of its own, its output in a pipe."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [*map(str, command)],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """Its exit code and output; nothing of it outlives the deadline."""
    try:
        output, _ = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"no end after {DEADLINE} s:\n{output[-3000:]}")
    return process.returncode, output


def deepspeed(processes, arguments):
    launcher = [BIN / "deepspeed", "--num_gpus", processes, "--master_port", free_port()]
    return start([*launcher, "train/run.py", *arguments])


def torchrun(processes, arguments):
    launcher = [BIN / "torchrun", "--nproc-per-node", processes, "--master-port", free_port()]
    return start([*launcher, "train/run.py", *arguments])


def test_two_deepspeed_processes_give_the_losses_of_one(runs):
    code, output = finish(deepspeed(2, runs.arguments("two", "train.zero_stage=2")))
    assert code == 0, output[-3000:]
    assert output.count("experts: ") == 1  # only one process talks
    assert runs("one") == 0
    assert runs.difference("one", "two") < 1e-5
    one, two = runs.experts("one"), runs.experts("two")
    assert max((one[key] - two[key]).abs().max() for key in one) < 1e-4


@pytest.mark.slow
def test_two_torchrun_processes_with_accumulation(runs):
    code, output = finish(torchrun(2, runs.arguments("two", "train.accumulation=2")))
    assert code == 0, output[-3000:]
    assert runs("one") == 0
    assert runs.difference("one", "two") < 1e-5


@pytest.mark.slow
def test_one_deepspeed_process_is_the_same_as_plain_python(runs):
    code, output = finish(deepspeed(1, runs.arguments("launched")))
    assert code == 0, output[-3000:]
    code, output = finish(start([sys.executable, "train/run.py", *runs.arguments("plain")]))
    assert code == 0, output[-3000:]
    assert runs.difference("launched", "plain") == 0


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_processes_stopped_by_sigterm_continue_bit_for_bit(runs, stage):
    rest = [f"train.zero_stage={stage}", "train.gradient_checkpointing=true", "train.steps=200"]
    rest += ["train.preview_every=50", "train.save_every=1000"]
    code, output = finish(deepspeed(2, runs.arguments("whole", *rest)))
    assert code == 0, output[-3000:]
    process = deepspeed(2, runs.arguments("halves", *rest))
    losses = runs.output("halves") / "losses.jsonl"
    began = time.monotonic()
    while not (losses.exists() and losses.read_text().count("\n") >= 3):
        assert time.monotonic() - began < DEADLINE
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code != 0
    (stopped,) = runs.checkpoints("halves")
    assert 3 <= int(stopped.removeprefix("step-")) < 200, output[-3000:]
    code, output = finish(deepspeed(2, runs.arguments("halves", *rest)))
    assert code == 0, output[-3000:]
    assert runs.difference("whole", "halves") == 0


@pytest.mark.slow
def test_a_mistake_met_by_all_processes_is_said_once(runs, tiny_manifest):
    (tiny_manifest / "1.target.png").write_bytes(b"no picture")
    code, output = finish(torchrun(2, runs.arguments("two")))
    assert code != 0
    assert output.count("error: ") == 1


@pytest.mark.slow
def test_killing_a_process_leaves_the_last_checkpoint(runs):
    rest = ["train.steps=400", "train.save_every=1", "train.keep=2"]
    process = torchrun(2, runs.arguments("run", *rest))
    folder = runs.output("run") / "checkpoints"
    began = time.monotonic()
    while not (folder / "step-000003").exists():
        assert time.monotonic() - began < DEADLINE
        time.sleep(0.02)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    code, _ = finish(process)
    assert code != 0
    reached = len(runs.losses("run"))
    code, output = finish(torchrun(2, runs.arguments("run", *rest, f"train.steps={reached + 3}")))
    assert code == 0, output[-3000:]
    assert "continuing from" in output
