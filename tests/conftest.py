"""Fixtures for every test: one thread, the shared assets, a tiny base and a tiny manifest."""

import hashlib
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regionroute.data.manifest import EditSample, Region, write_manifest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Of this process and of those it starts: the tests themselves run side by side."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def assets():
    """Folder of the shared assets: real photos, masks and small networks."""
    given = os.environ.get("REGIONROUTE_ASSETS")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "assets"
    if not (folder / "photos" / "labels.jsonl").is_file():
        pytest.skip(f"no shared assets at {folder}: set REGIONROUTE_ASSETS to their folder")
    return folder


@pytest.fixture(scope="session")
def two_nodes():
    """A Ray cluster of two nodes with a core each on this machine; skips without Ray."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'regionroute[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import logging

    import ray
    from ray.cluster_utils import Cluster

    bare = {"num_cpus": 1, "include_log_monitor": False, "include_dashboard": False}
    for turn in range(4):
        cluster = Cluster()
        try:
            cluster.add_node(**bare, no_monitor=True)
            cluster.add_node(**bare)
            break
        except Exception:  # on a busy machine Ray gives up after 30 s
            cluster.shutdown()
            if turn == 3:
                raise
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="session")
def bank_case():
    """The module `photo_bank_case`: small banks of photos."""
    path = Path(__file__).parent / "photo_bank_case.py"
    spec = importlib.util.spec_from_file_location("photo_bank_case", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def vgg_weights():
    """A function: random weights of a thin VGG16 or VGG19 under torchvision's keys."""

    def weights(width=4, convolutions=13):
        generator = torch.Generator().manual_seed(0)
        found, channels, index = {}, 3, 0
        for stage, count in enumerate({13: (2, 2, 3, 3, 3), 16: (2, 2, 4, 4, 4)}[convolutions]):
            for _ in range(count):
                out = width * (1 + stage // 2)
                shape = (out, channels, 3, 3)
                found[f"features.{index}.weight"] = torch.randn(shape, generator=generator) / 4
                found[f"features.{index}.bias"] = torch.zeros(out)
                channels, index = out, index + 2
            index += 1
        return found

    return weights


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a random Kontext pipeline of the real classes; do not write into it."""
    from regionroute.models.tiny import build_tiny

    return build_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def tiny_klein(tmp_path_factory):
    """Folder of a random FLUX.2-klein pipeline of the real classes; do not write into it."""
    from regionroute.models.tiny_klein import build_tiny_klein

    return build_tiny_klein(tmp_path_factory.mktemp("klein") / "tiny")


@pytest.fixture
def random_inception(tmp_path_factory):
    """torch-fidelity's Inception with random weights: (its file, named as it wants, and itself)."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        """The network without its download."""

        def load_state_dict(self, *args, **kwargs):
            return None

    folder = tmp_path_factory.mktemp("inception")
    torch.manual_seed(0)
    torch.save({}, folder / "none.pth")
    made = Empty("made", ["2048"], feature_extractor_weights_path=str(folder / "none.pth"))
    torch.save(made.state_dict(), folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()[:8]
    return (folder / "w.pth").rename(folder / f"weights-inception-{digest}.pth"), made


@pytest.fixture(scope="session")
def clip_folder(tiny_base, tmp_path_factory):
    """A random CLIP saved as transformers saves it, with the tiny base's tokenizer."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "projection_dim": 8}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 20}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = CLIPConfig(
        text_config=small | text,
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    for parameter in model.parameters():  # as after training: nothing left at 0 or 1
        parameter.data.add_(0.02 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_manifest(tmp_path):
    """Folder of a manifest of four 64 px pairs: two objects, two styles, exact masks."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    write_manifest(folder, [_write_pair(folder, index) for index in range(4)])
    return folder


def _write_pair(folder, index):
    word, style = ("square", "circle")[index % 2], ("pixel-art", "line-art")[index // 2]
    rng = np.random.default_rng(index)
    context = rng.integers(60, 120, (64, 64, 3), dtype=np.uint8)
    y, x = np.mgrid[:64, :64]
    middle = 20 + 6 * index
    away = (np.abs(y - 32), np.abs(x - middle))
    inside = np.maximum(*away) < 12 if word == "square" else np.hypot(*away) < 12
    context[inside] = (200, 80 + 30 * index, 40)
    target = context.copy()
    target[inside] = (40, 220, 90) if style == "pixel-art" else 250
    names = {kind: f"{index}.{kind}.png" for kind in ("context", "target", "mask")}
    Image.fromarray(context).save(folder / names["context"])
    Image.fromarray(target).save(folder / names["target"])
    Image.fromarray((inside * 255).astype(np.uint8)).save(folder / names["mask"])
    rows, columns = np.nonzero(inside.any(1))[0], np.nonzero(inside.any(0))[0]
    box = (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)
    return EditSample(
        id=f"pair-{index}",
        context=names["context"],
        target=names["target"],
        regions=(Region(word, style, names["mask"], box),),
        prompt=f"make the {word} in {style} style, keep other area unchanged",
        split="val" if index == 3 else "train",
        provenance={"seed": index},
    )


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command that has to refuse, and gives its sentence.

    It must end with an exit code, one line that starts with "error: " and no traceback; everything
    under `tmp_path` must be as it was before, with no half-written file beside it.
    """

    def run(main, arguments, code=2):
        before = _everything(tmp_path)
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        *progress, sentence = said.err.strip().splitlines()
        assert sentence.startswith("error: ")
        assert not [line for line in progress if "error" in line.lower()]
        assert len(sentence) < 700
        after = _everything(tmp_path)
        assert {name: after.get(name) for name in before} == before
        assert not [name for name in after if ".tmp" in name]
        return sentence

    return run


class Spoil:
    """Ways to damage the files of a folder; `row` and `line` do so to its manifest."""

    def __init__(self, folder):
        self.folder = folder

    def row(self, **changes):
        """Changes keys of the second row; those of its region are given as region_<key>."""
        rows = [json.loads(line) for line in self._manifest.read_text().splitlines()]
        for key, value in changes.items():
            place = rows[1]["regions"][0] if key.startswith("region_") else rows[1]
            place[key.removeprefix("region_")] = value
        self._manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def line(self, data):
        """Adds a line of bytes, the fifth."""
        self._manifest.write_bytes(self._manifest.read_bytes() + data + b"\n")

    def nothing(self):
        """Leaves the manifest without rows."""
        self._manifest.write_text("\n")

    def png(self, name, size, mode="RGB"):
        """Puts a black picture of (width, height) in the place of a file."""
        Image.new(mode, size).save(self.folder / name, "PNG")

    def text(self, name, text="no picture"):
        (self.folder / name).write_text(text)

    def cut(self, name):
        data = (self.folder / name).read_bytes()
        (self.folder / name).write_bytes(data[: len(data) // 2])

    def directory(self, name):
        (self.folder / name).unlink(missing_ok=True)
        (self.folder / name).mkdir()

    def circle(self, name):
        """A link to itself in the place of a file."""
        (self.folder / name).unlink(missing_ok=True)
        (self.folder / name).symlink_to(self.folder / name)

    @property
    def _manifest(self):
        return self.folder / "manifest.jsonl"


@pytest.fixture
def spoil(tiny_manifest):
    """Damages files of the tiny manifest's folder."""
    return Spoil(tiny_manifest)


def _everything(folder):
    """Relative name -> bytes of every file under a folder, None for folders and links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        plain = path.is_file() and not path.is_symlink()
        found[path.relative_to(folder).as_posix()] = path.read_bytes() if plain else None
    return found
