import pytest
import torch
from torch.nn import functional as F

from tokenprune.ops import best_of_each, frame_change, frames, similarity_cuts, true_places


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block", [1, 2 * 6 * 5 * 2, 2**22])
def test_change_is_one_minus_the_cosine_at_the_same_place(block, monkeypatch):
    monkeypatch.setattr(frames, "BLOCK_ELEMENTS", block)
    x = randn(2, 5, 6, 5)
    for here, there in (([1, 2, 3, 4], range(4)), ([4, 1, 1], [0, 3, 2]), ([], [])):
        expected = 1 - F.cosine_similarity(x[:, list(here)].double(), x[:, list(there)].double(), dim=-1)
        change = frame_change(x, here, there)
        assert change.dtype == torch.float32
        torch.testing.assert_close(change.double(), expected, rtol=1e-5, atol=1e-6)


def test_nothing_changes_between_equal_frames_and_a_zero_vector_is_like_nothing():
    x = 100 * randn(1, 1, 50, 7).repeat(1, 3, 1, 1).half()
    x[0, 1, 3] = 0
    x[0, 2, 4] *= 2
    change = frame_change(x, [1, 2], [0, 1])[0]
    assert change[0].nonzero()[:, 0].tolist() == [3]
    assert change[:, 3].tolist() == [1, 1]
    assert change[1, 4] < 1e-6
    assert frame_change(torch.zeros(1, 2, 1, 3), [1], [0]).tolist() == [[[1]]]


def test_cuts_are_where_frames_are_least_alike_and_below_the_threshold():
    similarity = torch.tensor([[0.9, 0.2, 0.8, 0.4, 0.95], [0.9, 0.9, 0.9, 0.9, 0.9]])
    for c, tau, first, second in (
        (1, 0.0, [], []),
        (1, 0.8, [1, 3], []),
        (3, 0.0, [1, 3], [0, 1]),
        (2, 0.85, [1, 2, 3], [0]),
        (3, 2.0, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        (99, 0.0, [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
    ):
        cuts = similarity_cuts(similarity, c, tau)
        assert [row.nonzero()[:, 0].tolist() for row in cuts] == [first, second]
    assert similarity_cuts(torch.zeros(2, 0), 8, 0.9).shape == (2, 0)


def test_the_best_of_each_frame():
    scores = torch.tensor([[[1.0, 3, 2, 3], [5, 5, 5, 5], [-torch.inf, 0, -torch.inf, -1]]])
    kept = best_of_each(scores, torch.tensor([[2, 3, 0]]))
    assert kept[0].tolist() == [[False, True, False, True], [True, True, True, False], [False] * 4]
    assert best_of_each(scores, torch.tensor([[1, 0, 4]]))[0].sum(-1).tolist() == [1, 0, 4]


def test_true_places():
    mask = torch.tensor([[True, False, True, False, True], [False, True, True, True, False]])
    assert true_places(mask, 3).tolist() == [[0, 2, 4], [1, 2, 3]]
    assert true_places(torch.zeros(2, 4, dtype=torch.bool), 0).shape == (2, 0)
