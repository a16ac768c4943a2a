"""Gradients of the three losses: their norms, their shares, the cap; at every ZeRO stage."""

import pytest
import torch

from regionroute.adapters import adapter_parameters, inject
from regionroute.attention import AttentionPlan
from regionroute.config.run import load_config
from regionroute.models.loading import load_base
from train.engine.distributed import start, stop
from train.monitor.gradient_norms import measure_gradient_norms, supervision_scale
from train.step import Batch, training_step

NAMES = ("flow", "focus", "cover")
SLOW = pytest.mark.slow


@pytest.fixture
def alone():
    ranks = start()
    yield ranks
    stop()


def make_batch(transformer, seed):
    generator, settings = torch.Generator().manual_seed(seed), transformer.config

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    masks = torch.zeros(2, 1, 8, 8)
    masks[:, :, 1:5, 2:6] = 1
    token = torch.full((2, 1, 1), 4)
    valid = torch.ones(2, 1, dtype=torch.bool)
    return Batch(
        ids=("a", "b"),
        target=noise(2, 4, 16, 16),
        context=noise(2, 4, 16, 16),
        noise=noise(2, 4, 16, 16),
        sigma=torch.rand(2, generator=generator),
        prompt_embeds=noise(2, 12, settings["joint_attention_dim"]),
        pooled=noise(2, settings["pooled_projection_dim"]),
        expert_ids=torch.tensor([0, 1]),
        plan=AttentionPlan(token, masks, valid, text_len=12, image_len=64),
        inside=masks.repeat_interleave(2, -1).repeat_interleave(2, -2),
    )


@pytest.fixture
def adapted(tiny_base):
    transformer = load_base(str(tiny_base)).transformer
    inject(transformer, "regionroute", 2, 4, 4.0, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in adapter_parameters(transformer):
            parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    return transformer.train()


def test_the_norms_are_those_of_the_weighted_losses(adapted, alone):
    config = load_config(None, [])
    batches = [make_batch(adapted, seed) for seed in (0, 1)]
    found = measure_gradient_norms(adapted, batches, config, 0, alone)
    assert all(parameter.grad is None for parameter in adapter_parameters(adapted))
    weights = {"flow": 1, "focus": config.supervision.focus, "cover": config.supervision.cover}
    norms = {}
    for names in (("flow",), ("focus",), ("cover",), ("focus", "cover")):
        for batch in batches:
            with training_step(adapted, batch, config) as losses:
                loss = sum(weights[name] * getattr(losses, name).mean() for name in names)
                (loss / len(batches)).backward()
        gradients = [p.grad for p in adapter_parameters(adapted) if p.grad is not None]
        norms[names] = float(torch.nn.utils.get_total_norm(gradients))
        adapted.zero_grad()
    for name in NAMES:
        assert found[f"grad_norm_{name}"] == pytest.approx(norms[(name,)], rel=1e-4)
        share = norms[(name,)] / sum(norms[(other,)] for other in NAMES)
        assert found[f"grad_fraction_{name}"] == pytest.approx(share, rel=1e-4)
    assert found["grad_norm_supervision"] == pytest.approx(norms[("focus", "cover")], rel=1e-4)
    assert all(found[f"grad_norm_{name}"] > 0 for name in NAMES)


@pytest.mark.parametrize(
    ("flow", "supervision", "most", "scale"),
    [(2.0, 1.0, None, 1.0), (2.0, 1.0, 1.0, 1.0), (2.0, 8.0, 1.0, 0.25), (2.0, 0.0, 0.3, 1.0)],
)
def test_the_scale_brings_the_supervision_under_its_cap(flow, supervision, most, scale):
    measured = {"grad_norm_flow": flow, "grad_norm_supervision": supervision}
    assert supervision_scale(measured, most) == scale


def test_shares_are_logged_and_change_nothing(runs):
    assert runs("with", "supervision.gradient_norms_every=3") == 0
    assert runs("without", "supervision.gradient_norms_every=0") == 0
    assert runs.difference("with", "without") == 0
    rows = runs.losses("with")
    assert ["grad_fraction_flow" in row for row in rows] == [True, False, False, True, False, False]
    assert sum(rows[3][f"grad_fraction_{name}"] for name in NAMES) == pytest.approx(1)
    assert "supervision_scale" not in rows[0]
    assert all("grad_fraction_flow" not in row for row in runs.losses("without"))


@pytest.mark.parametrize("stage", [*(pytest.param(n, marks=SLOW) for n in (0, 1, 2)), 3])
def test_a_cap_holds_from_step_to_step_and_through_a_checkpoint(runs, stage):
    rest = [
        "supervision.gradient_norms_every=4",
        "supervision.max_gradient_ratio=0.05",
        "supervision.focus=3",
    ]
    rest += [f"train.zero_stage={stage}", "train.accumulation=2", "experts.dropout=0.1"]
    rest += ["train.gradient_checkpointing=true"]
    assert runs("whole", *rest) == 0
    rows = runs.losses("whole")
    scale = rows[0]["supervision_scale"]
    assert scale == pytest.approx(
        0.05 * rows[0]["grad_norm_flow"] / rows[0]["grad_norm_supervision"]
    )
    assert scale < 1
    for row in rows[:4]:
        total = row["flow"] + scale * (3 * row["focus"] + 0.2 * row["cover"])
        assert row["total"] == pytest.approx(total, rel=1e-5)
    assert runs("halves", *rest, "train.steps=2") == 0
    assert runs("halves", *rest) == 0  # the third step uses what was measured before the stop
    assert runs.difference("whole", "halves") == 0
    assert runs("stage 0", *rest, "train.zero_stage=0") == 0
    assert runs.difference("whole", "stage 0") < 1e-5


def test_without_supervision_there_is_nothing_to_measure(runs):
    rest = ["supervision.gradient_norms_every=1", "train.steps=1"]
    assert runs("run", "supervision.focus=0", "supervision.cover=0", *rest) == 0
    assert "grad_fraction_flow" not in runs.losses("run")[0]
