import pytest
import torch

from tests.default_vision_policies import block_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import ToMe


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def left(counts, total):
    """What each block takes."""
    return [before - after for before, after in zip([total, *counts], counts, strict=False)]


@pytest.mark.parametrize(
    ("r", "expected"),
    [
        (3, [3, 3, 3, 3]),
        (0, [0, 0, 0, 0]),
        ([4, 1], [4, 1, 0, 0]),
        ([], [0, 0, 0, 0]),
        ((8, -1.0), [16, 10, 5, 0]),
        ((8, 1), [0, 5, 10, 16]),
        ((8, 0.0), [8, 8, 8, 8]),
        ((7, 0.5), [3, 5, 8, 11]),
    ],
    ids=str,
)
def test_a_schedule_says_what_each_block_merges(r, expected):
    assert ToMe(r=r).schedule(4) == expected
    assert left(ToMe(r=r).counts(4, 196), 196) == expected


def test_one_block_takes_the_start_of_a_schedule():
    assert ToMe(r=(8, -0.5)).schedule(1) == [12]


def test_no_block_merges_more_than_half():
    assert ToMe(r=1000).counts(4, 25) == [13, 7, 4, 2]
    assert ToMe(r=1000).counts(3, 1) == [1, 1, 1]
    assert ToMe(r=1000, stride=4).counts(3, 25) == [7, 2, 1]
    assert ToMe(r=8).counts(12, 196)[-1] == 100


@pytest.mark.parametrize(
    ("keep", "depth", "total", "taken"),
    [
        (100, 12, 196, [8] * 12),
        (190, 4, 200, [3, 3, 2, 2]),
        (0.5, 4, 36, [5, 5, 4, 4]),
        (4, 4, 64, [32, 16, 8, 4]),
        (4, 6, 64, [10, 10, 12, 16, 8, 4]),
        (36, 3, 36, [0, 0, 0]),
    ],
)
def test_a_budget_is_spread_evenly_unless_the_last_blocks_could_not_take_the_rest(keep, depth, total, taken):
    counts = ToMe(keep=keep).counts(depth, total)
    assert left(counts, total) == taken
    assert counts[-1] == ToMe(keep=keep).budget.count(total)


def test_a_budget_out_of_reach_is_refused():
    for keep, total in ((4, 64), (1, 16), (0.25, 16)):
        assert ToMe(keep=keep).counts(4, total)[-1] in (4, 1)
    message = "keep=3 is 3 of 64 patches, where 4 blocks that merge all they can leave 4: give at least as many"
    with pytest.raises(InvalidArgumentError, match=message):
        ToMe(keep=3).counts(4, 64)
    assert ToMe(keep=3, stride=3).counts(4, 64)[-1] == 3


def test_without_r_and_keep_there_is_no_budget():
    assert [ToMe().budgeted, ToMe(r=0).budgeted, ToMe(keep=0.5).budgeted] == [False, True, True]
    with pytest.raises(InvalidArgumentError, match=r"neither r nor keep: give r \(tokens merged in each block\) or"):
        ToMe().counts(12, 196)


@pytest.mark.parametrize("r", [-1, 1.5, "8", True, [8, -1], [2.0], (8,), (8, 2.0), (8, -1.5), (8, 8, 8), (1.5, 0.5)])
def test_what_is_no_r_is_refused(r):
    with pytest.raises(InvalidArgumentError, match="r="):
        ToMe(r=r)


@pytest.mark.parametrize("stride", [1, 0, 2.0, True, None])
def test_what_is_no_stride_is_refused(stride):
    with pytest.raises(InvalidArgumentError, match="stride="):
        ToMe(r=8, stride=stride)


def test_a_list_longer_than_the_tower_is_refused():
    with pytest.raises(InvalidArgumentError, match="has 5 entries, where 4 blocks are read"):
        ToMe(r=[1] * 5).counts(4, 64)


def test_with_a_stride_there_are_fewer_destinations():
    keys = torch.eye(3)[[0, 2, 0, 1, 1, 1, 0]][None]
    reduction = ToMe(r=4, stride=3).reduce(block_tokens(keys, keys=keys), 3)
    assert reduction.order.tolist() == [[1, 2, 5]]
    assert reduction.source.tolist() == [[1, 0, 1, 2, 2, 2, 1]]


def test_the_most_alike_are_merged_with_their_sizes():
    keys = torch.eye(4)[[0, 1, 0, 2, 2, 3]] + 0.01 * randn(6, 4)
    tokens = block_tokens(randn(1, 6, 3), keys=keys[None], prefix=1)
    reduction = ToMe(r=1).reduce(tokens, 4)
    assert reduction.order.tolist() == [[0, 2, 1, 3, 5]]
    assert reduction.source.tolist() == [[0, 2, 1, 3, 3, 4]]
    assert (reduction.weights, reduction.average) == (None, True)
    policy = ToMe(r=1)
    assert (policy.merges, policy.behind, policy.proportional) == (True, False, True)
    assert not ToMe(r=1, proportional=False).proportional
