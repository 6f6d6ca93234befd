import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.ops import bipartite_match, matching, unit_norm

few = settings(max_examples=80, deadline=None, derandomize=True)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def match_slowly(x, r, prefix, stride):
    """One unit, python lists, float64: the places that stay, and where in them everything is."""
    n = len(x)
    stride = min(stride, n - prefix)
    b = [i for i in range(prefix, n) if i % stride == stride - 1]
    a = [i for i in range(prefix, n) if i % stride != stride - 1]
    cosine = {i: [float(x[i] @ x[j] / x[i].norm() / x[j].norm()) for j in b] for i in a}
    ranked = sorted(a, key=lambda i: -max(cosine[i]))
    merged, rest = ranked[:r], ranked[r:]
    order = [*range(prefix), *(sorted(rest) if prefix else rest), *b]
    joined = {i: b[cosine[i].index(max(cosine[i]))] for i in merged}
    return order, [order.index(joined.get(i, i)) for i in range(n)]


@few
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 19),
    prefix=st.integers(0, 5),
    stride=st.integers(2, 5),
    data=st.data(),
)
def test_matching_equals_a_slow_float64_one_for_every_r(seed, n, prefix, stride, data):
    r = data.draw(st.integers(0, n - -(-n // stride)))
    x = randn(2, n + prefix, 7, seed=seed)
    order, source = bipartite_match(x, r, prefix=prefix, stride=stride)
    expected = [match_slowly(unit.double(), r, prefix, stride) for unit in x]
    assert order.tolist() == [places for places, _ in expected]
    assert source.tolist() == [carriers for _, carriers in expected]


def test_the_class_token_takes_an_even_place_so_that_destinations_shift():
    x = torch.eye(3)[[0, 1, 1, 2, 2]][None]
    order, source = bipartite_match(x, 2)
    assert (order.tolist(), source.tolist()) == ([[0, 1, 3]], [[0, 1, 1, 2, 2]])
    order, source = bipartite_match(x, 2, prefix=1)
    assert (order.tolist(), source.tolist()) == ([[0, 1, 3]], [[0, 1, 1, 2, 2]])
    order, source = bipartite_match(x[:, :4], 1, prefix=2)  # place 1 is the distillation token, no destination
    assert (order.tolist(), source.tolist()) == ([[0, 1, 3]], [[0, 1, 2, 2]])


@pytest.mark.parametrize("x", [torch.ones(1, 9, 3), torch.zeros(1, 9, 3)], ids=["alike", "zero"])
def test_ties_go_to_the_lowest_places(x):
    order, source = bipartite_match(x, 2)
    assert order.tolist() == [[4, 6, 8, 1, 3, 5, 7]]
    assert source.tolist() == [[3, 3, 3, 4, 0, 5, 1, 6, 2]]


def test_a_token_of_zeros_is_like_nothing():
    x = torch.tensor([[[0.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [0.9, -0.1], [1.0, 0.0], [0.0, 1.0]]])
    order, source = bipartite_match(x, 1)
    assert order.tolist() == [[0, 2, 1, 3, 5]]  # 4 merges; 0, of cosine 0, comes before the opposite one, 2
    assert source.tolist() == [[0, 2, 1, 3, 2, 4]]


def test_blocks_of_similarities_change_nothing(monkeypatch):
    x = randn(2, 41, 6)
    whole = bipartite_match(x, 11, prefix=1)
    monkeypatch.setattr(matching, "CACHED_ELEMENTS", 40)
    for one, other in zip(whole, bipartite_match(x, 11, prefix=1), strict=True):
        assert torch.equal(one, other)


def test_half_precision_is_compared_in_float32():
    x = randn(2, 40, 64).half()
    assert torch.equal(bipartite_match(x, 9)[1], bipartite_match(x.float(), 9)[1])
    assert torch.equal(bipartite_match(unit_norm(x), 9)[1], bipartite_match(x.float(), 9)[1])
