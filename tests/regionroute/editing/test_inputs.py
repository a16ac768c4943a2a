"""Arguments of the Python API as requests: pairs and seeds."""

import numpy as np
import pytest
import torch

from regionroute.editing.inputs import to_pairs, to_seeds
from regionroute.errors import UserError


@pytest.mark.parametrize("styles", ["neon", ["neon"]])
def test_one_style_serves_all_objects(styles):
    assert to_pairs(["dog", "cup"], styles, 0) == [("dog", "neon"), ("cup", "neon")]


def test_other_numbers_of_styles_are_refused():
    with pytest.raises(UserError, match="3 objects and 2 styles"):
        to_pairs(["dog", "cup", "cat"], ["neon", "woodcut"], 0)


@pytest.mark.parametrize(
    "seed",
    [3, np.int64(3), np.array(3), torch.tensor(3), [3, 3], np.array([3, 3]), torch.tensor([3, 3])],
)
def test_seeds_of_any_integer_type(seed):
    seeds = to_seeds(None, seed, 2)
    assert seeds == [3, 3]
    assert all(type(one) is int for one in seeds)


@pytest.mark.parametrize(
    "seed", [1.5, "3", [1, 2.5], [[1], [2, 3]], torch.tensor(2.0), torch.tensor([2.0, 2.5])]
)
def test_seeds_that_are_no_integers_are_refused(seed):
    with pytest.raises(UserError, match="whole number"):
        to_seeds(None, seed, 2)


@pytest.mark.parametrize("objects", [None, 5, b"cat", ["cat", None]])
def test_objects_that_are_no_text_are_refused(objects):
    with pytest.raises(UserError, match="must be text"):
        to_pairs(objects, "neon", 0)


@pytest.mark.parametrize("styles", [None, ["neon", 3]])
def test_styles_that_are_no_text_are_refused(styles):
    with pytest.raises(UserError, match="must be text"):
        to_pairs("dog", styles, 0)


def test_a_fresh_generator_is_its_seed():
    assert to_seeds(torch.Generator().manual_seed(5), None, 2)[0] == 5
