import pytest
import torch
import torch.nn.functional as F

from eval import rses
from eval.batches import make_batch
from eval.edits import Edit
from eval.encoders import networks
from eval.encoders.networks import REMEDIES, Networks, ScoreNetworks, load_networks, parse_places
from eval.metrics import CATALOGUE, GROUPS
from eval.metrics.build import build_metrics
from eval.metrics.choice import SET_METRICS, choose_metrics, needs_of
from eval.metrics.embedding import PHOTO_TEXT, STYLED_TEXT, directional
from eval.metrics.views import crop_box
from eval.sources import load_source
from eval.style_images import StyleImages
from regionroute.data.images import write_image
from regionroute.data.manifest import load_manifest
from regionroute.errors import UserError
from regionroute.files import read_json


def test_metrics_are_chosen_by_name_and_group():
    assert choose_metrics("mse_bg, leak") == ["mse_bg", "leak"]
    assert choose_metrics("leak,mse_bg") == ["mse_bg", "leak"]  # the catalogue's order
    assert "rsm" in choose_metrics("rse")
    assert "q1" not in choose_metrics("rse")
    assert choose_metrics("leak", judged=True) == ["leak", "q1", "q2", "q3", "q4"]
    assert choose_metrics("all") == [*CATALOGUE, *SET_METRICS]
    assert set(choose_metrics("stylegallery")) == {"gram", "style_match", "lpips", "fid", "artfid"}
    for word, told in (("mse_gb", "'mse_bg'"), ("styleexprt", "'styleexpert'"), (",", "no name")):
        with pytest.raises(UserError, match=told):
            choose_metrics(word)


def test_every_need_has_a_remedy_and_every_group_a_metric():
    needs = needs_of(choose_metrics("all")) - {"map"}
    assert needs == set(REMEDIES)
    assert {info.group for info in CATALOGUE.values()} == set(GROUPS)


def test_nothing_is_loaded_that_is_not_needed(monkeypatch):
    monkeypatch.setattr(networks, "load_clip", lambda *_: pytest.fail("CLIP was loaded"))
    found = load_networks(ScoreNetworks(clip="somewhere"), {"vgg"})
    assert found == Networks()
    assert found.lacks(("map",)) is None
    assert found.lacks(("map", "clip")) == "clip"


@pytest.mark.parametrize(
    ("item", "told"),
    [("dino", "write NAME=PLACE"), ("vgg=", "write NAME=PLACE"), ("dinno=x", "is 'dino'")],
)
def test_wrong_places_are_refused(item, told):
    with pytest.raises(UserError, match=told):
        parse_places([item])


class Embedder:
    """Image and text embeddings of known geometry."""

    def encode_image(self, images):
        return torch.stack([F.normalize(image.mean((1, 2)) + 0.01, dim=0) for image in images])

    def encode_text(self, texts):
        rng = [torch.Generator().manual_seed(sum(map(ord, text))) for text in texts]
        return torch.stack([F.normalize(torch.randn(3, generator=g), dim=0) for g in rng])

    def identity(self):
        return {"encoder": "stub", "weights": "none"}


@pytest.fixture
def batch(tiny_manifest):
    """The four pairs with a bright edit of the object's box and nothing else."""
    manifest = load_manifest(tiny_manifest)
    sources = [load_source(manifest, n, s) for n, s in enumerate(manifest.samples)]
    rng = torch.Generator().manual_seed(0)
    edits = [Edit(torch.rand(source.content.shape, generator=rng)) for source in sources]
    return make_batch(sources, edits, method="m")


def box(picture, mask):
    y0, x0, y1, x1 = crop_box(mask)
    return picture[:, y0:y1, x0:x1]


@pytest.mark.parametrize("scope", ["object", "image"])
def test_the_scope_is_what_is_embedded(batch, scope):
    encoder = Embedder()
    found = Networks(clip=encoder, dino=encoder)
    metrics = build_metrics(found, ["clip_i", "dino", "clip_score", "clip_directional"], scope)
    values = {metric.name: metric(batch) for metric in metrics}
    for number in range(4):
        pair = [batch.output[number], batch.content[number]]
        if scope == "object":
            pair = [box(picture, batch.mask[number]) for picture in pair]
        output, content = encoder.encode_image(pair)
        word, style = batch.labels[number][0], batch.styles[number][0]
        templates = (STYLED_TEXT, PHOTO_TEXT)
        texts = [text.format(object=word, style=style) for text in templates]
        styled, photo = encoder.encode_text(texts)
        assert values["clip_i"][number] == pytest.approx(float(output @ content), abs=1e-5)
        assert values["dino"][number] == values["clip_i"][number]
        assert values["clip_score"][number] == pytest.approx(float(output @ styled), abs=1e-5)
        cosine = F.cosine_similarity(output - content, styled - photo, dim=0)
        assert values["clip_directional"][number] == pytest.approx(float(cosine), abs=1e-4)
    assert all(scope in metric.remark or "region" in metric.remark for metric in metrics)
    assert all(metric.encoder == encoder.identity() for metric in metrics)


