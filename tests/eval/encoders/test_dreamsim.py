import pytest
import torch

from eval.encoders.vision import DREAMSIM_FILES, load_dreamsim
from regionroute.errors import UserError

HUBCONF = """dependencies = ["torch"]
from dreamsim.feature_extraction.vision_transformer import vit_base
def dino_vitb16(pretrained=True, **settings):
    return vit_base(patch_size=16)
"""


@pytest.fixture
def folder(tmp_path):
    """What the dreamsim package leaves after its download, with random weights: about 1 GB."""
    from dreamsim.config import dreamsim_args
    from dreamsim.feature_extraction.vision_transformer import DINOHead, vit_base
    from dreamsim.model import PerceptualModel
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    for name in ("facebookresearch_dino_main", "checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "facebookresearch_dino_main" / "hubconf.py").write_text(HUBCONF)
    (tmp_path / "trusted_list").write_text("facebookresearch_dino\n")
    torch.save({}, tmp_path / "checkpoints" / "dino_vitbase16_pretrain.pth")
    head = {f"module.head.{name}": v for name, v in DINOHead(768, 2048).state_dict().items()}
    head["module.head.last_layer.weight"] = torch.randn(2048, 256)
    torch.save({"student": head}, tmp_path / "dino_vitb16_pretrain.pth")
    for kind in ("clip", "open_clip"):
        model = vit_base(patch_size=16)
        model.pos_drop = torch.nn.LayerNorm(768)
        state = {**model.state_dict(), "proj": 0.03 * torch.randn(768, 512)}
        state["norm.bias"] += 0.1  # as after training: not all at 0
        torch.save({"state_dict": state}, tmp_path / f"{kind}_vitb16_pretrain.pth.tar")
    hub = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    settings = dreamsim_args["model_config"]["ensemble"]
    model = PerceptualModel(**settings, device="cpu", load_dir=str(tmp_path), normalize_embeds=True)
    torch.hub.set_dir(hub)
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=8, target_modules=["qkv"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(tmp_path / "ensemble_lora")
    return tmp_path


@pytest.mark.slow
def test_the_packages_ensemble_runs_with_our_versions(folder):
    hub = torch.hub.get_dir()
    network = load_dreamsim(str(folder))
    assert torch.hub.get_dir() == hub
    pictures = [torch.rand(3, 60, 80), torch.rand(3, 40, 40)]
    one, same = network.distance([pictures[0]] * 2, [pictures[1], pictures[0]])
    assert one > 1e-3
    assert same == pytest.approx(0, abs=1e-5)
    expected = network.model(*(network.preprocess(_picture(p)) for p in pictures))
    torch.testing.assert_close(expected.reshape(()), one)
    (folder / DREAMSIM_FILES[-1]).unlink()
    with pytest.raises(UserError, match="is not in this folder"):
        load_dreamsim(str(folder))


def _picture(tensor):
    from regionroute.data.images import to_pil

    return to_pil(tensor)
