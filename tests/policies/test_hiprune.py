import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import HiPrune
from tokenprune.tokens import Tap

ROWS, COLUMNS = 4, 5


def tokens(objects, deep, *, grid=(1, ROWS, COLUMNS), **fields):
    """A policy and 20 tokens whose attention peaks at `objects` and falls over `deep`, the rest after it by place."""
    n = ROWS * COLUMNS
    o, d = torch.zeros(n), -torch.arange(n).float() - 100
    o[objects] = torch.arange(len(objects), 0, -1).float()
    d[deep] = -torch.arange(len(deep)).float()
    policy = HiPrune(**fields)
    of_object, of_deep = (part.tap for part in policy.attentions())
    values = {of_object: o.view(1, n, 1, 1), of_deep: d.view(1, n, 1, 1)}
    return policy, visual_tokens(torch.zeros(1, n, 2), grid=grid, tower=values)


def kept(k, *args, **fields):
    policy, given = tokens(*args, **fields)
    return policy.select(given, k).indices[0].tolist()


def test_anchors_buffers_and_registers():
    # k = 10, alpha 1: two anchors, 7 = (1, 2) inside and 15 = (3, 0) in a corner
    assert kept(10, [7, 15], [0, 19, 4], alpha=1.0) == [0, 2, 6, 7, 8, 10, 12, 15, 16, 19]


def test_rows_do_not_wrap_unless_strict():
    # anchor 4 is the last of its row: 5, the first of the next, is no neighbour
    assert kept(5, [4], [19, 18, 17, 16], alpha=1.0) == [3, 4, 9, 18, 19]
    # released: 3, 5, 9, and 4 - 5 = -1 clamped to 0
    assert kept(5, [4], [19, 18, 17, 16], alpha=1.0, strict_paper=True) == [0, 3, 4, 5, 9]


def test_frames_do_not_touch():
    assert kept(5, [8], [19, 0], alpha=1.0, grid=(2, 2, 5)) == [3, 7, 8, 9, 19]


def test_without_a_grid_neighbours_are_before_and_behind():
    assert kept(5, [4], [19, 18, 17], alpha=1.0, grid=None) == [3, 4, 5, 18, 19]


def test_what_exceeds_the_budget_is_cut_by_deep_attention():
    # k = 8: round(1.6) = 2 anchors with 8 buffers
    assert kept(8, [6, 13], [18, 14, 12, 8, 11, 7], alpha=1.0) == [6, 7, 8, 11, 12, 13, 14, 18]


def test_the_number_of_anchors_rounds_half_to_even():
    # alpha k / 5 = 0.5 -> 0 and 1.5 -> 2
    deep = list(range(20))
    assert kept(5, [19], deep, alpha=0.5) == [0, 1, 2, 3, 4]
    # anchors 19 and 12, buffers 18, 14 and 11, 13, 7, 17, and seven registers from the front
    assert kept(15, [19, 12], deep, alpha=0.5) == [*range(8), 11, 12, 13, 14, 17, 18, 19]


def test_layers_and_queries_of_its_attention():
    assert HiPrune().needs == {
        Tap("attention", queries="all", layer=0.375),
        Tap("attention", queries="all", layer=None),
    }
    assert Tap("attention", queries="all", layer=16) in HiPrune(object_layer=16, deep_layer=-1).needs


@pytest.mark.parametrize("alpha", [-0.1, 1.5, "x", float("nan")])
def test_alpha_is_checked(alpha):
    with pytest.raises(InvalidArgumentError, match="alpha="):
        HiPrune(alpha=alpha)
