import pytest
import torch

from pseudo_labels.stylegallery.cache import StageCache
from pseudo_labels.stylegallery.config import GalleryConfig
from pseudo_labels.stylegallery.gallery import Gallery
from pseudo_labels.stylegallery.networks import SemanticEncoder
from pseudo_labels.stylegallery.page import loss_curve, region_image, write_page
from pseudo_labels.stylegallery.stylizer import AttentionEnergyStylizer
from pseudo_labels.stylize.registry import load_styles
from regionroute.config.io import load_config
from regionroute.data.images import write_image
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError

QUICK = ["size=64", "features.steps=2", "energy.steps=3", "clusters.island=3", "clusters.most=4"]


def configured(*more):
    return load_config(None, [*QUICK, *more], GalleryConfig)


def build(model, *more, **options):
    semantic = SemanticEncoder("random", torch.device("cpu"))
    return Gallery(model, configured(*more), semantic=semantic, progress=False, **options)


@pytest.fixture
def disc():
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    return ((y - 0.5).square() + (x - 0.5).square() < 0.09).float()[None]


def run(gallery, pictures, **options):
    references = [gallery.analyse(f"r{n}", image) for n, image in enumerate(pictures[1:])]
    return gallery.restyle(pictures[0], references, **options)


def test_a_run_is_repeated_exactly_and_lowers_the_energy(model, pictures):
    more = ["energy.steps=8"]
    one, other = (run(build(model, *more), pictures) for _ in range(2))
    assert torch.equal(one.image, other.image)
    # Losses of different timesteps do not compare: beside a run that stands still.
    still = run(build(model, *more, "energy.learning_rate=1e-9"), pictures)
    assert one.losses[0] == still.losses[0]
    assert one.losses[-1][0] < 0.95 * still.losses[-1][0]
    assert one.image.shape == pictures[0].shape
    assert len(one.matches) == int(one.content.labels.max())
    assert one.matches[0].semantic is not None


def test_only_the_region_changes(model, pictures, disc):
    result = run(build(model), pictures, region=disc, only_region=True)
    outside = (disc == 0).expand(3, -1, -1)
    assert torch.equal(result.image[outside], pictures[0][outside])
    assert not torch.equal(result.image, pictures[0])
    assert result.styled == [result.content.region]
    with pytest.raises(UserError, match="needs a region"):
        run(build(model), pictures, only_region=True)
    with pytest.raises(UserError, match="mask is empty"):
        run(build(model), pictures, region=torch.zeros(1, 64, 64))


def test_what_was_kept_is_taken_and_settings_tell_it_apart(model, pictures, tmp_path):
    whole = run(build(model, "energy.save_every=1", cache=tmp_path), pictures)
    names = {path.name.split("-")[0] for path in tmp_path.iterdir()}
    assert names == {"features", "regions", "tokens", "result"}
    calls = []
    hook = model.unet.register_forward_pre_hook(lambda module, args: calls.append(1))
    again = run(build(model, "energy.save_every=1", cache=tmp_path), pictures)
    assert not calls
    assert torch.equal(again.image, whole.image)
    run(build(model, "energy.save_every=1", "clusters.merge=0", cache=tmp_path), pictures)
    features = list(tmp_path.glob("features-*"))
    assert len(features) == 3  # the inversion is not touched by settings of clusters
    run(build(model, "features.steps=3", cache=tmp_path), pictures)
    hook.remove()
    assert len(list(tmp_path.glob("features-*"))) == 6


