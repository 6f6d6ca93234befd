import pytest
import torch

from tests.default_layer_policies import causal_attention
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import FastV


def test_it_scores_in_the_layer_before_the_drop():
    (event,) = FastV().events(32)
    assert (event.drop, event.score, event.rows) == (2, 1, "last")
    assert [FastV(layer=0.25).events(depth)[0].drop for depth in (28, 32)] == [7, 8]
    assert FastV().positions == "original"


def test_scores_are_the_mean_over_heads_of_the_last_valid_row():
    attention = causal_attention([(3, 9, 4), (1, 6, 2)], rows="last")
    assert attention.rows.tolist() == [[15], [8]]
    scores = FastV().score(attention, FastV().events(32)[0])
    torch.testing.assert_close(scores, attention.probabilities.mean(1)[:, 0])
    torch.testing.assert_close(scores.sum(1), torch.ones(2))


@pytest.mark.parametrize("layer", [0, -1, 1.0, 0.0, True, "2", None])
def test_what_is_no_layer_is_refused(layer):
    with pytest.raises(InvalidArgumentError, match="layer="):
        FastV(layer=layer)


@pytest.mark.parametrize(("layer", "depth"), [(2, 2), (40, 32), (0.1, 8)])
def test_a_layer_that_the_decoder_does_not_have_is_refused(layer, depth):
    with pytest.raises(InvalidArgumentError, match=f"a decoder with {depth} layers: give an int from 1 to {depth - 1}"):
        FastV(layer=layer).events(depth)
