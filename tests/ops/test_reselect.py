"""DyCoke's choice at decode steps; golden files have the published sequence."""

import torch

from tokenprune.ops import reselected


def test_the_first_step_takes_the_best():
    attention = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.4, 0.1, 0.1, 0.4]])
    assert reselected(attention, None, 0.5).tolist() == [[False, True, False, True], [True, False, False, True]]


def test_a_row_that_looks_as_before_takes_all_and_the_other_anew():
    before = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.4, 0.1, 0.1, 0.1]])
    now = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.0, 0.1, 0.9, 0.1]])
    assert reselected(now, before, 0.5).tolist() == [[True] * 4, [False, True, True, False]]


def test_the_threshold_is_strict_from_below():
    attention = torch.tensor([[3.0, 4.0]])
    assert reselected(attention, attention, 0.5, threshold=1.0).all()
