"""Names and counts of the full-size configurations, on meta tensors, against the published ones."""

import pytest
import torch

from regionroute.adapters import adapter_parameters, inject
from regionroute.diffusion.families import family_of
from regionroute.rehearsal.bases import Shape, empty_networks, write_configurations

# Parameters: FLUX.1-Kontext's as RegionRoute's paper gives them, an expert of rank 4 likewise; the
# others are those of the public checkpoints: T5 v1.1 XXL's encoder, CLIP ViT-L/14's text tower,
# Qwen3-4B, FLUX.1's autoencoder, and FLUX.2-klein-4B's transformer (a file of 7.75 GB).
COUNTS = {
    "flux1-kontext-12b": {
        "transformer": 11_901_408_320,
        "text_encoder": 123_060_480,
        "text_encoder_2": 4_762_310_656,
        "vae": 83_819_683,
    },
    "flux2-klein-4b": {"transformer": 3_875_544_576, "text_encoder": 4_022_468_096},
}
ORIGINAL = 780  # tensors of flux1-dev.safetensors, the original model's file


@pytest.fixture(scope="module", params=sorted(COUNTS))
def full(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    write_configurations(request.param, folder, Shape())
    return request.param, empty_networks(folder)


def test_counts(full):
    name, networks = full
    found = {part: networks[part].num_parameters() for part in COUNTS[name]}
    assert found == COUNTS[name]


def test_every_layer_has_a_name_in_the_original_model(full):
    name, networks = full
    if name != "flux1-kontext-12b":
        pytest.skip("the original names of FLUX.2-klein's tensors were not counted")
    model = networks["transformer"]
    original = family_of(model).original
    found = set()
    for key in model.state_dict():
        group, number, rest = _split(key)
        module, _, kind = rest.rpartition(".")
        if ".norm_" in f".{rest}" and group:  # norms of queries and keys
            found.add((group, number, rest))
        else:
            found.add((group, number, original[group][module], kind))
    assert len(found) == ORIGINAL


def _split(key):
    for prefix, group in (
        ("single_transformer_blocks.", "single_blocks"),
        ("transformer_blocks.", "double_blocks"),
    ):
        if key.startswith(prefix):
            number, _, rest = key.removeprefix(prefix).partition(".")
            return group, number, rest
    return "", "", key


def test_an_expert_of_rank_4(full):
    name, networks = full
    if name != "flux1-kontext-12b":
        pytest.skip("the published count is FLUX.1-Kontext's")
    with torch.device("meta"):
        inject(networks["transformer"], "regionroute", 1, 4, 4.0)
    assert sum(p.numel() for p in adapter_parameters(networks["transformer"])) == 4_669_440
