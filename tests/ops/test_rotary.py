import math

import pytest
import torch

from tokenprune.ops import rotary_gravity


def theta(base, d):
    return base ** -(torch.arange(0, d, 2, dtype=torch.float64) / d)


def test_it_is_the_product_of_two_rotated_vectors_of_ones():
    frequencies = theta(1e4, 32)
    i, j = torch.tensor([[40, 7], [900, 3]]), torch.tensor([[0, 5, 40], [899, 0, 12]])

    def rotated(place):
        angle = place.double()[..., None] * frequencies
        return torch.cat([angle.cos() - angle.sin(), angle.cos() + angle.sin()], -1)

    expected = (rotated(i) @ rotated(j).mT) / math.sqrt(32)
    torch.testing.assert_close(rotary_gravity(i, j, frequencies.float()), expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("distance", "value"), [(0, 11.31), (300, 3.47), (600, 2.35)])
def test_values_of_a_head_of_128(distance, value):
    near, far = torch.tensor([[5]]), torch.tensor([[5 + distance]])
    assert rotary_gravity(far, near, theta(1e4, 128).float()).item() == pytest.approx(value, abs=0.015)


def test_where_it_first_falls_below_one_and_turns_negative():
    curve = rotary_gravity(torch.zeros(1, 1, dtype=torch.long), torch.arange(3000)[None], theta(1e4, 128).float())[0, 0]
    assert int((curve < 1).nonzero()[0]) == 832
    assert int((curve <= 0).nonzero()[0]) == 1707
    shifted = rotary_gravity(torch.tensor([[100000]]), 100000 + torch.arange(3000)[None], theta(1e4, 128).float())[0, 0]
    torch.testing.assert_close(shifted, curve, rtol=0, atol=1e-4)
