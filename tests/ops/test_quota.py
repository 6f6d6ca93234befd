import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.ops import quotas


@pytest.mark.parametrize(
    ("k", "sizes", "weights", "expected"),
    [
        (12, [10, 10, 10], [1, 1, 2], [3, 3, 6]),
        (7, [10, 10, 10], [1, 1, 1], [3, 2, 2]),  # the rest: the earlier among equals
        (
            7,
            [10, 10, 10],
            [1, 2, 1],
            [2, 4, 1],
        ),  # 1.75, 3.5, 1.75: one to the largest weight, one to the first of the others
        (20, [4, 10, 10], [8, 1, 1], [4, 8, 8]),  # 16 of 20 asked, 4 taken, the others share the rest
        (20, [4, 6, 12], [8, 3, 1], [4, 6, 10]),  # overflow of the overflow
        (5, [4, 4], [0, 1], [1, 4]),  # without weight only what nobody else can take
        (6, [8, 4], [0, 0], [4, 2]),  # by size
        (64, [36] * 16, [1] * 16, [4] * 16),
        (0, [3, 3], [1, 2], [0, 0]),
        (6, [3, 3], [1, 200], [3, 3]),
    ],
)
def test_by_hand(k, sizes, weights, expected):
    found = quotas(k, torch.tensor(sizes), torch.tensor([weights]).float())
    assert found.tolist() == [expected]


def iterated(k, sizes, weights):
    """Redistribution as a paper tells it: hand out, fill up, hand the overflow to those still open."""
    quota, rest = [0.0] * len(sizes), float(k)
    while rest > 1e-9:
        still = [i for i, size in enumerate(sizes) if quota[i] < size - 1e-9]
        whole = sum(weights[i] for i in still)
        given_out = 0.0
        for i in still:
            part = min(rest * weights[i] / whole, sizes[i] - quota[i])
            quota[i] += part
            given_out += part
        rest -= given_out
    return quota


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 1000)), min_size=1, max_size=9), st.data())
def test_exact_within_size_and_the_limit_of_redistribution(parts, data):
    sizes, weights = zip(*parts, strict=True)
    k = data.draw(st.integers(0, sum(sizes)))
    batch = torch.tensor([weights, weights[::-1]]).float()
    found = quotas(k, torch.tensor(sizes), batch)
    assert found.sum(-1).tolist() == [k, k]
    assert ((found >= 0) & (found <= torch.tensor(sizes))).all()
    assert torch.equal(found[1:], quotas(k, torch.tensor(sizes), batch[1:]))
    for share, ideal in zip(found[0].tolist(), iterated(k, sizes, weights), strict=True):
        assert abs(share - ideal) <= 1 + 1e-3


def test_many_parts_of_random_weight():
    weights = torch.rand(3, 910, generator=torch.Generator().manual_seed(0)) ** 8
    found = quotas(8000, torch.full((910,), 18), weights)
    assert found.sum(-1).tolist() == [8000] * 3
    assert int(found.max()) == 18
