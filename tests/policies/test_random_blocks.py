import pytest
import torch

from tests.default_vision_policies import block_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import EViT, RandomBlocks, ToMe


def order(policy, *, g=1, n=33, prefix=1, block=2, k=10):
    hidden = torch.randn(g, n, 3)  # another one each time
    return policy.reduce(block_tokens(hidden, prefix=prefix, block=block), k).order


def test_it_draws_by_seed_and_block_alone_the_same_for_all_images():
    first = order(RandomBlocks(r=3))
    assert torch.equal(order(RandomBlocks(r=3), g=4), first.expand(4, -1))
    assert torch.equal(order(RandomBlocks(keep=4)), first)
    for other in (order(RandomBlocks(r=3, seed=1)), order(RandomBlocks(r=3), block=3)):
        assert not torch.equal(other, first)


def test_the_prefix_and_the_order_stay():
    found = order(RandomBlocks(r=3), prefix=5, n=37)[0]
    assert found[:5].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(found.sort().values, found)


@pytest.mark.parametrize(
    ("fields", "like"),
    [
        ({"r": 8}, ToMe(r=8)),
        ({"r": (8, -1.0)}, ToMe(r=(8, -1.0))),
        ({"keep": 50}, ToMe(keep=50)),
        ({"keep": 0.3, "rounding": "floor"}, ToMe(keep=0.3, rounding="floor")),
        ({"blocks": (3, 6, 9)}, EViT()),
        ({"blocks": (2, 5), "keep_rate": 0.5}, EViT(blocks=(2, 5), keep_rate=0.5)),
        ({"blocks": (0.5,), "keep": 20}, EViT(blocks=(0.5,), keep=20)),
    ],
    ids=str,
)
def test_counts_are_those_of_the_policy_it_controls(fields, like):
    assert RandomBlocks(**fields).counts(12, 196) == like.counts(12, 196)


def test_every_place_is_as_likely():
    taken = torch.cat([order(RandomBlocks(r=3, seed=seed), k=8)[:, 1:] for seed in range(400)])
    share = taken.flatten().bincount(minlength=33)[1:] / 400
    assert (share - 0.25).abs().max() < 0.1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"r": 3, "blocks": (2,)}, "are both given"),
        ({"keep_rate": 0.7}, "without blocks"),
        ({"keep_rate": 0.7, "keep": 9}, "without blocks"),
        ({"r": -1}, "r=-1"),
        ({"blocks": ()}, "blocks="),
        ({"blocks": (2,), "keep_rate": 2.0}, "keep_rate=2.0"),
        ({"r": 3, "seed": -1}, "seed=-1"),
    ],
    ids=str,
)
def test_what_is_no_schedule_is_refused(fields, says):
    with pytest.raises(InvalidArgumentError, match=says):
        RandomBlocks(**fields)


def test_without_a_budget_counts_are_refused():
    assert [RandomBlocks().budgeted, RandomBlocks(r=2).budgeted, RandomBlocks(blocks=(2,)).budgeted] == [
        False,
        True,
        True,
    ]
    with pytest.raises(InvalidArgumentError, match="neither r nor keep"):
        RandomBlocks().counts(12, 196)
