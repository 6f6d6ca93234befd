import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import TRIM, TextRelevance

N = 12


def tokens_of(n=N):
    return visual_tokens(torch.randn(2, n, 6, generator=torch.Generator().manual_seed(0)))


def test_the_most_relevant_stay_and_the_rest_becomes_its_mean():
    tokens, q = (
        tokens_of(),
        torch.tensor([[5.0, 0, 1, 7, 0, 0, 6, 0, 0, 0, 0, 8], [200.0, 100, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]]),
    )
    selection = TRIM(relevance=lambda tokens: q).select(tokens, 5)
    assert selection.order.tolist() == [[11, 3, 6, 0, 10], [0, 1, 2, 3, 11]]
    assert selection.indices.tolist() == [[0, 3, 6, 10, 11], [0, 1, 2, 3, 11]]
    torch.testing.assert_close(selection.scores, q.softmax(-1))
    dropped = [1, 2, 4, 5, 7, 8, 9, 10]
    torch.testing.assert_close(selection.features[0, 3], tokens.projection.apply(tokens.encoder[0, dropped].mean(0)))
    assert torch.equal(selection.features[0, [0, 1, 2, 4]], tokens.features[0, [0, 3, 6, 11]])
    assert (selection.source[0] == 3).nonzero()[:, 0].tolist() == dropped
    assert selection.sizes.tolist() == [[1, 1, 1, 8, 1], [1, 1, 1, 1, 8]]
    torch.testing.assert_close(selection.merge_weights(N)[0, dropped], torch.full((8,), 1 / 8))


def test_one_token_is_the_mean_of_all():
    tokens = tokens_of()
    selection = TRIM().select(tokens, 1)
    assert selection.indices.tolist() == [[N - 1]] * 2
    torch.testing.assert_close(selection.features[:, 0], tokens.projection.apply(tokens.encoder.mean(1)))


def test_the_adaptive_rule_counts_outliers_whatever_the_budget():
    tokens = visual_tokens(torch.zeros(1, N, 6))
    q = torch.tensor([[0.0, 0.1, 3.0, 0.2, 0.1, 0.0, 0.1, 0.2, 4.0, 0.1, 0.0, 0.1]])
    policy = TRIM(relevance=lambda tokens: q, strict_paper=True)
    assert (policy.exact, policy.adaptive_count(tokens).tolist()) == (False, [2])
    assert policy.select(tokens, 7).indices.tolist() == [[2, 8, 11]]
    even = TRIM(relevance=lambda tokens: torch.zeros(1, N), strict_paper=True)
    assert even.select(tokens, 7).indices.tolist() == [[11]]


def test_it_needs_what_its_relevance_needs():
    assert TRIM().needs == TextRelevance.needs | {"encoder", "projection"}
    with pytest.raises(InvalidArgumentError, match="relevance=None is no function"):
        TRIM(relevance=None)
