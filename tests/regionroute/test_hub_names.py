"""Names on the hub: a revision can be pinned everywhere, and the commit used is written down."""

import types

import pytest
import torch

import pseudo_labels.segment.hub as segmenters
from eval.encoders.features import load_trained, shown_name
from pseudo_labels.stylegallery.models import loading as gallery
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
    loaded, _ = load_trained("--clip", "team/model@v1", "a CLIP", model, [part])
    assert model.calls == [("team/model", PINNED)]
    assert part.calls == [("team/model", PINNED | {"revision": COMMIT})]
    assert shown_name("team/model@v1", loaded) == f"team/model@{COMMIT}"


def test_segmenters_grounders_and_the_judge_of_labels(monkeypatch):
    import transformers

    model, processor = Fake(), Fake()
    monkeypatch.setattr(transformers, "AutoModelForMaskGeneration", model)
    monkeypatch.setattr(transformers, "AutoProcessor", processor)
    _, loaded = segmenters.from_hub("team/model@v1", "AutoModelForMaskGeneration", "a segmenter")
    assert model.calls == [("team/model", PINNED)]
    assert processor.calls == [("team/model", PINNED | {"revision": COMMIT})]
    assert segmenters.provenance_name("team/model@v1", loaded) == f"sam2 model@{COMMIT}"


def test_the_tower_of_a_style_encoder(monkeypatch):
    tower = Fake()
    monkeypatch.setattr(style_encoder, "SiglipVisionModel", tower)
    loaded = style_encoder.load_tower("team/model@v1")
    assert tower.calls == [("team/model", PINNED | {"dtype": torch.float32})]
    assert hub.commit_of_model(loaded) == COMMIT


@pytest.fixture
def looked_up(tmp_path, monkeypatch):
    """The files and repositories that a hub is asked for, whose v1 is `COMMIT`."""
    import huggingface_hub

    asked = []

    def download(source, file, revision=None):
        asked.append((source, file, revision))
        return str(tmp_path / "snapshots" / COMMIT / file)

    def info(self, source, revision=None):
        asked.append((source, "", revision))
        return types.SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    return asked


class FakePipeline:
    """What the diffusion stylizer needs of a pipeline; LoRAs it was given, by file and options."""

    def __init__(self):
        self.loaded, self.names = [], []

    def __call__(self, image, prompt):
        raise AssertionError("nothing is sampled here")

    def to(self, device):
        return self

    def set_progress_bar_config(self, disable):
        pass

    def load_lora_weights(self, source, adapter_name, **options):
        self.loaded.append((source, options))
        self.names.append(adapter_name)

    def get_list_adapters(self):
        return {"transformer": self.names}

    def enable_lora(self):
        pass

    disable_lora = enable_lora

    def set_adapters(self, names, scales):
        assert names == self.names


def test_the_diffusion_stylizer_with_a_lora_states_both_commits(looked_up, monkeypatch):
    import diffusers

    asked, pipeline = [], FakePipeline()

    def from_pretrained(source, **where):
        asked.append((source, where))
        return pipeline

    kind = types.SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setattr(diffusers, "AutoPipelineForImage2Image", kind)
    diffusion._pipeline.cache_clear()
    diffusion._lora_source.cache_clear()
    stylizer = diffusion.DiffusionStylizer.build(
        model="team/model@v1", lora="team/lora@v1", device="cpu"
    )
    before = stylizer.product_key()
    stylizer.load()
    diffusion._pipeline.cache_clear()
    where = {"local_files_only": False, "revision": COMMIT, "dtype": torch.float32}
    assert asked == [("team/model", where)]
    assert pipeline.loaded == [("team/lora", {"revision": COMMIT})]
    assert looked_up == [("team/model", "model_index.json", "v1"), ("team/lora", "", "v1")]
    assert stylizer.networks == {
        "model": f"team/model@{COMMIT}",
        "lora team/lora@v1": f"team/lora@{COMMIT}",
    }
    assert stylizer.product_key() != before  # files of another commit are not taken for these


def test_parts_of_one_model_come_from_one_commit(looked_up, monkeypatch):
    """StyleMamba's codec and StyleGallery's model: the commit is looked up before the first."""
    import diffusers

    asked = []

    def from_pretrained(source, **where):
        asked.append((source, where))
        raise OSError("enough")

    kind = types.SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setattr(codecs, "AutoencoderKL", kind)
    monkeypatch.setattr(diffusers, "DDIMScheduler", kind)
    for load in (codecs.load_codec, gallery.load_model):
        with pytest.raises(UserError, match="enough"):
            load("team/model@v1")
    where = {"local_files_only": False, "revision": COMMIT}
    assert asked == [
        ("team/model", where | {"output_loading_info": True}),
        ("team/model", where | {"subfolder": "scheduler"}),
    ]
    # The index twice: first for the family of the model.
    names = ("config.json", "model_index.json", "model_index.json")
    assert looked_up == [("team/model", name, "v1") for name in names]


def test_stylegallery_records_the_commit_of_each_network(monkeypatch, tmp_path):
    from PIL import Image

    from pseudo_labels.stylegallery import networks, stylizer

    model = gallery.random_model()
    model.name = f"team/model@{COMMIT}"
    monkeypatch.setattr(stylizer, "load_model", lambda name, **more: model)
    dino = networks._random_dino()
    dino.config._commit_hash = COMMIT
    monkeypatch.setattr(networks, "_load", lambda *_: [dino])
    Image.new("RGB", (64, 64), (90, 20, 160)).save(tmp_path / "reference.png")
    made = stylizer.AttentionEnergyStylizer.build(
        references=str(tmp_path / "reference.png"),
        model="team/model@v1",
        dino="team/dino",
        cache=None,
        device="cpu",
        overrides=["size=64"],
    )
    made.load()
    assert made.networks == {"model": f"team/model@{COMMIT}", "dino": f"team/dino@{COMMIT}"}


def test_answers_of_another_commits_judge_are_not_taken_for_those_of_this_one(
    monkeypatch, tmp_path
):
    from pseudo_labels.curate import judge

    class Judge:
        name = f"smolvlm model@{COMMIT}"

    monkeypatch.setattr(judge, "_judge", lambda source, device: Judge)
    settings = judge.JudgeSettings("team/model@v1")
    assert settings.fingerprint() == Judge.name
    assert judge.JudgeSettings(str(tmp_path)).fingerprint() != Judge.name


def test_an_edit_records_the_commit_of_its_base():
    from regionroute.editing.metadata import batch_metadata
    from regionroute.editing.request import EditOptions

    backbone = types.SimpleNamespace(
        name="team/model", revision=COMMIT, fit_size=lambda height, width: (height, width)
    )
    options = EditOptions()
    facts = batch_metadata(backbone, None, options, (8, 8))
    assert facts["base"] == f"team/model@{COMMIT}"
