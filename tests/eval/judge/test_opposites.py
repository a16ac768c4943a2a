"""Questions 3 and 4 must not punish an edit that leaves the photo's background as it was."""

import re
from pathlib import Path

import pytest
import yaml

from eval.judge.opposites import OPPOSITES, in_table, looks_like_a_photo
from eval.judge.questions import JudgeConfig
from eval.style_names import style_key

STYLE_FILES = sorted((Path(__file__).parents[3] / "pseudo_labels" / "styles").glob("*.yaml"))
PACKAGED = sorted({s for file in STYLE_FILES for s in yaml.safe_load(file.read_text())["styles"]})
# Media that no photo is in, whatever it shows: every opposite has to name one.
DRAWN = r"paint|drawing|watercolour|line-art|pixel-art|blueprint|cyberpunk"


def expected_on_an_untouched_photo(question: str) -> str:
    """The answer of a judge that knows photos from drawn media."""
    style = re.search(r"\bin ([^?]+) style\?", question)[1]
    return "no" if re.search(DRAWN, style) and not looks_like_a_photo(style) else "yes"


def test_there_are_packaged_styles_to_check():
    assert len(PACKAGED) >= 21
    assert {"watercolour", "expressionist", "pixel-art"} <= set(PACKAGED)


@pytest.mark.parametrize("style", PACKAGED)
def test_an_untouched_photo_is_not_in_the_opposite_of_a_packaged_style(style):
    config = JudgeConfig()
    assert in_table(style, config.opposites)
    assert config.warnings([style]) == []
    for name in ("q3", "q4"):
        assert expected_on_an_untouched_photo(config.question(name, "dog", style, style)) == "no"
    # Nor is an object in the style itself in the opposite one.
    shared = set(re.findall(r"\w+", style)) & set(re.findall(r"\w+", config.opposite(style)))
    assert not shared - {"art"}


@pytest.mark.parametrize("style", ["manga", "oil-painting", "soft line drawing", "油画", ""])
def test_an_untouched_photo_is_not_in_the_opposite_of_any_other_style(style):
    config = JudgeConfig()
    question = config.question("q4", "dog", style, style)
    assert expected_on_an_untouched_photo(question) == "no"
    assert "no opposite in the table" in config.warnings([style])[0]


def test_the_fallback_is_not_the_style_itself():
    config = JudgeConfig()
    assert config.opposite("black ink line-art") == config.alternative_opposite
    assert config.opposite("manga") == config.default_opposite


@pytest.mark.parametrize(
    ("spelling", "style"),
    [
        ("watercolor", "watercolour"),
        ("Water-Colour", "watercolour"),
        ("expressionism", "expressionist"),
        ("Expressionistic style", "expressionist"),
        ("Pixel Art", "pixel-art"),
        ("pixel_art", "pixel-art"),
        ("PIXELART", "pixel-art"),
        ("Cubism", "cubist"),
        ("posterized", "posterised"),
        ("Ukiyo e", "ukiyo-e"),
        ("starry night", "starry-night"),
    ],
)
def test_spellings_of_a_style_have_one_opposite(spelling, style):
    assert style_key(spelling) == style_key(style)
    assert JudgeConfig().opposite(spelling) == OPPOSITES[style]


def test_different_styles_stay_different():
    assert len({style_key(style) for style in PACKAGED}) == len(PACKAGED)
    assert style_key("油画") != style_key("水墨") != ""
    assert style_key("artist") != style_key("art")


def test_photographic_opposites_of_a_users_own_table_are_named():
    config = JudgeConfig(opposites={"neon": "photorealistic"}, default_opposite="natural photo")
    warnings = config.warnings(["neon", "manga", "neon"])
    assert len(warnings) == 2
    assert "'photorealistic', which describes an unedited photo" in warnings[1]
    assert "'natural photo', which describes an unedited photo" in warnings[0]
