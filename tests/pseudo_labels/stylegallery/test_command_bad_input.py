"""Everything a user can get wrong with `regionroute gallery`: one sentence, nothing lost."""

import json

import pytest
import torch

from pseudo_labels.stylegallery.stylizer import find_references
from pseudo_labels.stylemamba.networks import find_images
from pseudo_labels.stylize.painting import reference_files
from regionroute.cli.main import main as regionroute
from regionroute.cli.options import check_image_output
from regionroute.data.images import read_image, write_image
from regionroute.settings_files import check_page_output

BASE = ["gallery", "photo.png", "--references", "refs", "--out", "out.png", "--model", "random",
        "--dino", "random", "--cache", "cache", "--device", "cpu", "size=64", "features.steps=2",
        "energy.steps=2", "clusters.island=3"]  # fmt: skip


@pytest.fixture
def folder(tmp_path, pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_image("photo.png", pictures[0])
    write_image("refs/stripes.png", pictures[1])
    write_image("refs/blocks.png", pictures[2])
    disc = torch.zeros(1, 64, 64)
    disc[:, 20:44, 20:44] = 1
    write_image("mask.png", disc)
    write_image("black.png", 0 * disc)
    write_image("wide.png", torch.ones(1, 32, 40))
    write_image("twins/a.png", pictures[1])
    write_image("twins/a.webp.png", pictures[1])
    (tmp_path / "twins/a.jpg").write_bytes((tmp_path / "twins/a.png").read_bytes())
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "dog.json").write_text('{"version": "5.2.1", "shapes": []}')  # of LabelMe
    (tmp_path / "mine.html").write_text("<title>of another origin</title>")
    (tmp_path / "labels.jsonl").write_text(
        '{"file": "photo.png", "word": "disc", "mask": "mask.png"}\n'
    )
    return tmp_path


CASES = [
    (["gallery"], "give the photo"),
    (["gallery", "photo.png"], "--references is missing"),
    (["gallery", "photo.png", "--references", "refs"], "--out is missing"),
    (["gallery", "size=64"], "the photo comes before settings"),
    (["gallery", "nowhere.png", *BASE[2:]], "nowhere.png: no such image"),
    ([*BASE, "--references", ""], "--references is empty: give a value or leave it out"),
    ([*BASE, "--references", "nowhere"], "nowhere: no such reference image or folder"),
    ([*BASE, "--references", "empty"], "this folder of references holds no image"),
    ([*BASE, "--references", "twins"], "two references are named 'a'"),
    ([*BASE, "--references", "file"], "file: this image cannot be read"),
    ([*BASE, "--out", "out.jpg"], "written as PNG"),
    ([*BASE, "--out", "photo.png"], "this is the photo"),
    ([*BASE, "--out", "refs/stripes.png"], "refs/stripes.png: this would overwrite the input"),
    ([*BASE, "--out", "refs/new.png"], "would take this image for a reference"),
    ([*BASE, "--region", "mask.png", "--out", "mask.png"], "this would overwrite the input"),
    ([*BASE, "--out", "dog.png"], "dog.json: the settings of dog.png would overwrite this file"),
    ([*BASE, "--page", "page.txt"], "ends in .html"),
    ([*BASE, "--page", "mine.html"], "mine.html: this file is not a page of regionroute"),
    ([*BASE, "--only-region"], "--only-region needs --region"),
    ([*BASE, "--labels", "labels.jsonl"], "--labels goes with --region"),
    ([*BASE, "--region", "nowhere.png"], "no such mask"),
    ([*BASE, "--region", "wide.png"], "the mask is 40x32 pixels"),
    ([*BASE, "--region", "black.png"], "the mask is empty"),
    ([*BASE, "--region", "cat", "--labels", "labels.jsonl"], "cat"),
    ([*BASE, "--match", "3"], "write N=NAME or N=NAME:M"),
    ([*BASE, "--match", "x=stripes:1"], "write N=NAME or N=NAME:M"),
    ([*BASE, "--match", "1=dots"], "no reference 'dots'; there are blocks, stripes"),
    ([*BASE, "--match", "99=stripes"], "photo has regions 1 to"),
    ([*BASE, "--match", "1=stripes:99"], "stripes has regions 1 to"),
    ([*BASE, "--match", "region=stripes"], "give --region"),
    ([*BASE, "--model", "nowhere"], "nowhere: no such folder"),
    ([*BASE, "--model", "empty"], "no model_index.json"),
    ([*BASE, "--dino", "empty"], "--dino empty"),
    ([*BASE, "--lora", "file"], "--lora goes with --preset"),
    ([*BASE, "--lora", "file", "--preset", "pairs"], "--lora goes with --preset lcm"),
    ([*BASE, "--preset", "fast"], "invalid choice: 'fast'"),
    ([*BASE, "size=100"], "size must"),
    ([*BASE, "energy.stepz=3"], "nearest known one is 'energy.steps'"),
    ([*BASE, "energy.steps=1001"], "the schedule has 1000"),
    ([*BASE, "energy.layers=17"], "the model has 16"),
    ([*BASE, "energy.mode=guided", "energy.steps=999"], "the inversion ends at 501"),
    ([*BASE, "features.block=4"], "has 4 blocks"),
    ([*BASE, "clusters.source=sam"], "needs --sam FILE"),
    ([*BASE, "--sam", "file"], "no checkpoint of SAM"),
    ([*BASE, "--depth", "empty"], "--depth empty"),
    ([*BASE, "--dino", "none", "matching.statistical=0", "matching.geometric=0"], "needs DINOv2"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), CASES)
def test_refused(folder, refused, arguments, words):
    # The cache may be filled before the fault shows; it is no product.
    assert words in refused(
        regionroute, [a if a != "cache" else folder.parent / "c" for a in arguments]
    )


def test_a_good_run_writes_picture_page_and_facts(folder, capsys):
    arguments = [*BASE, "--page", "page.html", "--region", "disc", "--labels", "labels.jsonl",
                 "--only-region", "--match", "region=stripes"]  # fmt: skip
    assert regionroute(arguments) == 0
    said = capsys.readouterr()
    assert "warning: random weights (model, dino)" in said.err
    assert "out.png: 1 regions, loss" in said.out
    facts = json.loads((folder / "out.json").read_text())
    assert facts["random_weights"] == ["model", "dino"]
    mine = next(match for match in facts["matches"] if match["region"] in facts["styled"])
    assert (mine["reference"], mine["manual"]) == (1, True)
    assert facts["settings"]["energy"]["steps"] == 2
    photo, out = read_image("photo.png"), read_image("out.png")
    assert torch.equal(photo[:, :20], out[:, :20])
    assert (folder / "page.html").is_file()
    check_image_output(folder / "out.png", ["refs", None])  # it may be made again
    check_page_output(folder / "page.html")


@pytest.mark.parametrize(
    "found", [find_references, lambda folder: find_images([folder]), reference_files]
)
def test_folders_of_images_hold_every_format_but_hidden_files(tmp_path, found):
    for name in ("b.HEIC", "a.avif", "._a.avif", "notes.txt"):
        (tmp_path / name).touch()
    assert [file.name for file in found(str(tmp_path))] == ["a.avif", "b.HEIC"]


def test_help_and_settings_teach(capsys):
    with pytest.raises(SystemExit):
        regionroute(["gallery", "--help"])
    assert "--match 3=painting2:1" in capsys.readouterr().out
    assert regionroute(["gallery", "--print-config", "--preset", "lcm"]) == 0
    text = capsys.readouterr().out
    assert "steps: 28" in text
    assert "content_weight: 0.33" in text
