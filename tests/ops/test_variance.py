import pytest
import torch

from tokenprune.ops import runs, similarity_variance, unit_norm
from tokenprune.ops import variance as module


def test_runs_are_consecutive_and_the_first_are_longer():
    place, real = runs(11, 4)
    assert [row[mask].tolist() for row, mask in zip(place, real, strict=True)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [9, 10],
    ]
    assert runs(6, 6)[0].tolist() == [[0], [1], [2], [3], [4], [5]]


@pytest.mark.parametrize("blocks", [1, 40, 2**24])
def test_variance_as_defined(monkeypatch, blocks):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", blocks)
    x = unit_norm(torch.randn(2, 11, 5, generator=torch.Generator().manual_seed(0)))
    place, real = runs(11, 4)
    found = similarity_variance(x[:, place], real)
    for g in range(2):
        for run, (at, mask) in enumerate(zip(place, real, strict=True)):
            tokens = x[g, at[mask]].double()
            m = len(tokens)
            s = tokens @ tokens.T
            s.fill_diagonal_(0.0)
            mean = s.sum(-1, keepdim=True) / (m - 1)
            expected = (s - mean).square().sum(-1) / (m - 1)
            torch.testing.assert_close(found[g, run, :m].double(), expected, rtol=1e-5, atol=1e-6)
            assert not found[g, run, m:].any()


def test_a_run_of_one_token_has_no_variance():
    assert similarity_variance(torch.ones(1, 3, 1, 2), torch.ones(3, 1, dtype=torch.bool)).tolist() == [[[0], [0], [0]]]
