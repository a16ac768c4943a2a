"""Settings files that would fill memory or time: one clear error, at once."""

import time

import pytest

from regionroute.config.io import load_config
from regionroute.config.run import RunConfig
from regionroute.config.yaml_text import (
    LONGEST_VALUE,
    MOST_BYTES,
    MOST_DEPTH,
    MOST_VALUES,
    parse_yaml,
    read_yaml,
)
from regionroute.errors import UserError


def _laughs(levels, width, leaf="x"):
    lines = [f"a0: &a0 [{', '.join([leaf] * width)}]"]
    lines += [
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]"
        for level in range(1, levels)
    ]
    return "\n".join(lines)


BOMBS = {
    "aliases": (
        "data:\n  manifest: " + "&a [x, x]\n  " + "split: [" + "*a, " * 60_000 + "]",
        f"more than {MOST_VALUES} values",
    ),
    "billion laughs": (_laughs(9, 9), f"more than {MOST_VALUES} values"),
    "laughs in a known key": (
        "supervision:\n  layers:\n    - &a [x, x, x, x, x, x, x, x, x]\n"
        + "\n".join(
            f"    - &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i in range(8)
        ),
        f"more than {MOST_VALUES} values",
    ),
    "merged keys": (
        "a: &a {b: 1}\n"
        + "\n".join(
            f"k{i}: &k{i} {{<<: [{', '.join(['*' + ('a' if i == 0 else f'k{i - 1}')] * 9)}]}}"
            for i in range(9)
        ),
        f"more than {MOST_VALUES} values",
    ),
    "deep lists": ("[" * 100_000, f"deeper than {MOST_DEPTH} levels"),
    "deep mappings": ("{a: " * 50_000, f"deeper than {MOST_DEPTH} levels"),
    "deep indents": (
        "\n".join(" " * i + f"a{i}:" for i in range(600)), f"deeper than {MOST_DEPTH} levels",
    ),
    "many values": ("[" + "1," * 120_000 + "]", f"more than {MOST_VALUES} values"),
    "a long number": ("seed: " + "1:" * 20_000 + "1", f"longer than {LONGEST_VALUE} characters"),
    "in itself": ("base: {tasks: &x {copy: *x}}", "the alias *x is inside what it stands for"),
    "large": ("# comment\n" * 200_000, "more than 256 kB"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(tmp_path, name):
    text, told = BOMBS[name]
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        load_config(path, [], RunConfig)
    assert time.process_time() - started < 20  # unguarded, these take minutes or all memory
    assert told in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")
    assert len(str(caught.value)) < 400


def test_an_override_is_bounded_as_well():
    with pytest.raises(UserError, match="deeper than"):
        load_config(None, ["supervision.layers=" + "[" * 5000], RunConfig)


def test_a_file_without_an_end_is_not_read_to_its_end():
    with pytest.raises(UserError, match=f"more than {MOST_BYTES // 1024} kB"):
        read_yaml("/dev/zero")


def test_aliases_and_nesting_in_moderation_are_read():
    text = (
        "styles: &all [a, b]\nother: *all\nbase: &b {x: {y: {z: [1e-4]}}}\nmore: {<<: *b, w: 2}\n"
    )
    expected = {"x": {"y": {"z": [1e-4]}}}
    assert parse_yaml(text, "here") == {
        "styles": ["a", "b"], "other": ["a", "b"], "base": expected, "more": expected | {"w": 2},
    }  # fmt: skip
