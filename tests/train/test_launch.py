"""The launchers themselves: two processes on CPU give the losses of one."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from train.data.shards import Shard
from train.engine.distributed import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
DEADLINE = 280  # below pytest's own limit, so that ours cleans up


def start(command, log):
    """A launcher in the background, its output and its processes' in a file.

    Not in a pipe: a launcher that was killed may leave processes that hold it open.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    with log.open("w") as file:
        return subprocess.Popen(
            [*map(str, command)],
            cwd=REPOSITORY,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def end(process):
    """Kills a launcher and all it started."""
    root = psutil.Process(process.pid)
    for started in [*root.children(recursive=True), root]:
        started.kill()


def finish(process, log):
    """Its exit code and output; nothing of it outlives the deadline."""
    try:
        process.wait(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        end(process)
        pytest.fail(f"no end after {DEADLINE} s:\n{log.read_text()[-3000:]}")
    return process.returncode, log.read_text()


class Launch:
    """Starts the command under a launcher, and waits for its end."""

    def __init__(self, log):
        self.log = log

    def deepspeed(self, processes, arguments):
        launcher = [BIN / "deepspeed", "--num_gpus", processes, "--master_port", free_port()]
        return start([*launcher, "train/run.py", *arguments], self.log)

    def torchrun(self, processes, arguments):
        launcher = [BIN / "torchrun", "--nproc-per-node", processes]
        launcher += ["--master-port", free_port()]
        return start([*launcher, "train/run.py", *arguments], self.log)

    def python(self, arguments):
        return start([sys.executable, "train/run.py", *arguments], self.log)

    def wait_until(self, process, condition):
        """Waits for something the processes do that `process` launched."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > DEADLINE:
                end(process)
                pytest.fail(f"nothing after {DEADLINE} s:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)

    def finish(self, process):
        return finish(process, self.log)


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path / "launch.log")


def test_two_deepspeed_processes_give_the_losses_of_one(launch, runs):
    arguments = runs.arguments("two", "train.zero_stage=2", "supervision.gradient_norms_every=4")
    code, output = launch.finish(launch.deepspeed(2, arguments))
    assert code == 0, output[-3000:]
    assert output.count("experts: ") == 1  # only one process talks
    assert runs("one") == 0
    assert runs.difference("one", "two") < 1e-5
    one, two = runs.experts("one"), runs.experts("two")
    assert max((one[key] - two[key]).abs().max() for key in one) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_share_the_caching_and_the_buckets(launch, runs, tiny_manifest):
    for kind in ("context", "target", "mask"):
        path = tiny_manifest / f"0.{kind}.png"
        Image.open(path).crop((0, 0, 64, 44)).save(path)
    code, output = launch.finish(launch.deepspeed(2, runs.arguments("two")))
    assert code == 0, output[-3000:]
    assert output.count("0 entries cached, 12 to encode") == 1
    assert "images at 32x32 (2), 40x28 (1)" in output
    shares = [len(Shard(path).keys) for path in (runs.folder / "cache").rglob("*.safetensors")]
    assert sorted(shares) == [1, 1, 2, 2, 3, 3]  # of 3 masks, 3 texts, 6 pictures
    assert runs("one", f"data.cache={runs.folder / 'other'}") == 0
    assert runs.difference("one", "two") < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_torchrun_processes_with_accumulation(launch, runs):
    code, output = launch.finish(launch.torchrun(2, runs.arguments("two", "train.accumulation=2")))
    assert code == 0, output[-3000:]
    assert runs("one") == 0
    assert runs.difference("one", "two") < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_deepspeed_process_is_the_same_as_plain_python(launch, runs):
    code, output = launch.finish(launch.deepspeed(1, runs.arguments("launched")))
    assert code == 0, output[-3000:]
    code, output = launch.finish(launch.python(runs.arguments("plain")))
    assert code == 0, output[-3000:]
    assert runs.difference("launched", "plain") == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_processes_stopped_by_sigterm_continue_bit_for_bit(launch, runs, stage):
    rest = [f"train.zero_stage={stage}", "train.gradient_checkpointing=true", "train.steps=120"]
    rest += ["train.preview_every=50", "train.save_every=1000"]
    code, output = launch.finish(launch.deepspeed(2, runs.arguments("whole", *rest)))
    assert code == 0, output[-3000:]
    process = launch.deepspeed(2, runs.arguments("halves", *rest))
    losses = runs.output("halves") / "losses.jsonl"
    launch.wait_until(process, lambda: losses.exists() and losses.read_text().count("\n") >= 3)
    # The `deepspeed` command itself passes no signal on; what it starts does.
    (launcher,) = psutil.Process(process.pid).children()
    launcher.terminate()
    code, output = launch.finish(process)
    assert code != 0
    assert "stopped at step" in output
    (stopped,) = runs.checkpoints("halves")
    assert 3 <= int(stopped.removeprefix("step-")) < 120, output[-3000:]
    code, output = launch.finish(launch.deepspeed(2, runs.arguments("halves", *rest)))
    assert code == 0, output[-3000:]
    assert runs.difference("whole", "halves") == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fewer_processes_resume_at_the_sample_whatever_the_cache(launch, runs, tmp_path):
    rest = ["train.zero_stage=0", "data.shuffle_block=2", "data.shuffle_window=2"]
    caches = {"local": tmp_path / "cache", "streamed": f"file://{tmp_path}/remote"}
    for name, cache in caches.items():
        own = [*rest, f"data.cache={cache}", "data.stream_memory=1e-6"]
        arguments = runs.arguments(name, *own, "train.steps=4")
        code, output = launch.finish(launch.torchrun(2, arguments))
        assert code == 0, output[-3000:]
        assert runs(name, *own, "train.steps=8") == 0  # with one process
    for steps in (4, 8):
        assert runs("one", *rest, f"data.cache={caches['local']}", f"train.steps={steps}") == 0
    assert runs.difference("local", "streamed") == 0
    assert runs.difference("one", "local") < 1e-5
    assert [row["step"] for row in runs.losses("streamed")] == [*range(1, 9)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_mistake_met_by_all_processes_is_said_once(launch, runs, tiny_manifest):
    (tiny_manifest / "1.target.png").write_bytes(b"no picture")
    code, output = launch.finish(launch.torchrun(2, runs.arguments("two")))
    assert code != 0
    assert output.count("error: ") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_killing_a_process_ends_the_other_and_leaves_the_last_checkpoint(launch, runs, launcher):
    rest = ["train.steps=4000", "train.save_every=1", "train.keep=2", "train.zero_stage=1"]
    process = getattr(launch, launcher)(2, runs.arguments("run", *rest))
    folder = runs.output("run") / "checkpoints"
    launch.wait_until(process, (folder / "step-000003").exists)
    started = psutil.Process(process.pid).children(recursive=True)
    workers = [one for one in started if "train/run.py" in one.cmdline() and not one.children()]
    assert len(workers) == 2
    workers[-1].kill()
    _, alive = psutil.wait_procs([workers[0]], timeout=DEADLINE / 4)
    assert not alive, "the other process goes on waiting"
    code, output = launch.finish(process)
    assert code != 0, output[-3000:]
    newest = sorted(path.name for path in folder.glob("step-*"))[-1]
    step = int(newest.removeprefix("step-"))
    assert runs("run", *rest, f"train.steps={step + 1}") == 0  # loads, now with one process
    rows = [row["step"] for row in runs.losses("run")]
    assert rows == list(range(1, step + 2))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_average_validation_and_shares_are_the_same_with_two_processes(launch, runs, capsys):
    rest = ["train.zero_stage=3", "optim.ema=0.8", "supervision.gradient_norms_every=2"]
    rest += ["supervision.max_gradient_ratio=0.2", "train.validate_every=2", "train.save_every=2"]
    rest += ["train.preview_every=3", "train.keep=9", "experts.dropout=0"]
    code, output = launch.finish(launch.torchrun(2, runs.arguments("two", *rest)))
    assert code == 0, output[-3000:]
    assert runs("one", *rest) == 0
    assert runs.difference("one", "two") < 1e-5
    for name in ("losses", "scores"):
        one, two = (
            [json.loads(line) for line in (runs.output(n) / f"{name}.jsonl").open()]
            for n in ("one", "two")
        )
        assert [sorted(row) for row in one] == [sorted(row) for row in two]
        for mine, other in zip(one, two, strict=True):
            assert mine == pytest.approx(other, rel=1e-3, abs=1e-4)
    one, two = runs.experts("one"), runs.experts("two")
    assert max((one[key] - two[key]).abs().max() for key in one) < 1e-4

    # From the last checkpoint but one with one process: the experts alone.
    shutil.rmtree(runs.output("two") / "checkpoints" / "step-000006")
    capsys.readouterr()
    assert runs("two", *rest) == 0
    said = capsys.readouterr().out
    assert "which 2 processes wrote, with 1: the experts (and their moving average)" in said
    assert "the optimizer's moments are not, they start from zero" in said
    assert [row["step"] for row in runs.losses("two")] == [1, 2, 3, 4, 5, 6]
    fifth = [runs.losses(name)[4] for name in ("one", "two")]
    assert fifth[1]["flow"] == pytest.approx(fifth[0]["flow"], abs=1e-5)  # the same weights
    assert fifth[1]["lr"] == fifth[0]["lr"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_processes_train_klein_as_one_does(launch, klein_runs, stage):
    rest = [f"train.zero_stage={stage}", "train.gradient_checkpointing=true"]
    rest += ["train.preview_every=3"]
    code, output = launch.finish(launch.deepspeed(2, klein_runs.arguments("two", *rest)))
    assert code == 0, output[-3000:]
    assert klein_runs("one") == 0
    assert klein_runs.difference("one", "two") < 1e-5
    one, two = klein_runs.experts("one"), klein_runs.experts("two")
    assert max((one[key] - two[key]).abs().max() for key in one) < 1e-4
    assert (klein_runs.output("two") / "previews" / "step-000006.png").is_file()
