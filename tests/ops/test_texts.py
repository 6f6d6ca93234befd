import pytest
import torch

from tokenprune.ops import inner_tokens, keep_best, tokens_left


@pytest.mark.parametrize(
    ("share", "n", "wanted"),
    [(0.35, 20, 7), (0.1, 30, 3), (0.1, 31, 4), (0.01, 30, 2), (1.0, 17, 17), (0.5, 2, 2), (0.5, 1, 1), (0.3, 0, 0)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_count_is_rounded_up_and_holds_both_ends(share, n, wanted, dtype):
    assert tokens_left(torch.tensor([share], dtype=dtype), torch.tensor([n])).tolist() == [wanted]


def test_inner_tokens_whatever_side_the_padding_is_on():
    real = torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    wanted = [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0] * 5, [0] * 5]
    assert inner_tokens(real).long().tolist() == wanted


def test_the_best_stay_with_both_ends_and_the_lowest_index_among_equals():
    real = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]]).bool()
    scores = torch.tensor([[-9.0, 1.0, 3.0, 3.0, -9.0, 50.0], [50.0, -9.0, 2.0, 2.0, 2.0, -9.0]])
    kept = keep_best(scores, real, torch.tensor([3, 4]))
    assert kept.long().tolist() == [[1, 0, 1, 0, 1, 0], [0, 1, 1, 1, 0, 1]]
