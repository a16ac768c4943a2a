"""Trackers: what each is told, by stand-ins for the services' modules; and what they refuse."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regionroute.adapters import inject
from regionroute.config.run import load_config
from regionroute.errors import UserError
from regionroute.models.loading import load_base
from regionroute.planning.trace import StepShape, trace_step
from train.monitor.logs import Reporter
from train.monitor.speed import Speed, count_operations, speed_of
from train.monitor.trackers import TensorBoard, check_trackers, open_trackers
from train.planned import planned_step


class Run:
    """What both services give for a run."""

    def __init__(self, service, settings):
        self.settings, self.logged, self.finished = settings, [], False
        self.id, self.name = settings.get("id") or f"{service}-1", settings["name"]
        self.metrics = []

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, values, step=None):
        self.logged.append((values, step))

    def finish(self):
        self.finished = True


@pytest.fixture
def services(monkeypatch):
    """Modules in the place of wandb and trackio, and the runs that were begun with them."""
    begun = []
    for name in ("wandb", "trackio"):
        module = ModuleType(name)

        def init(service=name, **settings):
            begun.append(Run(service, settings))
            return begun[-1]

        module.init = init
        module.Image = lambda image: SimpleNamespace(size=image.size)
        monkeypatch.setitem(sys.modules, name, module)
    return begun


def opened(output, names, start=0):
    return open_trackers(names, output, start, "styles", {"seed": 3})


def test_services_are_told_numbers_and_pictures(services, tmp_path):
    trackers = opened(tmp_path / "night", ["wandb", "trackio"])
    wandb, trackio = services
    assert wandb.settings == {
        "project": "styles",
        "config": {"seed": 3},
        "name": "night",
        "id": None,
        "dir": str(tmp_path / "night"),
        "resume": "never",
    }
    assert trackio.settings == {
        "project": "styles",
        "config": {"seed": 3},
        "name": "night",
        "resume": "never",
    }
    assert wandb.metrics == [("*", "step")]
    for tracker in trackers:
        tracker.numbers({"loss/flow": 0.5}, 7)
        tracker.picture("preview", torch.rand(3, 4, 6), 8)
        tracker.close()
    assert wandb.logged[0] == ({"loss/flow": 0.5, "step": 7}, None)
    assert trackio.logged[0] == ({"loss/flow": 0.5}, 7)
    for run, step in ((wandb, None), (trackio, 8)):
        values, at = run.logged[1]
        assert values["preview"].size == (6, 4)
        assert at == step
        assert run.finished


def test_a_continued_run_is_the_same_run_there(services, tmp_path):
    opened(tmp_path, ["wandb", "trackio"])
    opened(tmp_path, ["wandb", "trackio"], start=5)
    again = services[2:]
    assert [run.settings["resume"] for run in again] == ["allow", "allow"]
    assert again[0].settings["id"] == "wandb-1"
    assert again[1].settings["name"] == tmp_path.name
    opened(tmp_path, ["wandb"])  # from the first step: another run
    assert services[-1].settings["id"] is None


def test_a_run_reports_to_all_its_trackers(services, runs):
    names = "train.trackers=[tensorboard, wandb, trackio]"
    rest = [names, "train.preview_every=6", "train.validate_every=6", "train.project=styles"]
    rest += ["supervision.gradient_norms_every=6"]
    assert runs("run", *rest) == 0
    assert [run.settings["project"] for run in services] == ["styles", "styles"]
    assert services[0].settings["config"]["train"]["steps"] == 6
    found = {name for values, _ in services[0].logged for name in values}
    assert {"loss/flow", "optim/lr", "optim/grad_fraction_focus", "map/iou"} <= found
    assert {"val/total", "preview/error_left", "speed/memory_gib", "preview"} <= found
    assert {name for values, _ in services[1].logged for name in values} == found - {"step"}
    board = EventAccumulator(str(runs.output("run") / "tb")).Reload()
    assert set(board.Tags()["scalars"]) == found - {"step", "preview"}
    assert [event.step for event in board.Scalars("loss/flow")] == [2, 4, 6]
    assert all(run.finished for run in services)


def test_a_service_that_does_not_start_is_one_sentence(services, runs, capsys):
    def init(**settings):
        raise RuntimeError("no API key\nmore")

    sys.modules["wandb"].init = init
    assert runs("run", "train.trackers=[wandb]") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: train.trackers: wandb did not start (no API key): log in" in error


def test_a_service_that_is_not_installed_is_named_first(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed: pip install 'regionroute\[tr"):
        check_trackers(["tensorboard", "wandb"])
    check_trackers(["tensorboard"])


def test_tensorboard_hides_what_a_stopped_run_had_gone_on_to_write(tmp_path):
    first = TensorBoard(tmp_path, 0)
    for step in (1, 2, 3):
        first.numbers({"loss/flow": float(step)}, step)
    first.close()
    again = TensorBoard(tmp_path, 1)
    again.numbers({"loss/flow": 9.0}, 2)
    again.close()
    board = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(e.step, e.value) for e in board.Scalars("loss/flow")] == [(1, 1.0), (2, 9.0)]


def test_the_bar_shows_speed_memory_and_share_of_the_peak(tmp_path, capsys):
    speed = Speed(operations=50.0, peak=100.0)
    options = {"start": 0, "steps": 2, "samples": 4, "log_every": 1, "main": True}
    reporter = Reporter(tmp_path, speed=speed, **options)
    reporter.begin()
    for step in (1, 2):
        reporter.step(step, {"flow": 0.5, "lr": 1.0})
    reporter.close()
    bar = capsys.readouterr().err
    assert "samples/s=" in bar
    assert "GiB" in bar
    assert "%" in bar.rpartition("peak=")[2]
    assert "<" in bar  # the time that is left
    assert len((tmp_path / "losses.jsonl").read_text().splitlines()) == 2


def test_the_share_of_the_peak_follows_from_operations_and_speed():
    numbers = Speed(operations=50.0, peak=400.0).measure(steps=2.0)
    assert numbers["peak_share"] == 0.25
    assert 0.01 < numbers["memory_gib"] < 100
    shown = Speed.shown({"memory_gib": 1.26, "peak_share": 0.257})
    assert shown == {"mem": "1.3GiB", "peak": "26%"}
    assert set(Speed().measure(2.0)) == {"memory_gib"}


def test_operations_of_a_run_are_those_of_its_plan(runs, monkeypatch, tiny_base):
    """The transformer that trains, and the batch that it gets."""
    seen = {}

    def remember(config, transformer, batch, device, vae):
        seen.update(config=config, transformer=transformer, batch=batch, vae=vae)
        return speed_of(config, transformer, batch, device, vae)

    monkeypatch.setattr("train.prepare.speed_of", remember)
    assert runs("run", "train.steps=1", "train.accumulation=2") == 0
    settings = json.loads((tiny_base / "transformer" / "config.json").read_text())
    batch, config = seen["batch"], seen["config"]
    text = tuple(batch.prompt_embeds.shape[1:])
    shape = StepShape(2, (4, 16, 16), text, batch.pooled.shape[1], experts=2)
    expected = trace_step(settings, config, shape, planned_step).flops
    assert count_operations(config, seen["transformer"], batch) == expected > 0
    device = torch.device("cuda")
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    speed = speed_of(config, seen["transformer"], batch, device)
    assert (speed.operations, speed.peak) == (2 * expected, 989e12)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Unheard-of 9000")
    assert speed_of(config, seen["transformer"], batch, device) == Speed(device)


def test_operations_of_the_other_family_are_counted_on_its_own_transformer(tiny_klein):
    transformer = load_base(str(tiny_klein)).transformer
    inject(transformer, "regionroute", 2, 4, 4.0)
    width = transformer.config["joint_attention_dim"]
    batch = SimpleNamespace(
        ids=("a", "b"),
        target=torch.zeros(2, 4, 16, 16),
        prompt_embeds=torch.zeros(2, 12, width),
        pooled=torch.zeros(2, 0),
        style_emb=None,
    )
    settings = json.loads((tiny_klein / "transformer" / "config.json").read_text())
    assert settings["_class_name"] == "Flux2Transformer2DModel"
    config = load_config(None, [])
    shape = StepShape(2, (4, 16, 16), (12, width), 0, experts=2)
    expected = trace_step(settings, config, shape, planned_step).flops
    assert count_operations(config, transformer, batch) == expected > 0
