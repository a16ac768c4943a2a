from functools import partial

import pytest
import torch
from diffusers import FluxTransformer2DModel

from regionroute.adapters import SimilarityRouter, adapter_parameters, eject, inject, target_names
from regionroute.errors import UserError


@pytest.fixture(scope="module")
def make_real():
    def make():
        with torch.device("meta"):  # the defaults of the class are FLUX.1-Kontext's sizes
            return FluxTransformer2DModel(guidance_embeds=True)

    return make


def test_expert_size_on_the_real_flux_configuration(make_real):
    flux = make_real()
    names = inject(flux, "regionroute", num_experts=1, rank=4, alpha=4)
    assert len(names) == 19 * 4 + 38 * 3
    parameters = adapter_parameters(flux)
    assert all(p.is_meta for p in parameters)
    assert sum(p.numel() for p in parameters) == 4_669_440


def test_styleexpert_on_the_real_flux_configuration(make_real):
    flux = make_real()
    names = target_names(flux, "styleexpert")
    assert len(names) == 19 * 12 + 38 * 5 == 418
    assert not [name for name in names if "norm" in name or name == "proj_out"]
    router = partial(SimilarityRouter, style_dim=3072, num_experts=16, top_k=2)
    inject(flux, "styleexpert", 16, 8, 16.0, shared_rank=8, router=router)
    gates = 418 * 16 * 3072
    assert sum(p.numel() for p in adapter_parameters(flux)) == 17 * 32_686_080 + gates


def test_all_means_every_layer_but_the_embeddings_of_time_and_text(make_real):
    flux = make_real()
    names = target_names(flux, "all")
    linears = [n for n, m in flux.named_modules() if isinstance(m, torch.nn.Linear)]
    assert set(linears) - set(names) == {n for n in linears if n.startswith("time_text_embed.")}
    assert len(names) == 418 + 19 * 2 + 38 + 4


def test_a_part_of_a_suffix_may_have_a_wildcard(flux):
    names = target_names(
        flux, ["single_transformer_blocks.*.attn.to_?", "transformer_blocks.0.*.linear"]
    )
    blocks = {name.split(".")[1] for name in names if name.startswith("single")}
    assert blocks == {str(number) for number in range(len(flux.single_transformer_blocks))}
    assert {name for name in names if not name.startswith("single")} == {
        "transformer_blocks.0.norm1.linear",
        "transformer_blocks.0.norm1_context.linear",
    }
    assert all(name.split(".")[3] in ("to_q", "to_k", "to_v") for name in names if "attn" in name)


def test_suffixes_mean_whole_name_parts(flux):
    assert target_names(flux, ["proj_out"]) == [
        "single_transformer_blocks.0.proj_out",
        "single_transformer_blocks.1.proj_out",
        "proj_out",
    ]
    assert target_names(flux, ["ff.net.2"]) == [
        "transformer_blocks.0.ff.net.2",
        "transformer_blocks.1.ff.net.2",
    ]
    exact = "transformer_blocks.1.attn.to_q"  # not also single_transformer_blocks.1.attn.to_q
    assert target_names(flux, [exact]) == [exact]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("regionroutes", 'no preset "regionroutes", known: regionroute'),
        ([], "the list is empty"),
        (["to_q", "to_w"], 'no linear layer is named "to_w", the nearest is "to_'),
        (["attn.to_out"], 'the nearest is "attn.to_'),
        (["norm_q"], 'no linear layer is named "norm_q"'),
    ],
)
def test_bad_targets_leave_the_model_alone(flux, targets, message):
    with pytest.raises(UserError, match=message):
        inject(flux, targets, 1, 4, 4)
    assert all(p.requires_grad for p in flux.parameters())


def test_injecting_twice_is_a_mistake(adapted):
    with pytest.raises(ValueError, match="already has experts"):
        inject(adapted, "regionroute", 1, 4, 4)


def test_the_generator_decides_the_draw(make_flux):
    draws = []
    for seed in (0, 0, 1):
        flux = make_flux()
        inject(flux, ["to_q"], 2, 4, 4, generator=torch.Generator().manual_seed(seed))
        draws.append(adapter_parameters(flux)[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0][0], draws[0][1])


def test_ejecting_gives_the_plain_transformer_back(make_real):
    flux = make_real()
    before = {name: type(module) for name, module in flux.named_modules()}
    names = inject(flux, "regionroute", num_experts=2, rank=4, alpha=4)
    assert {name: type(module) for name, module in flux.named_modules()} != before
    assert eject(flux) == names
    assert {name: type(module) for name, module in flux.named_modules()} == before
    assert eject(flux) == []
