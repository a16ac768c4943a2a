"""Training the style encoder: it learns style and not content, goes on where it stopped, refuses.

The toy is the published test: four textures over random contents.
"""

import json

import pytest
import torch

from regionroute.adapters import RouteContext, SimilarityRouter
from regionroute.adapters.router_stats import chosen_experts, routing_overlap
from regionroute.adapters.style_encoder import load_style_encoder
from regionroute.data.images import write_image
from regionroute.files import read_json
from train.style_encoder.images import read_style_pictures
from train.style_encoder.run import main

SIDE = 32
TEXTURES = ("stripes", "checks", "dots", "plain")


def texture(name):
    """A pattern [1,S,S] in [0,1]."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    patterns = {
        "stripes": (x // 2 % 2),
        "checks": ((x // 4 + y // 4) % 2),
        "dots": ((x % 4 == 0) & (y % 4 == 0)),
        "plain": torch.zeros(SIDE, SIDE),
    }
    return patterns[name].float()[None]


def content(generator):
    """A smooth random picture [3,S,S]."""
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")[0].clamp(0, 1)


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("styles"), torch.Generator().manual_seed(0)
    for number in range(60):
        shown = content(generator)
        for name in TEXTURES:
            picture = 0.6 * shown + 0.4 * texture(name)
            write_image(folder / name / f"{number}.png", picture)
    return folder


def arguments(styles, output, *more):
    return [
        f"pictures.source={styles}", f"output={output}", "pictures.held_out=0.25", "device=cpu",
        "tower.image_size=32", "tower.patch_size=8", "tower.hidden_size=32", "tower.layers=3",
        "tower.heads=2", "head.levels=[-1, -2, -3]", "head.tokens=2", "head.width=8",
        "optim.lr=0.002", "batch=16", "steps=200", "validate_every=100", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(styles, tmp_path_factory):
    output = tmp_path_factory.mktemp("run")
    assert main(arguments(styles, output)) == 0
    return output


def test_an_unseen_picture_is_nearest_to_its_own_style(trained):
    scores = read_json(trained / "style_encoder" / "scores.json")
    assert scores["by_chance"] == pytest.approx(0.25, abs=0.01)
    assert scores["nearest_is_right"] > 0.9
    assert (trained / "neighbours.png").is_file()


def test_experts_are_shared_more_within_a_style_than_between(styles, trained):
    encoder = load_style_encoder(trained / "style_encoder")
    pictures = read_style_pictures(styles)[::5]
    embeddings = torch.stack([encoder.embed(picture.read()) for picture in pictures])
    labels = torch.tensor([TEXTURES.index(picture.style) for picture in pictures])
    routings = {
        str(seed): SimilarityRouter(
            encoder.style_dim, 16, 2, generator=torch.Generator().manual_seed(seed)
        )(RouteContext(style_emb=embeddings))
        for seed in range(8)
    }
    within, between = routing_overlap(chosen_experts(routings, len(pictures)), labels)
    assert within > between + 0.2


def test_a_stopped_run_gives_the_same_encoder(styles, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    steps = ["steps=6", "log_every=1", "save_every=3"]
    assert main(arguments(styles, whole, *steps)) == 0
    assert main(arguments(styles, parts, *steps[1:], "steps=3")) == 0
    with (parts / "log.jsonl").open("a") as file:  # rows after the checkpoint, as of a kill
        file.write('{"step": 4, "loss": 9.0}\n{"step": 5')
    assert main(arguments(styles, parts, *steps)) == 0
    files = [
        x / "style_encoder" / f"{part}.safetensors" for x in (whole, parts) for part in ("head",)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    rows = [
        [json.loads(line) for line in (x / "log.jsonl").read_text().splitlines()]
        for x in (whole, parts)
    ]
    losses = [[row["loss"] for row in part if "loss" in row] for part in rows]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6


def test_adamw_trains_too(styles, tmp_path):
    assert main(arguments(styles, tmp_path / "run", "steps=2", "optim.name=adamw")) == 0


def test_nothing_may_be_kept_aside(styles, tmp_path):
    assert main(arguments(styles, tmp_path / "run", "steps=1", "pictures.held_out=0")) == 0
    assert read_json(tmp_path / "run" / "style_encoder" / "scores.json") == {}


BAD = [
    (["steps=0"], "steps"),
    (["step=5"], "nearest"),
    (["pictures.source=nowhere"], "nowhere: no such folder"),
    (["tower.name=nowhere"], "style encoder tower nowhere: no such folder"),
    (["tower.patch_size=7"], "image_size 32 is no multiple of patch_size 7"),
    (["tower.heads=3"], "width 32 is no multiple of heads 3"),
    (["head.levels=[-5]"], "levels: -5 is not there, the tower has 4 hidden states"),
    (["pictures.held_out=0.99"], "too few contents"),
    (["optim.lr=1e30", "optim.clip=1e30", "steps=40"], "lower optim.lr"),
    (["device=cuda:7"], "cuda"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[" ".join(c) for c, _ in BAD])
def test_a_mistake_is_one_sentence(styles, tmp_path, capsys, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    assert main(arguments(styles, tmp_path / "run", *changes)) == 2
    *_, sentence = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("error: ")
    assert message in sentence


def test_a_checkpoint_of_other_sizes_or_none_is_refused(styles, tmp_path, capsys):
    output = tmp_path / "run"
    assert main(arguments(styles, output, "steps=1")) == 0
    assert main(arguments(styles, output, "steps=2", "head.width=4")) == 2
    assert "checkpoint.pt: this checkpoint is damaged or of other sizes" in capsys.readouterr().err
    (output / "checkpoint.pt").write_bytes(b"nothing")
    assert main(arguments(styles, output, "steps=2")) == 2
    assert main(arguments(styles, output, "steps=1", "resume=false")) == 0
