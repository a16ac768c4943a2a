"""Attention sites: one text form, its parts, and what they mean in a model."""

import pytest
from pydantic import ValidationError

from regionroute.config.sites import (
    AttentionSite,
    MapChoice,
    SiteSpec,
    parse_site,
    parse_sites,
    resolve_sites,
)
from regionroute.errors import UserError

HEADS = {"double.0": 4, "double.1": 4, "single.0": 4}


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("double.1", SiteSpec("double.1")),
        ("double.1:0,3", SiteSpec("double.1", heads=(0, 3))),
        ("double.1.context:2", SiteSpec("double.1", "context", (2,))),
        ("single.12.target@object", SiteSpec("single.12", "target", word="object")),
        ("all@object", SiteSpec("all", word="object")),
        ("all.context:1", SiteSpec("all", "context", (1,))),
    ],
)
def test_a_text_and_its_spec_say_the_same(text, site):
    assert parse_site(text) == site
    assert str(site) == text


def test_a_site_has_one_spelling():
    assert str(parse_site(" double.1:3,0,3@style ")) == "double.1:0,3"
    assert parse_sites("all double.1:1,0 double.1:0,1") == [
        SiteSpec("all"),
        SiteSpec("double.1", heads=(0, 1)),
    ]


@pytest.mark.parametrize(
    "text", ["", "double.1:", "double.1:a", "double.1:0;1", "double.1@prompt", "double 1", "1.x", 5]
)
def test_other_texts_are_refused_with_an_example(text):
    with pytest.raises(UserError, match=r'not of the form .*for example "double\.1"'):
        parse_site(text)
    with pytest.raises(UserError, match="no block to read"):
        parse_sites("  ")


def test_blocks_come_in_the_models_order_and_open_tokens_are_filled_in():
    sites = parse_sites("single.0.context:1@object double.1 double.1.target:0")
    assert resolve_sites(sites, "target", HEADS, "here") == [
        AttentionSite("double.1", "double.1", "target", None, "style"),
        AttentionSite("double.1.target:0", "double.1", "target", (0,), "style"),
        AttentionSite("single.0.context:1", "single.0", "context", (1,), "object"),
    ]
    both = resolve_sites(parse_sites("double.0:2"), "both", HEADS, "here")
    assert [(p.name, p.tokens) for p in both] == [
        ("double.0.target:2", "target"),
        ("double.0.context:2", "context"),
    ]
    every = resolve_sites(parse_sites("all all.context"), "context", HEADS, "here")
    assert [p.name for p in every[:3]] == ["double.0", "double.0.context", "double.1"]
    assert {p.tokens for p in every} == {"context"}
    assert len(every) == 6


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("doubles.1", r'here: the model has no block "doubles.1", the nearest is "double.1"'),
        ("double.7", r'no block "double.7", the nearest is "double'),
        ("double.1:1,4", r'here: "double.1:1,4": the heads are 0 to 3'),
        ("all:9@object", r'"all:9@object": the heads are 0 to 3'),
    ],
)
def test_what_the_model_lacks_is_named(text, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_sites(parse_sites(text), "target", HEADS, "here")


def test_a_choice_takes_texts_in_both_shapes_and_refuses_others():
    assert MapChoice().layers == ["all"]
    assert MapChoice(layers="double.1 all@object").layers == ["double.1", "all@object"]
    choice = MapChoice(layers=["double.1:0"], combine="normalised", provenance={"split": "train"})
    assert choice.settings() == {
        "layers": ["double.1:0"],
        "queries": "target",
        "norm": "full",
        "combine": "normalised",
        "steps": "all",
    }
    for key, value in (("layers", []), ("layers", ["a b"]), ("layers", 5), ("queries", "text")):
        with pytest.raises(ValidationError):
            MapChoice(**{key: value})
    with pytest.raises(ValidationError, match="Extra inputs"):
        MapChoice(heads=[1])
