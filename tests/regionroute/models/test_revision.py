"""Bases on the hub: a pinned revision, and the commit that was used."""

import json
import shutil

import pytest
from huggingface_hub.errors import RevisionNotFoundError

from regionroute.config.run import load_config
from regionroute.errors import UserError
from regionroute.models import loading, source
from regionroute.models.loading import load_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tiny_base, tmp_path, monkeypatch):
    """A hub that has one repository with the tag v1; the calls that it and its parts got."""
    folder = tmp_path / "models--team--tiny" / "snapshots" / COMMIT
    shutil.copytree(tiny_base, folder)
    calls = {"index": [], "parts": []}
    load_parts = loading._load_parts

    def download(repository, name, revision=None):
        assert repository == "team/tiny"
        if name != "model_index.json":
            assert name.endswith("/config.json")
            assert revision == COMMIT
            return str(folder / name)
        calls["index"].append(revision)
        if revision not in (None, "v1", COMMIT):
            response = type("Response", (), {"headers": {}, "request": None})()
            raise RevisionNotFoundError("no such revision", response=response)
        return str(folder / name)

    def parts(spec, where, index, dtype, revision, skeleton):
        calls["parts"].append((where, revision))
        return load_parts(spec, folder, index, dtype, None, skeleton)

    monkeypatch.setattr(source, "hf_hub_download", download)
    monkeypatch.setattr(loading, "_load_parts", parts)
    return calls


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_all_parts_come_from_the_commit_that_the_revision_names(hub, revision):
    backbone = load_base("team/tiny", revision=revision)
    assert backbone.revision == COMMIT
    assert hub["index"][0] == revision
    assert hub["parts"] == [("team/tiny", COMMIT)]


def test_every_part_is_asked_for_at_the_revision(tiny_base, monkeypatch):
    asked = []

    class Part:
        @classmethod
        def from_pretrained(cls, where, subfolder, revision, **rest):
            asked.append((where, subfolder, revision))
            report = {"missing_keys": [], "mismatched_keys": []}
            return (object(), report) if "output_loading_info" in rest else object()

    index = source.read_index("tiny", tiny_base)
    family = source.family_in(index)
    monkeypatch.setattr(type(family), "small_parts", {"tokenizer": Part}, raising=False)
    monkeypatch.setattr(type(family), "networks", {"transformer": Part}, raising=False)
    monkeypatch.setattr(loading, "_autoencoder", lambda spec, index: Part)
    loading._load_parts("team/tiny", "team/tiny", index, None, COMMIT, False)
    assert asked == [("team/tiny", part, COMMIT) for part in ("tokenizer", "transformer", "vae")]


def test_a_folder_has_no_revision_and_states_none(tiny_base):
    assert load_base(str(tiny_base)).revision is None
    with pytest.raises(UserError, match="revision 'v1' is given, but only bases on the hub"):
        load_base(str(tiny_base), revision="v1")


def test_the_revision_may_follow_the_name(hub):
    backbone = load_base("team/tiny@v1")
    assert (backbone.name, backbone.revision) == ("team/tiny", COMMIT)
    assert hub["index"][0] == "v1"
    assert hub["parts"] == [("team/tiny", COMMIT)]
    load_base("team/tiny@v9", revision="v1")  # --revision is the later word
    assert load_base(f"team/tiny@{COMMIT}").revision == COMMIT  # as an edit's metadata names it


def test_a_base_is_written_again_from_the_commit_it_was_loaded_from(hub, tmp_path, monkeypatch):
    import huggingface_hub

    from regionroute.models.formats.saving import save_base

    backbone = load_base("team/tiny", revision="v1")
    hub["index"].clear()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", source.hf_hub_download)
    save_base(backbone, tmp_path / "out")
    assert set(hub["index"]) == {COMMIT}
    assert load_base(str(tmp_path / "out")).fingerprint == backbone.fingerprint


def test_an_unknown_revision_is_one_sentence(hub):
    with pytest.raises(UserError, match=r"base team/tiny: .* no such revision; give a branch"):
        load_base("team/tiny", revision="v9")


def test_a_run_writes_the_commit_into_its_settings(hub, tiny_manifest, tmp_path):
    from train.run import main

    run = tmp_path / "run"
    arguments = ["base.name=team/tiny", "base.revision=v1", f"data.manifest={tiny_manifest}"]
    arguments += [f"output={run}", "train.steps=1", "train.global_batch=2", "train.trackers=[]"]
    # regionroute.json is read of folders alone: of the hub come the family's defaults.
    arguments += ["data.resolution=32", "base.max_text_length=32"]
    assert main(arguments) == 0
    assert load_config(run / "config.yaml").base.revision == COMMIT
    extra = json.loads((run / "experts" / "experts.json").read_text())["extra"]
    assert extra["config"]["base"]["revision"] == COMMIT
    assert main(arguments) == 0  # the tag still names these weights
