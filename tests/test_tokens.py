"""What a selection says."""

import torch

from tokenprune import Selection

INDICES = torch.tensor([[1, 3]])
SOURCE = torch.tensor([[0, 0, -1, 1, 1]])


def test_shares_are_equal_unless_weights_say_otherwise():
    selection = Selection(indices=INDICES, source=SOURCE)
    assert selection.merge_weights(5).tolist() == [[0.5, 0.5, 0.0, 0.5, 0.5]]


def test_shares_sum_to_one_whatever_the_weights_sum_to():
    """A sum of tokens is projected, and normalised, as one; rows beside it are not and must keep their scale."""
    weights = torch.tensor([[1.0, 1.0, 7.0, 0.03, 0.01]])
    shares = Selection(indices=INDICES, source=SOURCE, weights=weights).merge_weights(5)
    torch.testing.assert_close(shares, torch.tensor([[0.5, 0.5, 0.0, 0.75, 0.25]]))


def test_a_survivor_without_weight_has_no_share():
    shares = Selection(indices=INDICES, source=SOURCE, weights=torch.tensor([[0.0, 0.0, 1.0, 2.0, 0.0]]))
    assert shares.merge_weights(5).tolist() == [[0.0, 0.0, 0.0, 1.0, 0.0]]
