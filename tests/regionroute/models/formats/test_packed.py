"""A transformer stored in nf4: what is missing, unexpected or asked for otherwise."""

import pytest
from safetensors.torch import load_file, save_file

from regionroute.errors import UserError
from regionroute.models.formats.packed import NAME
from regionroute.models.loading import load_base
from regionroute.rehearsal.bases import Shape, write_configurations
from regionroute.rehearsal.weights import write_weights


@pytest.fixture
def stored(tmp_path):
    """A tiny base in nf4 and the file of its transformer."""
    pytest.importorskip("bitsandbytes")
    write_configurations("tiny", tmp_path, Shape(32, 32, 2), "nf4")
    write_weights(tmp_path, "nf4")
    return tmp_path, tmp_path / "transformer" / f"{NAME}.safetensors"


def change(file, edit):
    tensors = load_file(file)
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_missing_weight_is_named(stored):
    folder, file = stored
    change(file, lambda tensors: tensors.pop("proj_out.weight"))
    with pytest.raises(UserError, match=r"lacks proj_out\.weight"):
        load_base(str(folder))


def test_an_unexpected_weight_is_named(stored):
    folder, file = stored
    change(file, lambda tensors: tensors.update(strange=tensors["proj_out.bias"].clone()))
    with pytest.raises(UserError, match="has strange, which nothing uses"):
        load_base(str(folder))


def test_it_cannot_be_stored_otherwise(stored):
    pytest.importorskip("torchao", reason="fp8 needs torchao")
    with pytest.raises(UserError, match="is stored in nf4, it cannot be fp8"):
        load_base(str(stored[0]), quantize="fp8")


def test_asking_for_nf4_changes_nothing(stored):
    assert load_base(str(stored[0]), quantize="nf4").quantized == "nf4"
