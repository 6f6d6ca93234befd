import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.ops import matching, nearest_neighbours, nearest_target, thin_by_matching, unit_norm

few = settings(max_examples=40, deadline=None, derandomize=True)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("elements", [1, 60, 10**6])
def test_nearest_in_blocks_equals_dense(monkeypatch, elements):
    monkeypatch.setattr(matching, "CACHED_ELEMENTS", elements)
    x, targets = unit_norm(randn(3, 20, 6)), unit_norm(randn(3, 4, 6, seed=1))
    similarity, target = nearest_target(x, targets)
    dense = x @ targets.mT
    torch.testing.assert_close(similarity, dense.amax(-1))
    assert torch.equal(target, dense.argmax(-1))
    places = torch.tensor([[3, 0], [19, 7], [7, 8]])
    dense = x @ x.mT
    dense.diagonal(dim1=1, dim2=2).fill_(-2)
    expected = dense[torch.arange(3)[:, None], places].topk(5).indices
    assert torch.equal(nearest_neighbours(x, places, 5), expected)
    assert nearest_neighbours(x, places[:, :0], 5).shape == (3, 0, 5)


def test_ties_go_to_the_lowest():
    x = torch.eye(2)[[0, 1, 0, 0, 1]][None]
    assert nearest_target(x, x[:, [4, 1, 3, 0]])[1].tolist() == [[2, 0, 2, 2, 0]]
    assert nearest_neighbours(x, torch.tensor([[2, 4]]), 4).tolist() == [[[0, 3, 1, 4], [1, 0, 2, 3]]]


def thin_slowly(x, k, step):
    """One unit, python lists, float64."""
    left = list(range(len(x)))
    while len(left) > k:
        a, b = left[0::2], left[1::2]
        best = {i: max(float(x[i] @ x[j]) for j in b) for i in a}
        drop = min(step, len(left) - k, len(a))
        left = sorted(a, key=lambda i: -best[i])[drop:] + b
    return left


def thin_by_lists(x, k, step):
    return torch.stack([matching._thin_by_lists(unit, k, step) for unit in x])


THINNERS = {"blocks": matching._thin_by_blocks, "mask": matching._thin_by_mask, "lists": thin_by_lists}
every_way = pytest.mark.parametrize("way", THINNERS)


@every_way
@few
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 17), step=st.integers(1, 9), data=st.data())
def test_thinning_matches_a_slow_float64_one_for_every_k(way, seed, n, step, data):
    k = data.draw(st.integers(1, n))
    x = unit_norm(randn(2, n, 7, seed=seed))
    expected = [thin_slowly(unit.double(), k, step) for unit in x]
    assert THINNERS[way](x, k, step).tolist() == expected
    assert thin_by_matching(x, k, step=step).tolist() == expected


@pytest.mark.parametrize(("length", "first", "patience"), [(1, 1, 1), (3, 2, 1), (5, 4, 10), (60, 4, 3), (2, 2, 1000)])
def test_lists_of_any_length_and_age_thin_alike(monkeypatch, length, first, patience):
    for name, value in (("LIST", length), ("FIRST", first), ("PATIENCE", patience)):
        monkeypatch.setattr(matching, name, value)
    near = unit_norm(randn(1, 80, 9) + 2 * randn(1, 80, 9)[:, torch.arange(80) % 7])  # clusters: many lists run out
    for k in (0, 1, 7, 40, 79, 80):
        expected = matching._thin_by_blocks(near, k, 3)
        assert torch.equal(thin_by_lists(near, k, 3), expected)
        assert torch.equal(matching._thin_by_mask(near, k, 3), expected)


def test_many_tokens_on_a_cpu_are_thinned_by_lists_and_equal_ones_by_any(monkeypatch):
    monkeypatch.setattr(matching, "FEW", 5)
    x = torch.eye(3)[torch.arange(40) % 3][None]
    expected = matching._thin_by_blocks(x, 4, 2)
    monkeypatch.setattr(matching, "_thin_by_blocks", None)
    monkeypatch.setattr(matching, "LIST", 4)
    assert torch.equal(thin_by_matching(x.repeat(2, 1, 1), 4, step=2), expected.repeat(2, 1))


def test_thinning_drops_the_twins_and_keeps_the_distinct():
    x = torch.eye(4)[[0, 0, 1, 1, 2, 3]][None]  # places 0 and 2 have a twin in the other half
    assert sorted(thin_by_matching(x, 4, step=2)[0].tolist()) == [1, 3, 4, 5]
    assert thin_by_matching(x, 0, step=2).shape == (1, 0)
    assert thin_by_matching(x, 6, step=2).tolist() == [list(range(6))]
