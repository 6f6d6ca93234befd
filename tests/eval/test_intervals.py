import math

import numpy as np
import pytest

from tokenprune.eval import intervals

ONE_EACH = np.arange(10)


@pytest.mark.parametrize(
    ("correct", "asked", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_intervals(correct, asked, low, high):
    assert intervals.wilson(correct, asked) == pytest.approx((low, high), abs=5e-5)
    assert intervals.wilson(asked - correct, asked) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_the_standard_error_of_independent_values_is_the_textbook_one():
    values = np.array([0.0, 1, 1, 0, 1, 1, 1, 0, 1, 1])
    assert intervals.standard_error(values, ONE_EACH) == pytest.approx(values.std(ddof=1) / math.sqrt(10))
    assert intervals.standard_error(values, np.zeros(10, dtype=int)) == math.inf


def test_answers_that_come_in_fives_are_worth_a_fifth():
    """Copying every answer five times adds questions and no knowledge."""
    right, cluster = np.array([[True, False, True, True] * 10]), np.arange(40)
    often, owner = right.repeat(5, axis=1), cluster.repeat(5)
    assert intervals.share(often, owner) == pytest.approx(intervals.share(right, cluster))
    assert intervals.standard_error(often[0], owner) == pytest.approx(intervals.standard_error(right[0], cluster))


def test_all_right_is_not_beyond_doubt():
    right = np.ones((1, 20), dtype=bool)
    assert intervals.share(right, np.arange(20)) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    assert intervals.share(right, np.arange(20) // 5) == pytest.approx(intervals.wilson(4, 4))


def test_one_seed_of_independent_questions_is_nearly_wilson():
    right = np.array([[True] * 30 + [False] * 70])
    assert intervals.share(right, np.arange(100)) == pytest.approx(intervals.wilson(30, 100), abs=1e-3)


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(0)
    cluster = np.arange(400)
    agree = np.stack([rng.random(400) < share for share in (0.5, 0.5, 0.5)])
    differ = np.stack([rng.random(400) < share for share in (0.3, 0.5, 0.7)])
    narrow, wide = (np.diff(intervals.share(right, cluster))[0] for right in (agree, differ))
    assert wide > 3 * narrow


def test_pairing_takes_out_what_both_share():
    """Two policies that fail on the same half of the questions and differ on one in twenty."""
    right = np.array([[True] * 200 + [False] * 200])
    other = right.copy()
    other[:, :20] = False
    mean, low, high = intervals.difference(right, other, np.arange(400))
    assert mean == pytest.approx(20 / 400)
    # McNemar: sqrt(b + c - (b - c)^2 / n) / n, here with n - 1 for n
    assert high - mean == pytest.approx(1.96 * math.sqrt(20 - 20 * 20 / 400) / 400, rel=2e-3)
    assert low > 0
    unpaired = math.hypot(*(1.96 * math.sqrt(p * (1 - p) / 400) for p in (0.5, 0.45)))
    assert high - mean < unpaired / 3


def test_a_difference_to_seeds_counts_their_spread():
    rng = np.random.default_rng(1)
    mine, cluster = rng.random((1, 500)) < 0.5, np.arange(500)
    seeds = np.stack([rng.random(500) < share for share in (0.4, 0.5, 0.6)])
    _, low, high = intervals.difference(mine, seeds, cluster)
    assert (high - low) / 2 > intervals.Z * intervals.seed_error(seeds.mean(1)) > 0.08
