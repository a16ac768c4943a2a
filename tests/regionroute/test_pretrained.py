"""What a library says of a network that it loaded only in part."""

import pytest

from regionroute.errors import UserError
from regionroute.pretrained import check_complete


@pytest.mark.parametrize(
    ("missing", "mismatched"),
    [({"a.weight"}, set()), (set(), {"a.weight"}), (set(), [("a.weight", (2, 3), (2, 4))])],
)
def test_weights_that_would_be_random_are_refused(missing, mismatched):
    report = {"missing_keys": missing, "mismatched_keys": mismatched}
    with pytest.raises(UserError, match=r"--clip x: its weights lack a\.weight, copy them again"):
        check_complete("--clip x", report)
    check_complete("--clip x", {"missing_keys": set(), "mismatched_keys": []})
