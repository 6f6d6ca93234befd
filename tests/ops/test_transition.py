import pytest
import torch

from tokenprune.ops import carried_on, matching


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("elements", [1, 50, 10**6])
def test_in_blocks_it_equals_the_whole_matrix(monkeypatch, elements):
    monkeypatch.setattr(matching, "CACHED_ELEMENTS", elements)
    x, before, weights = randn(2, 12, 5), randn(2, 7, 5, seed=1), randn(2, 7, seed=2).abs()
    dense = (x.double() @ before.double().mT).softmax(1) @ weights.double()[..., None]
    found = carried_on(x, before, weights)
    torch.testing.assert_close(found, dense[..., 0].float())
    torch.testing.assert_close(found.sum(1), weights.sum(1))
