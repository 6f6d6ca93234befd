import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenprune.budget import Budget
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import DivPrune

ROUNDINGS = ["half_even", "half_up", "floor", "ceil"]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0, "keep=0 keeps no token"),
        (-3, "keep=-3 keeps no token"),
        (0.0, r"keep=0.0 is not in \(0, 1\]"),
        (-0.5, r"keep=-0.5 is not in \(0, 1\]"),
        (1.5, r"keep=1.5 is not in \(0, 1\]: a float is a share; for tokens give an int"),
        (math.nan, "keep=nan is not in"),
        (math.inf, "keep=inf is not in"),
        (True, "keep=True is a bool"),
        ("64", "keep='64' is a str"),
        (None, "keep=None is a NoneType"),
    ],
)
def test_a_bad_keep_is_refused_in_one_sentence(keep, message):
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        Budget(keep)
    assert str(caught.value).count("\n") == 0


def test_unknown_unit_and_rounding_suggest_the_nearest():
    with pytest.raises(InvalidArgumentError, match=r"per='frames' is not one of .* \(did you mean 'frame'"):
        Budget(0.5, per="frames")
    with pytest.raises(InvalidArgumentError, match=r"rounding='half_upp' is not one of .* \(did you mean 'half_up'"):
        Budget(0.5, rounding="half_upp")


@pytest.mark.parametrize("fields", [{"keep": 0}, {"per": "tile"}, {"rounding": "nearest"}])
def test_a_policy_refuses_them_when_it_is_made(fields):
    with pytest.raises(InvalidArgumentError, match=next(iter(fields))):
        DivPrune(**fields)


@pytest.mark.parametrize(
    ("keep", "n", "counts"),  # counts as in ROUNDINGS
    [
        (0.5, 5, (2, 3, 2, 3)),
        (0.5, 7, (4, 4, 3, 4)),
        (0.098, 576, (56, 56, 56, 57)),
        (0.29, 100, (29, 29, 29, 29)),  # 28.999999999999996 in binary
        (0.07, 100, (7, 7, 7, 7)),  # 7.000000000000001 in binary
        (0.001, 100, (1, 1, 1, 1)),
        (1.0, 9, (9, 9, 9, 9)),
        (3, 9, (3, 3, 3, 3)),
        (12, 9, (9, 9, 9, 9)),
        (1, 1, (1, 1, 1, 1)),
    ],
)
def test_counts(keep, n, counts):
    assert tuple(Budget(keep, rounding=rounding).count(n) for rounding in ROUNDINGS) == counts


@given(keep=st.floats(1e-6, 1.0) | st.integers(1, 5000), n=st.integers(1, 4096), rounding=st.sampled_from(ROUNDINGS))
def test_a_count_is_between_one_and_all_and_near_the_share(keep, n, rounding):
    count = Budget(keep, rounding=rounding).count(n)
    assert isinstance(count, int)
    assert 1 <= count <= n
    if isinstance(keep, float):
        assert abs(count - keep * n) <= 1


@pytest.mark.parametrize(
    ("keep", "sizes", "shares"),
    [
        (7, [10, 10, 10], [3, 2, 2]),
        (7, [5, 10], [4, 3]),
        (12, [2, 10, 3], [2, 7, 3]),  # the small units are full, the large one takes what they leave
        (11, [9, 2, 9], [5, 2, 4]),
        (2, [4, 4, 4], [1, 1, 0]),
        (99, [3, 1], [3, 1]),
        (0.5, [8, 4], [3, 3]),
    ],
)
def test_an_equal_split(keep, sizes, shares):
    assert Budget(keep, per="crop", of="image", quota="equal").split(sizes) == shares


def test_an_equal_split_is_exact_fits_and_is_level():
    for sizes in product(range(5), repeat=3):
        for keep in range(1, sum(sizes) + 1):
            shares = Budget(keep, per="frame", of="prompt", quota="equal").split(list(sizes))
            assert sum(shares) == keep
            assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
            lowest_open = min((a for a, b in zip(shares, sizes, strict=True) if a < b), default=max(shares))
            assert max(shares) <= lowest_open + 1


def test_an_unknown_quota_suggests_the_nearest():
    with pytest.raises(InvalidArgumentError, match=r"quota='equally' is not one of .* \(did you mean 'equal'"):
        DivPrune(quota="equally")
    assert DivPrune(keep=4, per="crop", of="image", quota="equal").budget.split([9, 3]) == [2, 2]
