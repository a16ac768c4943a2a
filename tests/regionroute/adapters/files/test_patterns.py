"""Patterns for module names: what PEFT matches, in bounded time."""

import contextlib
import random
import re
import time

import pytest
from peft.utils.other import get_pattern_key

from regionroute.adapters.files.patterns import first_match
from regionroute.errors import UserError

NAMES = [
    "transformer_blocks.0.attn.to_q",
    "transformer_blocks.10.attn.to_out.0",
    "single_transformer_blocks.3.proj_mlp",
    "proj_out",
    "x",
]
PATTERNS = [
    "to_q", "attn.to_q", "transformer_blocks.0.attn.to_q", "blocks.0.attn.to_q", "o_q", "to.q",
    r"transformer_blocks\.\d+\.attn\.to_q", r".*\.to_out\.0", ".*", "^proj_out", "proj_out$",
    "(to_q|to_out.0)", r"(transformer_blocks|single_transformer_blocks)\.[0-9]+\..*", "a*x?", "",
    r"transformer_blocks\.(0|1)0?\.(attn|ff)\.(?:to_q|to_k)", r"[^.]+", r"\w+", "[a-z_]+_q", "x+",
    "()", "(a|)*x", r".*attn$", "(a*)*x",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_as_peft_matches_them(pattern):
    for name in NAMES:
        expected = pattern if get_pattern_key([pattern], name) == pattern != name else None
        if pattern == name:
            expected = pattern
        assert first_match({pattern: 1}, name) == expected, name


def test_random_patterns_are_those_of_the_regex_engine():
    rng = random.Random(0)
    atoms = ["a", "b", ".", r"\.", "[ab]", "(a|b)", "(ab|b)", "[^a]", r"\w"]
    for _ in range(2000):
        pattern = "".join(
            rng.choice(atoms) + rng.choice(["", "", "*", "+", "?"])
            for _ in range(rng.randint(1, 5))
        )
        name = "".join(rng.choice("ab.") for _ in range(rng.randint(1, 8)))
        expected = re.match(rf"(.*\.)?({pattern})$", name) is not None
        assert (first_match({pattern: 1}, name) is not None) == expected, (pattern, name)


def test_the_first_of_several():
    assert first_match({"to_k": 1, ".*": 2, "to_q": 3}, NAMES[0]) == ".*"
    assert first_match({}, NAMES[0]) is None


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|a)*b",
        "(.*a){12}x",
        "(a*)*b",
        ".*.*.*.*.*.*.*b",
        "(" * 15 + "a*" + ")*" * 15 + "b",
    ],
)
def test_no_pattern_takes_long(pattern):
    start = time.monotonic()
    with contextlib.suppress(UserError):  # {12} is not supported
        assert first_match({pattern: 1}, "a" * 200) is None
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    "pattern", ["(a", "a)", "*a", "[a", "\\", "a{2}", "(?=a)", r"(a)\1", "(" * 50, "x" * 501, "a{"]
)
def test_patterns_that_are_none(pattern):
    with pytest.raises(UserError, match="pattern"):
        first_match({pattern: 1}, NAMES[0])


def test_too_many_expressions():
    with pytest.raises(UserError, match="more than 200"):
        first_match({f"a*{n}": 1 for n in range(300)}, NAMES[0])
