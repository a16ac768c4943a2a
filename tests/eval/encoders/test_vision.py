import hashlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from eval.encoders import vision
from eval.encoders.csd import convert_csd
from eval.encoders.trust import looks_untrained, named_by_hash
from regionroute.errors import UserError


class OpenAiTower(nn.Module):
    """CLIP's vision tower in OpenAI's own layout, written from its paper: the independent judge."""

    def __init__(self, width=64, heads=1, layers=2, patch=8, side=32):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((side // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, pixels):
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding)
        for block in self.transformer.resblocks:
            x = block(x)
        return self.ln_post(x[:, 0])


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Module()
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(width, 96), nn.Linear(96, width)

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        y = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(y * torch.sigmoid(1.702 * y))


@pytest.fixture
def checkpoint():
    """A tower and its checkpoint as CSD's authors save it."""
    torch.manual_seed(0)
    tower = OpenAiTower()
    for parameter in tower.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    state = {f"module.backbone.{name}": value for name, value in tower.state_dict().items()}
    state["module.last_layer_style"] = torch.randn(64, 12)
    state["module.last_layer_content"] = torch.randn(64, 12)
    return tower.eval(), {"model_state_dict": state}


@torch.no_grad()
def test_csd_is_the_authors_network(checkpoint, tmp_path):
    tower, saved = checkpoint
    model, head = convert_csd(saved)
    pixels = torch.randn(2, 3, 32, 32)
    expected = tower(pixels)
    torch.testing.assert_close(model.eval()(pixels).pooler_output, expected, rtol=1e-4, atol=1e-5)
    torch.save(saved, tmp_path / "csd.pth")
    encoder = vision.load_csd(str(tmp_path))
    styles = encoder.encode_image([torch.rand(3, 32, 32), torch.rand(3, 50, 40)])
    assert styles.shape == (2, 12)
    torch.testing.assert_close(styles.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(encoder.head, saved["model_state_dict"]["module.last_layer_style"])
    assert encoder.identity()["encoder"] == "CSD"
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    levels = torch.randint(0, 256, (3, 32, 32)) / 255
    direct = F.normalize(tower(((levels - mean) / std)[None]) @ head, dim=1)
    torch.testing.assert_close(encoder.encode_image([levels]), direct, rtol=1e-3, atol=1e-4)


def test_csd_that_is_none_is_refused(checkpoint, tmp_path):
    saved = checkpoint[1]["model_state_dict"]
    for change in ("module.last_layer_style", "module.backbone.ln_post.bias"):
        part = {name: value for name, value in saved.items() if name != change}
        save_file(part, tmp_path / "csd.safetensors")
        with pytest.raises(UserError, match="no CSD checkpoint"):
            vision.load_csd(str(tmp_path))
    made = OpenAiTower().state_dict()
    for name, value in made.items():
        if value.ndim == 1 and name != "class_embedding":
            value.fill_(float(name.endswith("weight")))
    made["class_embedding"].zero_()
    state = {f"backbone.{name}": value for name, value in made.items()}
    save_file({**state, "last_layer_style": torch.randn(64, 12)}, tmp_path / "csd.safetensors")
    with pytest.raises(UserError, match="these weights are random"):
        vision.load_csd(str(tmp_path))


@pytest.fixture
def dino_folder(tmp_path):
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    Dinov2Model(config).save_pretrained(tmp_path / "random")
    model = Dinov2Model(config)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "dino")
    for name in ("random", "dino"):
        processor = BitImageProcessor(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
        )
        processor.save_pretrained(tmp_path / name)
    return tmp_path


@torch.no_grad()
def test_dino_gives_the_class_token(dino_folder):
    encoder = vision.load_dino(str(dino_folder / "dino"))
    pictures = [torch.rand(3, 28, 28), torch.rand(3, 60, 40)]
    found = encoder.encode_image(pictures)
    pixels = encoder.processor(
        images=[(p * 255).round().byte() for p in pictures], return_tensors="pt"
    )["pixel_values"]
    expected = encoder.model(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(found, F.normalize(expected, dim=1), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"--encoder dino .*these weights are random"):
        vision.load_dino(str(dino_folder / "random"))
    with pytest.raises(UserError, match=r"--encoder dino .*cannot be loaded"):
        vision.load_dino(str(dino_folder))


def test_untrained_networks_are_told_by_their_vectors():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    nn.init.zeros_(net[0].bias)
    assert looks_untrained(net)
    net[1].weight.data[0] = 1.01
    assert not looks_untrained(net)
    assert not looks_untrained(nn.Linear(4, 1, bias=False))  # nothing to tell it by


@pytest.mark.parametrize(
    "widths", [(8, 1), (8, 6, 3, 1)], ids=["the linear head", "the head with layers"]
)
def test_the_aesthetic_head_is_its_linear_layers(widths, tmp_path):
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Linear(*pair) for pair in itertools.pairwise(widths)))
    if len(widths) == 2:
        state = layers[0].state_dict()
    else:  # as published: dropout between the layers takes numbers
        state = {
            f"layers.{2 * n}.{k}": v
            for n, x in enumerate(layers)
            for k, v in x.state_dict().items()
        }
        assert "layers.4.weight" in state
    torch.save(state, tmp_path / "ava1-l14-linearMSE.pth")
    head = vision.load_aesthetic(str(tmp_path))
    embeddings = F.normalize(torch.randn(5, 8), dim=1)
    torch.testing.assert_close(head(embeddings), layers(embeddings)[:, 0])
    with pytest.raises(UserError, match=r"takes embeddings of 8 numbers, --clip gives 4"):
        head(torch.randn(1, 4))
    torch.save({"weight": torch.rand(2, 8), "bias": torch.rand(2)}, tmp_path / "l14.pth")
    with pytest.raises(UserError, match="no such head"):
        vision.load_aesthetic(str(tmp_path / "l14.pth"))


