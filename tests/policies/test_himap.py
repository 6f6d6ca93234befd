import pytest
import torch

from tests.default_layer_policies import causal_attention
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import HiMAP


def test_text_looks_first_and_the_image_later():
    events = HiMAP().events(32)
    assert [(event.score, event.drop, event.rows) for event in events] == [(1, 2, "text"), (7, 8, "visual")]
    assert [HiMAP().count(event, 576) for event in events] == [115, 90]
    assert HiMAP().positions == "original"
    assert [event.rows for event in HiMAP().events(4)] == ["text", "visual"]


@pytest.mark.parametrize("number", [0, 1])
def test_scores_are_sums_over_rows_of_the_mean_over_heads(number):
    event = HiMAP().events(32)[number]
    attention = causal_attention([(3, 9, 4), (1, 6, 2)], rows=event.rows)
    scores, maps = HiMAP().score(attention, event), attention.probabilities
    torch.testing.assert_close(scores, maps.mean(1).sum(1))
    # every row gives 1 in all, and none of the image sees the text
    torch.testing.assert_close(scores.sum(1), attention.row_mask.sum(1).float())
    assert (scores[attention.text] > 0).any() == (number == 0)


def test_two_layers_are_needed():
    with pytest.raises(InvalidArgumentError, match="are 3: give two"):
        HiMAP(layers=(1, 2, 3), keeps=(0.5, 0.4, 0.3))
    with pytest.raises(InvalidArgumentError, match="are 1, where the published schedule has 2"):
        HiMAP(layers=(2,))