def test_without_movement_there_is_no_direction():
    a, b = F.normalize(torch.rand(2, 5), dim=1), torch.rand(2, 5)
    assert directional(a, a, b, b.flip(0)).isnan().all()
    text = b - b.flip(0)
    torch.testing.assert_close(directional(a + text, a, b, b.flip(0)), torch.ones(2))
    torch.testing.assert_close(directional(a - text, a, b, b.flip(0)), -torch.ones(2))


class Sum:
    """A distance between images."""

    def distance(self, a, b):
        pairs = zip(a, b, strict=True)
        return torch.stack([(x.mean() - y.mean()).abs() for x, y in pairs])

    def identity(self):
        return {"encoder": "sum", "weights": "none"}


def test_style_pictures_are_averaged_and_missing_ones_are_undefined(batch, tmp_path):
    for number, name in enumerate(("a", "b")):
        write_image(tmp_path / "pixel-art" / f"{name}.png", torch.full((3, 9, 9), number / 2))
    pictures = StyleImages(tmp_path)
    encoder = Embedder()
    found = Networks(csd=encoder, dreamsim=Sum(), styles=pictures)
    metrics = build_metrics(found, ["csd", "dreamsim"])
    values = {metric.name: metric(batch) for metric in metrics}
    view = box(batch.output[0], batch.mask[0])
    references = pictures.pictures("pixel-art")
    own, *others = encoder.encode_image([view, *references])
    assert values["csd"][0] == pytest.approx(float(sum(own @ o for o in others) / 2), abs=1e-5)
    expected = sum(abs(float(view.mean() - r.mean())) for r in references) / 2
    assert values["dreamsim"][0] == pytest.approx(expected, abs=1e-5)
    assert values["csd"][2:].isnan().all()  # line-art has no image
    assert metrics[0].encoder["style_images"] == pictures.identity()


def test_vgg_metrics_know_an_edit_from_its_source(batch, assets, tmp_path):
    write_image(tmp_path / "pixel-art.png", batch.output[0])
    write_image(tmp_path / "line-art.png", batch.output[2])
    place = {"vgg": str(assets / "weights" / "lpips")}
    given = ScoreNetworks(encoders=place, style_images=str(tmp_path))
    found = load_networks(given, {"vgg", "styles"})
    metrics = build_metrics(found, ["gram", "style_match", "vgg_content", "ssim"], "image")
    values = {metric.name: metric(batch) for metric in metrics}
    # The first edit is (up to eight bits) its style's image.
    assert values["gram"][0] < values["gram"][1] / 10
    assert values["style_match"][0] > 0.999 > values["style_match"][1]
    assert (values["vgg_content"] > 0).all()
    assert (values["ssim"] < 0.5).all()


def test_what_is_left_out_is_told_once_with_its_remedy(tiny_manifest, edits, tmp_path, capsys):
    arguments = ["--manifest", str(tiny_manifest), "--split", "all", "--edits", str(edits["good"])]
    out = tmp_path / "scores"
    assert rses.main([*arguments, "--out", str(out), "--metrics", "all"]) == 0
    said = capsys.readouterr().err
    skipped = read_json(out / "summary.json")["skipped"]
    for name in ("q1", "dino", "csd", "dreamsim", "gram", "fid", "artfid"):
        assert f"\n{said}".count(f"\n{name} is skipped: no ") == 1
        assert "give --" in skipped[name]
    assert "ssim" in read_json(out / "summary.json")["metrics"]


def test_fid_comes_out_of_the_command(tiny_manifest, edits, tmp_path, monkeypatch, capsys):
    class Inception:
        def encode_image(self, images):
            vectors = [torch.cat([i.mean((1, 2)), i.std((1, 2))]) for i in images]
            return torch.cat([torch.stack(vectors), torch.zeros(len(images), 2042)], 1)

        def identity(self):
            return {"encoder": "stub", "weights": "none"}

    monkeypatch.setitem(networks._LOADERS, "inception", lambda place, device: Inception())
    styles = tmp_path / "styles"
    for name in ("pixel-art", "line-art"):
        write_image(styles / f"{name}.png", torch.rand(3, 9, 9))
    arguments = ["--manifest", str(tiny_manifest), "--split", "all", "--edits", str(edits["half"])]
    arguments += ["--out", str(tmp_path / "scores"), "--metrics", "fid,mse_bg"]
    arguments += ["--encoder", "inception=x", "--style-images", str(styles)]
    report = tmp_path / "report.html"
    assert rses.main([*arguments, "--report", str(report), "--fail-if", "fid<0"]) == 0
    sets = read_json(tmp_path / "scores" / "summary.json")["sets"]
    assert sets["methods"]["half"]["fid"]["n"] == 4
    assert sets["methods"]["half"]["fid"]["n_reference"] == 2
    assert "artfid" not in sets["methods"]["half"]
    assert "| half | 4 | 2 |" in (tmp_path / "scores" / "summary.md").read_text()
    assert "Metrics of whole sets" in report.read_text()
    assert rses.main([*arguments, "--fail-if", "half:fid>0"]) == 3
    assert "half:fid>0" in capsys.readouterr().err