def test_an_interrupted_run_goes_on(model, pictures, tmp_path, monkeypatch):
    whole = run(build(model, "energy.save_every=1"), pictures)
    write, left = StageCache.write, [2]

    def stop(self, stage, facts, tensors):
        write(self, stage, facts, tensors)
        left[0] -= stage == "progress"
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(StageCache, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        run(build(model, "energy.save_every=1", cache=tmp_path), pictures)
    monkeypatch.undo()
    assert len(list(tmp_path.glob("progress-*"))) == 1
    resumed = run(build(model, "energy.save_every=1", cache=tmp_path), pictures)
    assert torch.equal(resumed.image, whole.image)
    assert resumed.losses == whole.losses
    assert not list(tmp_path.glob("progress-*"))


def test_damaged_files_are_made_anew(tmp_path):
    cache = StageCache(tmp_path)
    cache.write("stage", 1, {"x": torch.ones(2)})
    cache.path("stage", 1).write_bytes(b"no tensors")
    assert cache.make("stage", 1, lambda: {"x": torch.zeros(2)})["x"].tolist() == [0, 0]
    assert cache.read("stage", 1)["x"].tolist() == [0, 0]
    assert cache.read("stage", 2) is None


def test_guided_mode_runs_too(model, pictures):
    result = run(build(model, "energy.mode=guided"), pictures)
    assert len(result.losses) == 3
    assert torch.isfinite(result.image).all()


def test_a_bank_changes_nothing(model, pictures):
    plain = run(build(model), pictures)
    banked = build(model, bank=2**30)
    assert torch.allclose(run(banked, pictures).image, plain.image, atol=1e-4)
    assert banked.bank.size > 0
    assert torch.allclose(run(banked, pictures).image, plain.image, atol=1e-4)


def test_the_users_matches(model, pictures, disc):
    gallery = build(model)
    result = run(gallery, pictures, region=disc, chosen={None: (1, 1)})
    match = result.matches[result.content.region - 1]
    assert (match.reference, match.cluster, match.manual) == (1, 1, True)
    for chosen, words in (
        ({99: (0, 1)}, "has regions 1 to"),
        ({1: (0, 99)}, "r0 has regions 1 to"),
        ({None: (0, 1)}, "give --region"),
    ):
        with pytest.raises(UserError, match=words):
            run(gallery, pictures, chosen=chosen)


def test_the_page_tells_everything(model, pictures, disc, tmp_path):
    result = run(build(model), pictures, region=disc, chosen={None: (1, 1)})
    write_page(tmp_path / "page.html", pictures[0], result, ["random weights"])
    text = (tmp_path / "page.html").read_text()
    assert text.count("data:image/png;base64,") == 7
    assert "random weights" in text
    assert "your region, chosen by you" in text
    for match in result.matches:
        assert f"{match.statistical:.3f}" in text
        assert f"{match.semantic:.3f}" in text
    assert f"{result.losses[-1][0]:.4f}" in text
    assert "http" not in text
    tinted = region_image(result.content)
    assert tinted.shape == (3, 384, 384)
    assert loss_curve([[2, 1, 1], [1, 0.5, 0.5]])["lines"][0]["points"] == "0.0,0.0 720.0,100.0"


def test_a_styles_file(pictures, disc, tmp_path):
    (tmp_path / "refs").mkdir()
    for place, image in enumerate(pictures[1:]):
        write_image(tmp_path / f"refs/r{place}.png", image)
    (tmp_path / "styles.yaml").write_text(
        "styles:\n  mine:\n    stylizer: gallery\n    settings:\n      references: refs\n"
        "      model: random\n      dino: random\n      cache: null\n      only_region: true\n"
        f"      overrides: {QUICK}\n"
    )
    stylizer = load_styles(tmp_path / "styles.yaml")[0].build()
    assert isinstance(stylizer, AttentionEnergyStylizer)
    assert stylizer.needs == {"mask"}
    assert stylizer.remarks == {"random_weights": ["model", "dino"]}
    stylizer.load()
    styled = stylizer.stylize(pictures[0], StyleSpec("mine"), mask=disc)
    assert torch.equal(styled[:, :10], pictures[0][:, :10])
    other = AttentionEnergyStylizer.build(
        references=str(tmp_path / "refs"),
        model="random",
        dino="random",
        cache=None,
        overrides=["size=64"],
    )
    assert other.fingerprint != stylizer.fingerprint
    assert other.needs == frozenset()
