"""Integrated gradients against closed forms."""

import pytest
import torch

from tokenprune.errors import InvalidArgumentError
from tokenprune.learn.attributions import integrated_gradients, token_shares


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_linear_function_has_its_terms(steps):
    x, w = numbers(2, 5, 3), numbers(5, 3, seed=1)
    found = integrated_gradients(lambda point: (point * w).sum((1, 2)) + 4.0, x, steps)
    torch.testing.assert_close(found, x * w)


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_a_square_has_the_right_riemann_sum(steps):
    """d(x^2)/dx at k/m x is 2 k/m x: mean over k is (m + 1) / m x."""
    x = numbers(2, 4, 3)
    found = integrated_gradients(lambda point: point.square().sum((1, 2)), x, steps)
    torch.testing.assert_close(found, x.square() * (steps + 1) / steps)


def test_attributions_sum_to_what_the_input_adds():
    x, w = numbers(3, 6, 4), numbers(4, 2, seed=1)

    def f(point):
        mixed = (point @ w).tanh()
        return mixed[..., 0].sum(1) * mixed[..., 1].sum(1) + mixed[:, 0, 0].exp()

    wanted = f(x) - f(torch.zeros_like(x))
    errors = [(integrated_gradients(f, x, steps).sum((1, 2)) - wanted).abs().max().item() for steps in (10, 100, 1000)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-2
    assert not x.requires_grad


def test_rows_do_not_touch_each_other_and_no_grad_does_not_matter():
    x = numbers(2, 4, 3)
    f = lambda point: point.pow(3).sum((1, 2))  # noqa: E731
    with torch.no_grad():
        both = integrated_gradients(f, x, 4)
    torch.testing.assert_close(both[1:], integrated_gradients(f, x[1:], 4))


def test_shares_of_tokens():
    attributions = torch.tensor([[[3.0, 4.0], [0.0, -5.0], [100.0, 0.0]], [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    among = torch.tensor([[True, True, False], [True, True, True]])
    assert token_shares(attributions, among).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]


def test_no_step_at_all_is_refused():
    with pytest.raises(InvalidArgumentError, match="steps=0"):
        integrated_gradients(lambda point: point.sum((1, 2)), numbers(1, 2, 2), 0)
