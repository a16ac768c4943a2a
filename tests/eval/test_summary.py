import pytest

from eval.summary import slices_of


@pytest.mark.parametrize(
    ("share", "styles", "flags", "expected"),
    [
        (0.049, ["a"], [], ["size:small", "count:one"]),
        (0.05, ["a"], ["single"], ["size:large", "count:one"]),
        (0.5, ["a", "a"], [], ["size:large", "count:several"]),
        (0.01, ["a"], ["several"], ["size:small", "count:several"]),
        (None, ["a"], [], ["count:one"]),  # not scored: its size is not known
    ],
)
def test_slices_by_size_and_count(share, styles, flags, expected):
    row = {"mask_share": share, "styles": styles, "flags": flags}
    named = [name for name in slices_of(row) if name.split(":")[0] in ("size", "count")]
    assert named == expected
