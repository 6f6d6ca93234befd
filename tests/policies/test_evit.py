import pytest
import torch

from tests.default_vision_policies import block_tokens, steps
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import EViT


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ATTENTION = torch.tensor([[0.5, 0.02, 0.2, 0.05, 0.1, 0.03, 0.1]])


def test_the_most_attended_stay_in_that_order_and_the_others_become_one_weighted_sum():
    tokens = block_tokens(randn(1, 7, 3), class_attention=ATTENTION, prefix=1)
    reduction = EViT().reduce(tokens, 4)
    assert reduction.order.tolist() == [[0, 2, 4, 6, 3]]  # 4 before 6, of the same attention; 3 leads those that go
    assert reduction.source.tolist() == [[0, 4, 1, 4, 2, 4, 3]]
    torch.testing.assert_close(reduction.weights, torch.tensor([[1.0, 0.02, 1.0, 0.05, 1.0, 0.03, 1.0]]))
    assert not reduction.average


def test_without_the_fused_token_they_are_dropped():
    tokens = block_tokens(randn(1, 7, 3), class_attention=ATTENTION, prefix=1)
    reduction = EViT(fuse=False).reduce(tokens, 3)
    assert reduction.order.tolist() == [[0, 2, 4, 6]]
    assert (reduction.source, reduction.weights, EViT.merges) == (None, None, False)


def test_one_token_left_is_the_fused_one():
    tokens = block_tokens(randn(1, 7, 3), class_attention=ATTENTION, prefix=1)
    reduction = EViT().reduce(tokens, 1)
    assert (reduction.order.tolist(), reduction.source.tolist()) == ([[0, 2]], [[0, 1, 1, 1, 1, 1, 1]])
    torch.testing.assert_close(reduction.weights[:, 1:], ATTENTION[:, 1:])


def test_the_fused_token_is_one_like_others_later():
    hidden, attention = randn(1, 41, 3), torch.full((1, 41), 0.01)
    attention[0, 1:11] = 0.02
    _, (second, k, later) = steps(EViT(keep=12, blocks=(0, 1)), hidden, hidden, attention, prefix=1)
    assert (second.places.tolist(), k) == ([[*range(23)]], 12)
    torch.testing.assert_close(second.hidden[:, 22], 0.01 * hidden[:, 22:].sum(1))
    assert second.sizes[0, 22] == 19
    assert later.order.tolist() == [[*range(13)]]


@pytest.mark.parametrize(
    ("fields", "depth", "total", "expected"),
    [
        ({}, 12, 196, [196] * 3 + [139] * 3 + [99] * 3 + [71] * 3),
        ({"fuse": False}, 12, 196, [196] * 3 + [138] * 3 + [97] * 3 + [68] * 3),
        ({"keep_rate": 0.5, "blocks": (1,)}, 3, 49, [49, 26, 26]),
        ({"keep_rate": 0.07, "blocks": (0,), "fuse": False}, 1, 100, [8]),  # 0.07 * 100 is 7.000000000000001
        ({"keep_rate": 1.0}, 12, 196, [196] * 12),
        ({"keep_rate": 0.9, "blocks": (0,)}, 2, 5, [5, 5]),
        ({"keep": 25}, 12, 200, [200] * 3 + [100] * 3 + [50] * 3 + [25] * 3),
        ({"keep": 0.25, "blocks": (0, 3)}, 4, 64, [32, 32, 32, 16]),
        ({}, 2, 10, [8, 7]),
    ],
    ids=str,
)
def test_counts(fields, depth, total, expected):
    assert EViT(**fields).counts(depth, total) == expected


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, [3, 6, 9]), (24, [6, 12, 18]), (4, [1, 2, 3]), (2, [0, 1]), (1, [0])]
)
def test_shares_of_the_depth(depth, blocks):
    assert EViT().places(depth) == blocks


@pytest.mark.parametrize(("blocks", "depth"), [((3, 12), 12), ((6, 3), 12), ((0.5, 3), 12)])
def test_blocks_that_a_tower_does_not_have_are_refused(blocks, depth):
    with pytest.raises(InvalidArgumentError, match="of 12 that are read: give rising ones up to 11"):
        EViT(blocks=blocks).counts(depth, 196)


@pytest.mark.parametrize("blocks", [(), 3, None, (1.0,), (-1,), (True,), ("3",)])
def test_what_are_no_blocks_is_refused(blocks):
    with pytest.raises(InvalidArgumentError, match="blocks="):
        EViT(blocks=blocks)


@pytest.mark.parametrize("keep_rate", [0, 0.0, 1.1, -0.5, True, "0.7"])
def test_what_is_no_rate_is_refused(keep_rate):
    with pytest.raises(InvalidArgumentError, match="keep_rate="):
        EViT(keep_rate=keep_rate)
