import pickle

import pytest
import torch
from PIL import Image

from pseudo_labels.scenes.draw import render_scene
from pseudo_labels.stylize import filters, photo_filters
from pseudo_labels.stylize.filters import FILTERS
from pseudo_labels.stylize.functional import FunctionalStylizer
from pseudo_labels.stylize.painting import PaintingStylizer
from pseudo_labels.stylize.photo_filters import PHOTO_FILTERS
from pseudo_labels.stylize.registry import load_styles
from regionroute.data.manifest import StyleSpec
from regionroute.errors import UserError

SPEC = StyleSpec("any")
PACKAGED = load_styles("photos")


def painting(style=None, **settings):
    return PaintingStylizer.build(style=style, **settings)


def picture(height, width):
    """Smooth colours with a hard-edged disc: something for every style to work on."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width)[None].expand(height, width)
    disc = (((y - 0.5) ** 2 + (x - 0.5) ** 2) < 0.1).float()
    return torch.stack([0.2 + 0.6 * y, 0.8 - 0.5 * x, 0.1 + 0.8 * disc])


@pytest.fixture(scope="module", params=PACKAGED, ids=lambda entry: entry.spec.name)
def stylizer(request):
    return request.param.build()


@pytest.mark.parametrize("size", [(64, 64), (37, 90)])
def test_shape_range_determinism_and_an_untouched_content(stylizer, size):
    content = picture(*size)
    before = content.clone()
    styled = stylizer.stylize(content, SPEC)
    assert styled.shape == content.shape
    assert styled.dtype == torch.float32
    assert 0 <= styled.min() <= styled.max() <= 1
    assert torch.equal(content, before)
    assert torch.equal(styled, stylizer.stylize(content, SPEC))
    assert styled.data_ptr() != content.data_ptr()


def test_every_style_changes_the_picture_visibly(stylizer):
    content = picture(64, 64)
    assert (stylizer.stylize(content, SPEC) - content).abs().mean() > 0.05


def test_a_stylizer_goes_to_another_process(stylizer):
    other = pickle.loads(pickle.dumps(stylizer))
    content = picture(40, 40)
    assert other.fingerprint == stylizer.fingerprint
    assert torch.equal(other.stylize(content, SPEC), stylizer.stylize(content, SPEC))


def test_packaged_styles_look_unlike_each_other():
    content = render_scene(3, 64).image
    looks = [entry.build().stylize(content, SPEC) for entry in PACKAGED]
    for i, look in enumerate(looks):
        for other in looks[:i]:
            assert (look - other).abs().mean() > 0.03


def test_fingerprints_tell_styles_and_settings_apart():
    prints = [entry.build().fingerprint for entry in PACKAGED]
    prints += [painting(19, strength=0.5).fingerprint]
    prints += [painting(19, size=256).fingerprint]
    assert len(set(prints)) == len(prints)
    assert painting(19).fingerprint == painting(19).fingerprint


class TestFilters:
    def test_pixel_art_has_flat_cells_in_a_small_palette(self):
        styled = FILTERS["pixel-art"](picture(64, 64))
        cells = styled.reshape(3, 16, 4, 16, 4)
        assert torch.equal(cells.amax((2, 4)), cells.amin((2, 4)))
        assert set((styled * 3).round(decimals=4).unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}

    def test_line_art_is_grey_with_ink_at_edges_only(self):
        styled = FILTERS["line-art"](picture(64, 64))
        assert torch.equal(styled[0], styled[1])
        assert torch.equal(styled[0], styled[2])
        assert styled.min() < 0.3
        assert styled[:, 2, 32].min() > 0.9
        flat = FILTERS["line-art"](torch.full((3, 32, 32), 0.5))
        assert flat.min() > 0.9

    def test_cyberpunk_of_grey_is_coloured_by_brightness(self):
        dark, light = (
            FILTERS["cyberpunk"](torch.full((3, 32, 32), v))[:, 5, 5] for v in (0.1, 0.95)
        )
        assert dark[2] > dark[1]
        assert light[1] > light[0]

    def test_expressionist_shadows_are_blue_and_lights_orange(self):
        filter = FILTERS["expressionist"]
        dark, light = (filter(torch.full((3, 32, 32), v))[:, 5, 5] for v in (0.2, 0.8))
        assert dark[2] > dark[0]
        assert light[0] > light[2]

    @pytest.mark.parametrize("name", FILTERS | PHOTO_FILTERS)
    def test_a_look_is_about_the_same_at_twice_the_size(self, name):
        filter = (FILTERS | PHOTO_FILTERS)[name]
        small, large = (filter(picture(side, side)) for side in (128, 256))
        # Dots and hatching have a least width: what they make of an area is compared.
        cell = 16 if name in ("risograph", "ink-drawing", "fine-pixel-art") else 1
        pool = torch.nn.functional.avg_pool2d
        assert (pool(small, cell) - pool(large, 2 * cell)).abs().mean() < 0.04


class TestPhotoFilters:
    def test_the_scenes_know_their_four_and_no_more(self):
        assert list(FILTERS) == ["pixel-art", "line-art", "cyberpunk", "expressionist"]
        assert not FILTERS.keys() & PHOTO_FILTERS.keys()

    def test_fine_pixel_art_has_flat_cells_in_five_levels(self):
        styled = PHOTO_FILTERS["fine-pixel-art"](picture(64, 64))
        cells = styled.reshape(3, 16, 4, 16, 4)
        assert torch.equal(cells.amax((2, 4)), cells.amin((2, 4)))
        assert set(styled.unique().tolist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}

    def test_posterised_has_five_tones_away_from_outlines(self):
        styled = PHOTO_FILTERS["posterised"](picture(64, 64))
        tones = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
        away = (styled[..., None] - tones).abs().amin(-1) < 1e-4
        assert away.float().mean() > 0.7

    def test_neon_is_dark_but_for_the_outlines(self):
        styled = PHOTO_FILTERS["neon"](picture(64, 64))
        assert styled.mean(0)[2, 2] < 0.2
        assert styled.amax() > 0.9
        assert PHOTO_FILTERS["neon"](torch.full((3, 32, 32), 0.5)).mean() < 0.1

    def test_pop_art_of_grey_is_one_of_its_inks_by_brightness(self):
        inks = [
            PHOTO_FILTERS["pop-art"](torch.full((3, 32, 32), v))[:, 5, 5].tolist()
            for v in (0.1, 0.35, 0.6, 0.9)
        ]
        wanted = [[0.22, 0.06, 0.42], [0.93, 0.18, 0.55], [0.16, 0.74, 0.76], [1.00, 0.89, 0.30]]
        assert inks == [pytest.approx(ink, abs=1e-6) for ink in wanted]

    def test_a_blueprint_has_white_lines_on_blue(self):
        styled = PHOTO_FILTERS["blueprint"](picture(64, 64))
        assert styled[2, 2, 2] > styled[0, 2, 2] + 0.2
        assert styled.amin(0).amax() > 0.85

    def test_a_risograph_has_dots_and_two_inks(self):
        dark, light = (
            PHOTO_FILTERS["risograph"](torch.full((3, 64, 64), tone)) for tone in (0.15, 0.55)
        )
        assert dark[1].mean() > dark[0].mean()
        assert light[0].mean() > light[1].mean()
        assert light.std() > 0.02


class TestPainting:
    def test_strength_zero_gives_the_photo_back(self):
        content = picture(64, 64)
        styled = painting(19, strength=0.0).stylize(content, SPEC)
        assert (styled - content).abs().max() <= 0.5 / 255 + 1e-6

    def test_strength_lies_between(self):
        content = picture(64, 64)
        full = (painting(19).stylize(content, SPEC) - content).abs().mean()
        half = (painting(19, strength=0.5).stylize(content, SPEC) - content).abs().mean()
        assert 0.4 * full < half < 0.6 * full

    @pytest.mark.parametrize("size", [(8, 8), (5, 70), (1, 1)])
    def test_pictures_below_the_networks_least_size_work(self, size):
        assert painting(14).stylize(picture(*size), SPEC).shape == (3, *size)

    def test_another_working_size_keeps_the_pictures_size(self):
        assert painting(14, size=64).stylize(picture(96, 150), SPEC).shape == (3, 96, 150)

    def test_kept_colours_follow_the_photo(self):
        content = picture(64, 64)
        plain, kept = (
            painting(10, keep_colours=keep).stylize(content, SPEC) for keep in (False, True)
        )
        assert (kept - content).abs().mean() < (plain - content).abs().mean()

    def test_a_reference_picture_sets_the_style(self, tmp_path):
        content = picture(80, 60)
        results = []
        for name, colour in (("red", (200, 30, 20)), ("blue", (20, 40, 200))):
            Image.new("RGB", (90, 70), colour).save(tmp_path / f"{name}.png")
            stylizer = painting(reference=tmp_path / f"{name}.png")
            results.append(stylizer.stylize(content, SPEC))
            assert torch.equal(results[-1], stylizer.stylize(content, SPEC))
        assert results[0].shape == content.shape
        red, blue = (result.mean((1, 2)) for result in results)
        assert red[0] - red[2] > blue[0] - blue[2] + 0.05

    def test_a_folder_of_references_is_the_mean_of_their_styles(self, tmp_path):
        content, folder = picture(80, 60), tmp_path / "style"
        folder.mkdir()
        for name, colour in (("red", (200, 30, 20)), ("blue", (20, 40, 200))):
            Image.new("RGB", (90, 70), colour).save(folder / f"{name}.png")
        (folder / "notes.txt").write_text("no image")
        red, blue = (painting(reference=folder / f"{name}.png") for name in ("red", "blue"))
        both = painting(reference=folder)
        styled, *apart = (one.stylize(content, SPEC) for one in (both, red, blue))
        between = [(styled - one).abs().mean() for one in apart]
        assert max(between) < (apart[0] - apart[1]).abs().mean()
        assert min(between) > 0.005
        assert len({one.fingerprint for one in (both, red, blue)}) == 3
        (folder / "blue.png").unlink()  # one image is one image, in a folder or not
        assert painting(reference=folder).fingerprint == red.fingerprint
        (folder / "red.png").unlink()
        with pytest.raises(UserError, match="there is no image in this folder"):
            painting(reference=folder)

    def test_a_mixture_lies_between_its_styles(self):
        content = picture(64, 64)
        first, second, mixed = (
            painting(style).stylize(content, SPEC) for style in (10, 14, {10: 0.5, 14: 0.5})
        )
        apart = (first - second).abs().mean()
        assert (mixed - first).abs().mean() < apart
        assert (mixed - second).abs().mean() < apart

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "either 'style'"),
            ({"style": 1, "reference": "x.png"}, "either 'style'"),
            ({"style": 26}, "no painting style 26"),
            ({"style": "blue"}, "no painting style blue"),
            ({"style": {}}, "no painting style"),
            ({"style": 1, "strength": 1.5}, "strength"),
            ({"style": 1, "size": 10}, "size"),
            ({"reference": "missing.png"}, "missing.png"),
        ],
    )
    def test_bad_settings_are_refused(self, arguments, message):
        with pytest.raises(UserError, match=message):
            painting(**arguments)


def test_an_unknown_filter_names_the_nearest():
    with pytest.raises(UserError, match="'pixel-art'"):
        FunctionalStylizer.build(filter="pixelart")


# Mean, standard deviation and mean weighted by the column: a filter whose output changes needs
# another REVISION, or targets made by the old one would be taken for those of the new one.
GOLDEN = {
    "pixel-art": (0.5419, 0.4267, 0.2888),
    "line-art": (0.8992, 0.1996, 0.4456),
    "cyberpunk": (0.4380, 0.2939, 0.2384),
    "expressionist": (0.5135, 0.4222, 0.2728),
    "posterised": (0.5219, 0.4240, 0.2780),
    "neon": (0.1640, 0.2222, 0.0973),
    "blueprint": (0.3204, 0.2404, 0.1714),
    "risograph": (0.5162, 0.2677, 0.2791),
    "ink-drawing": (0.6571, 0.2641, 0.3175),
    "pop-art": (0.5334, 0.3011, 0.2798),
    "fine-pixel-art": (0.5331, 0.4077, 0.2859),
}


@pytest.mark.parametrize("name", FILTERS | PHOTO_FILTERS)
def test_a_filter_gives_what_its_revision_gave(name):
    y, x = torch.meshgrid(torch.linspace(0, 1, 60), torch.linspace(0, 1, 80), indexing="ij")
    image = torch.stack([x, y, 0.5 + 0.5 * torch.sin(9 * x * y)])
    image = torch.where((x - 0.5).square() + (y - 0.5).square() < 0.06, 1 - image, image)

    styled = (FILTERS | PHOTO_FILTERS)[name](image)

    found = [float(value) for value in (styled.mean(), styled.std(), (styled * x).mean())]
    assert found == pytest.approx(GOLDEN[name], abs=2e-3)
    revision = (filters if name in FILTERS else photo_filters).REVISION
    assert revision in ("4591ce4199d9c1ae", "efae675bc9db01f9")
