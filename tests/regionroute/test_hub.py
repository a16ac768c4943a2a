"""Uploads are planned without a network; the hub's errors become one sentence."""

from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError

from regionroute.errors import UserError
from regionroute.hub import check_repo, plan_upload, push


@pytest.fixture
def folder(tmp_path):
    for name, size in {"README.md": 10, "a/x.safetensors": 30, "cache/y.bin": 500}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"0" * size)
    return tmp_path


class Hub:
    """Stands in for `HfApi`: records what it is asked for, or fails."""

    asked: ClassVar[list[tuple[str, dict]]] = []
    fails: ClassVar[Exception | None] = None

    def create_repo(self, repo, **how):
        self.asked.append(("create", {"repo": repo, **how}))

    def upload_folder(self, **how):
        if self.fails is not None:
            raise self.fails
        self.asked.append(("upload", how))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(Hub, "fails", None)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


def test_only_the_named_files_are_planned(folder):
    upload = plan_upload(folder, "me/styles", "model", ["README.md", "*.safetensors"])
    assert upload.files == ("README.md", "a/x.safetensors")
    assert upload.size == 40
    said = upload.describe()
    assert "2 files, 0.0 MB, to https://huggingface.co/me/styles (private if it is new)" in said
    assert "a/x.safetensors" in said
    assert "y.bin" not in said


def test_long_lists_are_cut(folder):
    for number in range(30):
        (folder / f"{number:02}.txt").touch()
    said = plan_upload(folder, "me/data", "dataset", ["*.txt"], private=False).describe()
    assert "datasets/me/data (public" in said
    assert said.endswith("… 10 more")


def test_nothing_to_upload(folder):
    with pytest.raises(UserError, match="nothing to upload"):
        plan_upload(folder, "me/styles", "model", ["experts.json"])


@pytest.mark.parametrize("repo", ["styles", "me/a/b", "me/bad name", "me/..", ""])
def test_what_is_no_repository(repo):
    with pytest.raises(UserError):
        check_repo(repo)


def test_exactly_the_planned_files_are_pushed(folder, hub):
    upload = plan_upload(folder, "me/data", "dataset", ["*.md"], private=True)
    assert push(upload) == "https://huggingface.co/datasets/me/data"
    (_, made), (_, sent) = hub.asked
    assert made == {"repo": "me/data", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert sent["allow_patterns"] == ["README.md"]
    assert sent["repo_id"] == "me/data"
    assert sent["repo_type"] == "dataset"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (LocalTokenNotFoundError("no token"), "log in with `hf auth login`"),
        (ConnectionError("no route"), "cannot be reached"),
    ],
)
def test_failures_are_sentences(folder, hub, error, sentence):
    hub.fails = error
    with pytest.raises(UserError, match=sentence):
        push(plan_upload(folder, "me/data", "dataset", ["*.md"]))
