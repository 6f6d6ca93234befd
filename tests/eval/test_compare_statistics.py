"""Tests against values computed by hand, by Fractions, or by what theory says of large samples."""

import math
from fractions import Fraction

import numpy as np
import pytest

from tokenprune.eval.compare.statistics import FEW, bootstrap, holm, mcnemar


def test_mcnemar_by_hand():
    assert mcnemar(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 4096, rel=1e-12)
    assert mcnemar(5, 0) == pytest.approx(2 / 32, rel=1e-12)
    assert mcnemar(0, 0) == mcnemar(1, 0) == mcnemar(7, 7) == 1


@pytest.mark.parametrize(("gained", "lost"), [(3, 9), (60, 41), (120, 180), (999, 1100)])
def test_mcnemar_is_the_exact_binomial(gained, lost):
    n, least = gained + lost, min(gained, lost)
    exact = 2 * Fraction(sum(math.comb(n, i) for i in range(least + 1)), 2**n)
    assert mcnemar(gained, lost) == mcnemar(lost, gained) == pytest.approx(float(exact), rel=1e-9)


def test_mcnemar_of_many_pairs_is_the_normal_one():
    n, gained = 100_000, 50_400
    z = (gained - n / 2 - 0.5) / math.sqrt(n / 4)  # with the correction for steps
    assert mcnemar(gained, n - gained) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)
    assert mcnemar(100_000, 0) == 0


@pytest.mark.parametrize("values", ["few", "many"])
def test_the_bootstrap_of_many_documents_is_the_normal_interval(values):
    rng = np.random.default_rng(1)
    found = (
        rng.choice([-1.0, 0.0, 1.0], size=2000, p=[0.12, 0.8, 0.08]) if values == "few" else rng.normal(0.03, 1, 2000)
    )
    assert (len(np.unique(found)) <= FEW) == (values == "few")
    mean, error = found.mean(), found.std() / math.sqrt(len(found))
    low, high, p = bootstrap(found)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.1 * error)
    assert p == pytest.approx(math.erfc(abs(mean) / error / math.sqrt(2)), abs=0.02)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        low, high, _ = bootstrap(rng.normal(0.2, 1, 60), resamples=500)
        held += low <= 0.2 <= high
    assert 0.91 <= held / 300 <= 0.98


def test_the_bootstrap_does_not_depend_on_the_order():
    values = np.random.default_rng(3).normal(size=500)
    assert bootstrap(values) == bootstrap(values[::-1]) == bootstrap(np.random.default_rng(4).permutation(values))


def test_few_documents_that_agree_are_no_proof():
    assert bootstrap(np.full(3, 0.5))[2] == 0.25
    assert bootstrap(np.array([0.5, 0.5, 0.5, 0.0, 0.0]))[2] >= 0.25
    assert bootstrap(np.zeros(4)) == (0, 0, 1)
    assert bootstrap(np.full(40, 0.5))[2] < 1e-3


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2]) == [0.2]
    assert holm([0.9, 0.6]) == [1, 1]
    assert holm([]) == []
