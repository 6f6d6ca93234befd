import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import DivPrune, NoPruning, Norm, Pool, Random, Uniform


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_none_keeps_everything_whatever_the_budget():
    policy = NoPruning(keep=3)
    assert policy.budget.count(10) == 10
    assert policy.select(visual_tokens(randn(2, 10, 4)), 3).indices.tolist() == [list(range(10))] * 2


def test_random_depends_on_seed_and_key_alone():
    def draw(seed, key):
        tokens = visual_tokens(randn(1, 20, 4, seed=key), keys=[key])
        return Random(keep=5, seed=seed).select(tokens, 5).indices.tolist()

    assert draw(0, 7) == draw(0, 7)
    assert len({str(draw(seed, key)) for seed in range(3) for key in range(3)}) == 9


@pytest.mark.parametrize("seed", ["a", 0.5, None, True, -1, 2**31])
def test_a_seed_must_be_an_int(seed):
    with pytest.raises(InvalidArgumentError, match="seed="):
        Random(seed=seed)


def test_random_takes_every_token_equally_often():
    keys = list(range(2000))
    indices = Random(keep=3).select(visual_tokens(torch.zeros(2000, 10, 1), keys=keys), 3).indices
    share = indices.flatten().bincount(minlength=10) / 2000
    assert (share - 0.3).abs().max() < 0.05  # five standard deviations


def test_uniform_looks_at_the_grid_alone():
    policy = Uniform(keep=4)
    assert policy.select(visual_tokens(randn(2, 16, 3), grid=(1, 4, 4)), 4).indices.tolist() == [[5, 7, 13, 15]] * 2
    assert policy.select(visual_tokens(randn(2, 16, 3)), 4).indices.tolist() == [[2, 6, 10, 14]] * 2


def test_pool_averages_blocks_and_counts_them():
    features = torch.arange(16.0).view(1, 16, 1)
    selection = Pool(keep=4).select(visual_tokens(features, grid=(1, 4, 4)), 4)
    assert selection.indices.tolist() == [[5, 7, 13, 15]]
    assert selection.features.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert selection.sizes.tolist() == [[4.0] * 4]
    assert selection.source[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]


def test_divprune_looks_at_no_text_and_no_length():
    features = randn(1, 20, 8)
    policy = DivPrune(keep=6)
    expected = policy.select(visual_tokens(features), 6).order
    assert torch.equal(policy.select(visual_tokens(features, seed=9), 6).order, expected)
    lengths = 1 + randn(1, 20, 1, seed=5).abs()
    assert torch.equal(policy.select(visual_tokens(features * lengths), 6).order, expected)


def test_norm_keeps_the_longest_and_the_lowest_among_equals():
    features = torch.tensor([[[3.0, 4], [0, 6], [0, 5], [-8, 0], [4, -3]]])
    selection = Norm().select(visual_tokens(features), 4)
    assert selection.order.tolist() == [[3, 1, 0, 2]]
    assert selection.scores.tolist() == [[5, 6, 5, 8, 5]]
