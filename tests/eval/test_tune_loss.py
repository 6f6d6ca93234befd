"""The allowed loss, and bounds of a loss measured document by document."""

import numpy as np
import pytest

from tokenprune.errors import InvalidArgumentError
from tokenprune.eval.intervals import wilson
from tokenprune.eval.tune.loss import MaxDrop, bounds, scale

Z = 1.6448536269514722  # of 95 %


def losses(lost, won, n):
    return np.repeat([1.0, -1.0, 0.0], [lost, won, n - lost - won])


@pytest.mark.parametrize(
    ("text", "dense", "allowed"),
    [("1%", 0.9, 0.009), (" 2.5% ", 40, 1.0), ("0.01", 0.9, 0.01), ("0", 0.9, 0), ("0%", 7, 0), ("10%", -3, 0.3)],
)
def test_an_allowed_loss_is_a_share_of_the_dense_score_or_absolute(text, dense, allowed):
    assert MaxDrop.read(text).of(dense) == pytest.approx(allowed)


@pytest.mark.parametrize("text", ["", "%", "much", "-1%", "-0.01", "nan", "inf", "inf%", "1%%", "1 percent"])
def test_other_allowed_losses_get_a_sentence(text):
    with pytest.raises(InvalidArgumentError, match="max-drop=.*give 1%"):
        MaxDrop.read(text)


@pytest.mark.parametrize("n", [10, 50, 200])
def test_without_a_difference_the_bounds_are_known(n):
    """z^2 / (n + z^2)"""
    low, high = bounds(losses(0, 0, n), 1.0, 0.95)
    assert high == pytest.approx(Z**2 / (n + Z**2))
    assert low == pytest.approx(-high)


@pytest.mark.parametrize(
    ("lost", "won", "n"), [(12, 2, 50), (2, 12, 50), (3, 0, 40), (0, 1, 25), (7, 7, 30), (25, 0, 25)]
)
def test_bounds_are_where_the_score_test_turns(lost, won, n):
    """Against the definition, the likeliest shares found by trying many."""

    def statistic(d):
        share = np.linspace(max(0, -d), (1 - d) / 2, 200_001)[1:-1]  # won; lost is d more
        rest = 1 - d - 2 * share
        likely = won * np.log(share) + lost * np.log(share + d) + (n - lost - won) * np.log(np.maximum(rest, 1e-300))
        q = share[likely.argmax()]
        return (lost - won - n * d) / np.sqrt(n * (2 * q + d - d * d))

    low, high = bounds(losses(lost, won, n), 1.0, 0.95)
    assert low < (lost - won) / n <= high
    assert statistic(low) == pytest.approx(Z, abs=2e-3)
    if lost < n:
        assert statistic(high) == pytest.approx(-Z, abs=2e-3)
    else:
        assert high == 1


@pytest.mark.parametrize(("lost", "n"), [(3, 40), (10, 100), (1, 150), (0, 30)])
def test_the_upper_bound_of_losses_alone_is_that_of_a_share(lost, n):
    assert bounds(losses(lost, 0, n), 1.0, 0.975)[1] == pytest.approx(wilson(lost, n)[1])


@pytest.mark.parametrize(("lost", "won"), [(0.02, 0.02), (0.03, 0.0), (0.08, 0.05)])
def test_the_upper_bound_holds_about_as_often_as_it_says(lost, won):
    """It is what is promised by; of few documents it is approximate."""
    drawn = np.random.default_rng(0).multinomial(150, [lost, won, 1 - lost - won], size=2000)
    missed = [bounds(losses(b, c, 150), 1.0, 0.95)[1] < lost - won for b, c, _ in drawn]
    assert np.mean(missed) < 0.07


def test_parts_of_documents_count_in_part_and_units_do_not_matter():
    rng = np.random.default_rng(0)
    some = rng.uniform(-0.5, 0.8, 40)
    low, high = bounds(some, 1.0, 0.95)
    spread = Z * some.std(ddof=1) / np.sqrt(40)
    assert low < some.mean() - spread
    assert high > some.mean() + spread
    assert bounds(100 * some, 100.0, 0.95) == pytest.approx((100 * low, 100 * high))


def test_the_scale_is_one_for_shares_and_the_range_for_others():
    assert scale(np.array([0.0, 1.0]), np.array([1.0])) == 1
    assert scale(np.array([1.0]), np.array([1.0])) == 1
    assert scale(np.array([-3.0, 5.0]), np.array([7.0])) == 10
    assert bounds(np.zeros(5), scale(np.full(5, 7.0)), 0.95) == (0, 0)
