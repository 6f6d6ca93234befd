import pytest
import torch

from tokenprune.ops import ordered_dither


def kept(grid, k, flips=(0, 0, 0)):
    """[k, 3] places of the k largest."""
    order = ordered_dither(grid, flips).topk(k).indices
    return torch.stack(torch.unravel_index(order, grid), -1)


@pytest.mark.parametrize("grid", [(1, 1, 1), (1, 1, 7), (1, 16, 16), (1, 24, 24), (3, 5, 9), (8, 14, 14)])
@pytest.mark.parametrize("flips", [(0, 0, 0), (3, 9, 60)])
def test_every_rank_is_there_once(grid, flips):
    values = ordered_dither(grid, flips)
    n = len(values)
    assert n == grid[0] * grid[1] * grid[2]
    torch.testing.assert_close(values.sort().values, (torch.arange(n) + 0.5) / n)


@pytest.mark.parametrize("flips", [(0, 0, 0), (0, 5, 12), (7, 3, 1)])
def test_any_beginning_is_spread_evenly(flips):
    for k in (1, 4, 16, 64):  # one in every block of a coarser grid
        blocks = kept((1, 16, 16), k, flips)[:, 1:] // (16 // int(k**0.5))
        assert len(blocks.unique(dim=0)) == k
    for k in (5, 13, 28, 100):
        quarters = (kept((1, 16, 16), k, flips)[:, 1:] // 8 * torch.tensor([2, 1])).sum(1).bincount(minlength=4)
        assert quarters.max() - quarters.min() <= 1


def test_frames_share_alike():
    counts = kept((4, 8, 8), 32)[:, 0].bincount(minlength=4)
    assert counts.tolist() == [8, 8, 8, 8]


def test_a_row_is_halved_and_halved_again():
    assert sorted(kept((1, 1, 16), 4)[:, 2].tolist())[1] - sorted(kept((1, 1, 16), 4)[:, 2].tolist())[0] == 4


def test_the_first_of_a_picture_lies_inside():
    row, column = kept((1, 16, 16), 1)[0, 1:].tolist()
    assert 3 <= row <= 12
    assert 3 <= column <= 12
