import shutil

import pytest
import torch

from regionroute.errors import UserError
from train.pretrain.photo_bank import PhotoBank, Placement, put


@pytest.fixture(scope="module")
def bank(bank_case, tmp_path_factory):
    return PhotoBank(bank_case.make_bank(tmp_path_factory.mktemp("bank")))


def test_put_crops_mirrors_and_scales():
    picture = torch.arange(16.0).view(1, 4, 4)
    out = put(picture, Placement((0, 2), (0, 2), True, (1, 1, 2, 2)), 4)

    assert out[0].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 5, 4, 0], [0, 0, 0, 0]]
    assert put(picture, Placement((0, 4), (0, 4), False, (0, 0, 2, 2)), 4)[0, :2, :2].mean() > 5


def test_splits_share_no_photo(bank):
    assert not set(bank.split("train")) & set(bank.split("test"))
    assert len(bank.split("train")) + len(bank.split("test")) == 8


def test_a_bank_that_cannot_be_used_is_one_sentence(bank, tmp_path):
    with pytest.raises(UserError, match="regionroute bank"):
        PhotoBank(tmp_path)
    shutil.copytree(bank.folder, tmp_path / "bank")
    (tmp_path / "bank" / "colour-red.safetensors").write_bytes(b"cut")
    cut = PhotoBank(tmp_path / "bank")
    with pytest.raises(UserError, match=r"colour-red\.safetensors"):
        cut.picture("colour-red", 0)
    (tmp_path / "bank" / "colour-red.safetensors").unlink()
    with pytest.raises(UserError, match=r"colour-red\.safetensors is missing"):
        PhotoBank(tmp_path / "bank")
