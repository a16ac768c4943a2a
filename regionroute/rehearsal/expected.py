"""The memory that `regionroute plan` predicts for the stages of a rehearsal, on the CPU."""

from __future__ import annotations

from dataclasses import replace

from regionroute.config.run import load_config
from regionroute.planning.estimate import Machine, make_plan, read_data
from regionroute.planning.trace import Step
from regionroute.rehearsal.settings import Settings
from regionroute.rehearsal.stages import training_settings
from regionroute.rehearsal.weights import sampled_sizes, stored_sizes

ONE = Machine(gpus=1, memory=1024, reserve=0, teraflops=1, share=1, link=1)


def expected(settings: Settings, start: int, step: Step) -> dict[str, float]:
    """Resident bytes at the peak of each stage that loads networks.

    Weights are mapped from their files: those that a stage does not read take no memory. Training
    reads samples of all networks before it lets the encoders go, and then the whole transformer.

    Args:
        settings: of the rehearsal, whose base is written.
        start: resident bytes of a process that has imported the libraries.
        step: the training step, `train.planned.planned_step`.
    """
    _, name, *overrides = training_settings(settings, 2)
    config = load_config(name, overrides)
    data = replace(read_data(config), samples=1, prompts=1, masks=1, images=2, styles=1)
    plan = make_plan(config, ONE, step, data)
    sizes = stored_sizes(settings.base, settings.quantize)
    sampled = sum(sampled_sizes(settings.base, settings.quantize).values())
    transformer = sizes["transformer"]
    encoders = sum(sizes.values()) - transformer
    training = sum(plan.memory.values()) - plan.memory["frozen weights"] + transformer
    editing = transformer + encoders + plan.memory["adapters"] + plan.caching.activations
    return {
        "load": start + max(sizes.values()),
        "cache": start + encoders + plan.caching.activations,
        "train": start + max(training, sampled),
        "resume": start + max(training, sampled),
        "edit": start + editing,
        "routed": start + editing,
        "sparse": start + editing,
        "stock": start + editing,
    }
