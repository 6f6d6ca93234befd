import pytest
import torch

from tokenprune.ops import fold_into_nearest, sum_by_source, unit_norm


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_by_one(x, kept):
    """Rows of the survivors, in float64."""
    u, rows = unit_norm(x).double(), x.double().clone()
    for i in range(len(x)):
        if i not in kept:
            h = kept[int((u[kept] @ u[i]).argmax())]
            rows[h] = (rows[h] + rows[i]) / 2
    return rows[kept].float()


@pytest.mark.parametrize("k", [1, 3, 29, 30])
def test_it_is_the_sequential_average(k):
    x = randn(3, 30, 4)
    kept = torch.stack([torch.randperm(30, generator=torch.Generator().manual_seed(g))[:k] for g in range(3)])
    kept = kept.sort(1).values
    source, weights = fold_into_nearest(x, kept)
    torch.testing.assert_close(weights.new_zeros(3, k).scatter_add(1, source, weights), torch.ones(3, k))
    found = sum_by_source(x, source, k, weights)
    for g in range(3):
        torch.testing.assert_close(found[g], one_by_one(x[g], kept[g].tolist()))
        assert source[g, kept[g]].tolist() == list(range(k))


def test_ties_go_to_the_lowest_survivor_and_long_folds_stay_finite():
    source, weights = fold_into_nearest(torch.ones(1, 400, 3), torch.tensor([[5, 9]]))
    assert source[0].tolist() == [int(i == 9) for i in range(400)]
    assert weights.isfinite().all()
    assert weights[0, [399, 398, 9]].tolist() == [0.5, 0.25, 1.0]
    assert float(weights.sum()) == pytest.approx(2.0)
