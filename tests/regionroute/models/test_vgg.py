"""VGG's features: torchvision's, by name, and files that are none."""

import pytest
import torch
from safetensors.torch import save_file

from regionroute.errors import UserError
from regionroute.models.vgg import VggFeatures, load_vgg


@pytest.mark.parametrize("convolutions", [13, 16])
def test_vgg_layers_are_those_of_torchvision(convolutions):
    from torchvision.models import vgg16, vgg19

    torch.manual_seed(0)
    network = {13: vgg16, 16: vgg19}[convolutions]().features.eval()
    ours = VggFeatures({f"features.{k}": v for k, v in network.state_dict().items()})
    picture = torch.rand(1, 3, 48, 48)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (picture - mean[:, None, None]) / std[:, None, None]
    indices = {13: (19, 26), 16: (21, 30)}[convolutions]  # conv4_2 and conv5_2
    found = ours(picture, ("conv4_2", "conv5_2"))
    for index, features in zip(indices, found, strict=True):
        torch.testing.assert_close(features, network[: index + 1](x), rtol=1e-4, atol=1e-4)
    # After the ReLU as well, in the order asked for, and twice where asked twice.
    before, after, again = ours(picture, ("conv4_2", "relu4_2", "conv4_2"))
    assert torch.equal(before.relu(), after)
    assert torch.equal(before, again)
    assert before.min() < 0


def test_files_that_are_no_vgg(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_vgg(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    save_file({"features.0.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "one.safetensors")
    for name in ("text.safetensors", "one.safetensors"):
        with pytest.raises(UserError, match="not torchvision's VGG16"):
            load_vgg(tmp_path / name)
