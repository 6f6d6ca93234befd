import math

import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.ops import unit_norm
from tokenprune.policies import CDPruner, CDPrunerOpenVINO


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by(scores):
    """A relevance that answers the given [G, N] scores."""
    return lambda tokens: scores


def test_the_first_pick_is_the_most_relevant_token():
    scores = randn(3, 20)
    order = CDPruner(keep=4, relevance=by(scores)).select(visual_tokens(randn(3, 20, 8)), 4).order
    assert torch.equal(order[:, 0], scores.argmax(-1))


def test_of_two_equal_tokens_the_more_relevant_one_stays():
    features = torch.eye(4)[[0, 1, 1, 2]][None]
    scores = torch.tensor([[0.5, 0.7, 0.9, 0.6]])
    assert CDPruner(keep=3, relevance=by(scores)).select(visual_tokens(features), 3).indices.tolist() == [[0, 2, 3]]


def test_scores_are_relevance_scaled_over_all_crops_of_an_image():
    scores = torch.tensor([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]])
    tokens = visual_tokens(randn(2, 3, 8), image=torch.tensor([5, 5]))
    selection = CDPruner(keep=2, relevance=by(scores)).select(tokens, 2)
    torch.testing.assert_close(selection.scores, scores / 4, rtol=0, atol=1e-6)


def test_images_of_a_batch_do_not_share_extremes():
    scores = torch.tensor([[0.0, 1.0, 2.0], [200.0, 300.0, 400.0]])
    selection = CDPruner(keep=2, relevance=by(scores)).select(visual_tokens(randn(2, 3, 8)), 2)
    torch.testing.assert_close(selection.scores, torch.tensor([[0.0, 0.5, 1.0]] * 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("theta", [0.01, 0.5, 0.8])
def test_theta_weighs_relevance_exponentially(theta):
    scores = torch.tensor([[0.0, 0.25, 1.0]])
    selection = CDPruner(keep=2, relevance=by(scores), theta=theta).select(visual_tokens(randn(1, 3, 8)), 2)
    expected = [math.exp(theta / (2 * (1 - theta)) * r) for r in (0.0, 0.25, 1.0)]
    torch.testing.assert_close(selection.scores, torch.tensor([expected]), rtol=1e-5, atol=0)


def test_equal_relevance_is_pure_diversity():
    features = torch.eye(3)[[0, 0, 0, 1, 0, 2]][None]
    selection = CDPruner(keep=3, relevance=by(torch.full((1, 6), 0.3))).select(visual_tokens(features), 3)
    assert selection.indices.tolist() == [[0, 3, 5]]


@pytest.mark.parametrize("theta", [0.0, 1.0, -0.5, 2, math.nan, "warm"])
def test_theta_outside_its_range_is_refused(theta):
    with pytest.raises(InvalidArgumentError, match=r"theta=.* is not in \(0, 1\)"):
        CDPruner(theta=theta)


def test_relevance_must_be_callable():
    with pytest.raises(InvalidArgumentError, match="relevance='clip'"):
        CDPruner(relevance="clip")


@pytest.mark.parametrize("weight", [-0.1, 1.5, math.nan, "half"])
def test_openvino_weight_outside_its_range_is_refused(weight):
    with pytest.raises(InvalidArgumentError, match=r"relevance_weight=.* is not in \[0, 1\]"):
        CDPrunerOpenVINO(relevance_weight=weight)


def test_openvino_scores_are_relevance_to_the_mean_text():
    tokens = visual_tokens(randn(1, 9, 8))
    q = unit_norm(tokens.features[0]) @ unit_norm(tokens.text[0, :2].mean(0))
    expected = (q - q.min()) / (q.max() - q.min() + 1e-6)
    full = CDPrunerOpenVINO(keep=4, split=False).select(tokens, 4)
    torch.testing.assert_close(full.scores[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [10, 11])
@pytest.mark.parametrize("k", [2, 5, 9])
def test_openvino_halves_keep_their_share(n, k):
    indices = CDPrunerOpenVINO(keep=k).select(visual_tokens(randn(1, n, 16)), k).indices
    assert (indices < n // 2).sum() == k // 2


def test_openvino_without_relevance_weight_ignores_the_text():
    features = randn(1, 12, 8)
    policy = CDPrunerOpenVINO(keep=5, relevance_weight=0.0)
    one, other = (policy.select(visual_tokens(features, text=randn(1, 3, 8, seed=s)), 5).indices for s in (1, 2))
    assert torch.equal(one, other)
