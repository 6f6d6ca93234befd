"""Random choice that is the same on every device and in every batch."""

from __future__ import annotations

import torch
from torch import Tensor


def draw(keys: list[int], n: int, k: int, *, seed: int, number: int = 0) -> Tensor:
    """[G, k] long, k distinct random places among n for each of G keys, in the order drawn, on the CPU.

    Args:
        keys: of the units.
        seed: 0 <= seed < 2**31, another for other draws.
        number: of the draw, where a unit is drawn from several times.
    """
    generator, order = torch.Generator(), []
    for key in keys:
        # torch reads only the low 32 bits of a CPU seed, so the numbers are mixed there
        generator.manual_seed((key + seed * 0x9E3779B1 + number * 0x85EBCA77) % 2**32)
        order.append(torch.randperm(n, generator=generator)[:k])
    return torch.stack(order)