def test_files_named_by_their_hash(tmp_path):
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    good, bad = tmp_path / f"net-{digest}.pth", tmp_path / "net-00000000.pth"
    good.write_bytes(b"weights")
    bad.write_bytes(b"weights")
    assert named_by_hash(good)
    assert not named_by_hash(bad)
    assert not named_by_hash(tmp_path / "net.pth")


def test_inception_is_that_of_torch_fidelity(random_inception):
    named, made = random_inception
    encoder = vision.load_inception(str(named.parent))
    picture = torch.randint(0, 256, (3, 40, 60)) / 255
    features = encoder.encode_image([picture, picture.flip(2)])
    assert features.shape == (2, 2048)
    expected = made.eval()((picture[None] * 255).round().byte())[0]
    torch.testing.assert_close(features[:1], expected, rtol=1e-4, atol=1e-5)
    named.rename(named.with_name("weights-inception-00000000.pth"))
    with pytest.raises(UserError, match="checksum is not the one in its name"):
        vision.load_inception(str(named.parent))


def test_what_is_no_network_is_one_sentence(tmp_path):
    (tmp_path / "weights-inception-x.pth").write_text("text")
    for load, name in (
        (vision.load_csd, "csd"),
        (vision.load_aesthetic, "aesthetic"),
        (vision.load_inception, "inception"),
    ):
        with pytest.raises(UserError, match=f"--encoder {name}=.*no such file or folder"):
            load(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="not torch-fidelity's weights"):
        vision.load_inception(str(tmp_path))
    with pytest.raises(UserError, match=r"dino_vitb16_pretrain.pth is not in this folder"):
        vision.load_dreamsim(str(tmp_path))
    for name in vision.DREAMSIM_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    hub = torch.hub.get_dir()
    with pytest.raises(UserError, match=r"--encoder dreamsim=.*cannot be loaded"):
        vision.load_dreamsim(str(tmp_path))
    assert torch.hub.get_dir() == hub


def test_dreamsim_asks_the_package_pair_by_pair():
    class Package(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, a, b):
            return (self.scale * (a - b).abs().mean()).reshape(1)

    from torchvision.transforms.functional import to_tensor

    network = vision.DreamSim(Package(), lambda picture: to_tensor(picture)[None])
    a, b = torch.zeros(3, 8, 8), torch.ones(3, 8, 8)
    torch.testing.assert_close(network.distance([a, a], [b, a]), torch.tensor([1.0, 0.0]))
    assert network.identity()["encoder"] == "DreamSim ensemble"
