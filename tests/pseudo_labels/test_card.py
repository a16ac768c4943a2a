"""The dataset card of a label folder, and its upload."""

import pytest
import yaml

from pseudo_labels.card import UPLOADED, card, write_card
from regionroute.cli.main import main
from regionroute.data.manifest import EditSample, Region
from regionroute.hub import plan_upload

OPTIONS = ["--size", "64", "--min-area", "0.001", "--max-area", "0.9", "--min-strength", "0"]
OPTIONS += ["--min-structure", "-1", "--styles", "scenes", "--only", "pixel-art", "--workers", "1"]


def samples():
    regions = [Region(word, "neon", "masks/a.png", (0, 0, 8, 8)) for word in ("dog", "cat", "dog")]
    return [
        EditSample(
            f"s{number}",
            f"images/{number}.png",
            "t.png",
            (region,),
            "…",
            "train" if number else "test",
        )
        for number, region in enumerate(regions)
    ]


def test_the_card_counts_what_there_is():
    text = card(samples(), license="cc-by-4.0")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["license"] == "cc-by-4.0"
    assert header["size_categories"] == ["n<1K"]
    assert header["task_categories"] == ["image-to-image"]
    assert "| dog | 2 |" in text
    assert "| splits | test 1, train 2 |" in text
    assert "| photos | 3 |" in text


def test_without_a_licence_the_card_says_so():
    assert yaml.safe_load(card(samples()).split("---\n")[1])["license_name"] == "not-stated"


def test_another_readme_is_kept(tmp_path):
    (tmp_path / "README.md").write_text("mine\n")
    assert write_card(tmp_path, samples()) is None
    assert (tmp_path / "README.md").read_text() == "mine\n"
    (tmp_path / "README.md").unlink()
    assert write_card(tmp_path, samples()) == tmp_path / "README.md"
    assert write_card(tmp_path, samples(), license="mit") == tmp_path / "README.md"
    assert "license: mit" in (tmp_path / "README.md").read_text()


def test_label_writes_the_card_and_lists_an_upload(photos, tmp_path, capsys):
    command = ["label", "--labels", str(photos / "labels.jsonl"), "--out", str(tmp_path / "out")]
    sharing = ["--license", "cc0-1.0", "--push", "me/pairs", "--dry-run"]
    assert main([*command, *OPTIONS, *sharing]) == 0
    said = capsys.readouterr().out
    assert "https://huggingface.co/datasets/me/pairs (private" in said
    assert "  images/" in said
    sent = plan_upload(tmp_path / "out", "me/pairs", "dataset", UPLOADED).files
    assert {"README.md", "manifest.jsonl", "metadata.jsonl"} <= set(sent)
    assert {name.partition("/")[0] for name in sent if "/" in name} == {
        "images",
        "masks",
        "targets",
    }
    assert "license: cc0-1.0" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--push", "me/pairs"], "--push needs --license"),
        (["--push", "pairs", "--license", "mit"], "OWNER/NAME"),
        (["--dry-run"], "go with --push"),
        (["--push", "me/p", "--license", "mit", "--preview", "2"], "without --preview"),
    ],
)
def test_a_wrong_upload_is_refused_before_the_work(given, sentence, photos, tmp_path, capsys):
    command = ["label", "--labels", str(photos / "labels.jsonl"), "--out", str(tmp_path / "out")]
    assert main([*command, *OPTIONS, *given]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
