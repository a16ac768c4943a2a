"""Names on the hub: a revision can be pinned everywhere, and the commit used is written down."""

import types

import pytest
import torch

import pseudo_labels.segment.hub as segmenters
from eval.encoders.features import open_pretrained, shown_name
from pseudo_labels.stylegallery import model as gallery
from pseudo_labels.stylemamba import codecs
from pseudo_labels.stylize import diffusion
from regionroute import hub_names as hub
from regionroute.adapters import style_encoder
from regionroute.errors import UserError
from regionroute.hub_names import hub_arguments, split_revision, used_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PINNED = {"local_files_only": False, "revision": "v1"}


class Fake:
    """A class of transformers that records from where its networks are loaded."""

    def __init__(self):
        self.calls = []

    def from_pretrained(self, source, output_loading_info=False, **where):
        self.calls.append((source, where))
        model = torch.nn.Linear(1, 1)
        model.config = types.SimpleNamespace(_commit_hash=COMMIT, model_type="sam2")
        return (
            (model, {"missing_keys": [], "mismatched_keys": []}) if output_loading_info else model
        )


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("team/model", ("team/model", None)),
        ("team/model@v1", ("team/model", "v1")),
        ("team/model@refs/pr/2", ("team/model", "refs/pr/2")),
        ("team/model@", ("team/model@", None)),
        ("folder@v1", ("folder@v1", None)),
        ("./team/model@v1", ("./team/model@v1", None)),
    ],
)
def test_a_revision_follows_the_name(name, parts):
    assert split_revision(name) == parts


def test_a_folder_wins_and_has_no_revision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "team" / "model@v1").mkdir(parents=True)
    assert hub_arguments("team/model@v1") == ("team/model@v1", {"local_files_only": True})
    assert hub.hub_commit("team/model@v1") is None
    assert used_name("team/model@v1", None) == "team/model@v1"


def test_the_name_to_write_down_holds_the_commit():
    assert used_name("team/model", COMMIT) == f"team/model@{COMMIT}"
    assert used_name("team/model@v1", COMMIT) == f"team/model@{COMMIT}"
    assert used_name("team/model@v1", None) == "team/model@v1"
    assert used_name("team/model", None) == "team/model"


def test_the_encoders_of_metrics_and_their_judge():
    model, part = Fake(), Fake()
    loaded, _ = open_pretrained("--clip", "team/model@v1", model, [part])
    assert model.calls == part.calls == [("team/model", PINNED)]
    assert shown_name("team/model@v1", loaded) == f"team/model@{COMMIT}"


def test_segmenters_grounders_and_the_judge_of_labels(monkeypatch):
    import transformers

    model, processor = Fake(), Fake()
    monkeypatch.setattr(transformers, "AutoModelForMaskGeneration", model)
    monkeypatch.setattr(transformers, "AutoProcessor", processor)
    _, loaded = segmenters.from_hub("team/model@v1", "AutoModelForMaskGeneration", "a segmenter")
    assert model.calls == processor.calls == [("team/model", PINNED)]
    assert segmenters.provenance_name("team/model@v1", loaded) == f"sam2 model@{COMMIT}"


def test_the_tower_of_a_style_encoder(monkeypatch):
    tower = Fake()
    monkeypatch.setattr(style_encoder, "SiglipVisionModel", tower)
    loaded = style_encoder.load_tower("team/model@v1")
    assert tower.calls == [("team/model", PINNED | {"dtype": torch.float32})]
    assert hub.commit_of_model(loaded) == COMMIT


def test_the_pipeline_of_the_diffusion_stylizer(monkeypatch):
    import diffusers

    asked = []

    def from_pretrained(source, **where):
        asked.append((source, where))
        raise OSError("enough")

    kind = types.SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setattr(diffusers, "AutoPipelineForImage2Image", kind)
    with pytest.raises(UserError, match="enough"):
        diffusion._pipeline("team/model@v1", "float32", "cpu")
    assert asked == [("team/model", PINNED | {"dtype": torch.float32})]


def test_parts_of_one_model_come_from_one_commit(tmp_path, monkeypatch):
    """StyleMamba's codec and StyleGallery's model: the commit is looked up before the first."""
    import diffusers
    import huggingface_hub

    looked_up, asked = [], []

    def download(source, file, revision=None):
        looked_up.append((source, file, revision))
        return str(tmp_path / "snapshots" / COMMIT / file)

    def from_pretrained(source, **where):
        asked.append((source, where))
        raise OSError("enough")

    kind = types.SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(codecs, "AutoencoderKL", kind)
    monkeypatch.setattr(diffusers, "DDIMScheduler", kind)
    for load in (codecs.load_codec, gallery.load_model):
        with pytest.raises(UserError, match="enough"):
            load("team/model@v1")
    where = {"local_files_only": False, "revision": COMMIT}
    assert asked == [("team/model", where), ("team/model", where | {"subfolder": "scheduler"})]
    names = ("config.json", "model_index.json")
    assert looked_up == [("team/model", name, "v1") for name in names]
