"""How strongly the projector answers at each token: a part that a policy is given, not a policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, nearest
from ..ops import second_moment, sent, zeroth_order
from ..tokens import VisualTokens

Estimator = Literal["zeroth_order", "closed_form"]


@dataclass(kw_only=True)
class Sensitivity:
    """Mean size of the projector's directional derivative at a token's vision features.

    Attributes:
        estimator: "closed_form", the root of the expected square of the derivative, without any randomness, for a
            normalisation or none and a two-layer perceptron, plain or gated; "zeroth_order", the mean norm of central
            differences along m random unit vectors, as published, for any projector.
        m: directions of the zeroth-order estimate.
        h: its step.
        seed: of its directions, which are the same for all tokens, units and calls.

    Where a patch merger makes one token of P patches, each of them moves along the same direction.
    """

    estimator: Estimator = "closed_form"
    m: int = 64
    h: float = 0.01
    seed: int = 0
    needs: ClassVar = frozenset({"encoder", "projection"})

    def __post_init__(self):
        if self.estimator not in get_args(Estimator):
            raise InvalidArgumentError(
                f"estimator={self.estimator!r} is not one of {', '.join(get_args(Estimator))}"
                f"{nearest(self.estimator, get_args(Estimator))}."
            )
        if type(self.m) is not int or self.m < 1:
            raise InvalidArgumentError(f"m={self.m!r} is no number of directions: give an int of 1 or more.")
        if not isinstance(self.h, (int, float)) or not 0.0 < self.h < math.inf:
            raise InvalidArgumentError(f"h={self.h!r} is no step: give a positive float such as 0.01.")
        if type(self.seed) is not int or not 0 <= self.seed < 2**31:
            raise InvalidArgumentError(f"seed={self.seed!r} is not an int in [0, 2**31): give such a seed.")

    def directions(self, width: int) -> Tensor:
        """[m, width] unit vectors, on the CPU and from a generator of their own."""
        u = torch.randn(self.m, width, generator=torch.Generator().manual_seed(self.seed))
        return u / (u.norm(dim=-1, keepdim=True) + 1e-12)

    def __call__(self, tokens: VisualTokens) -> Tensor:
        """[G, N] float32"""
        if self.estimator == "closed_form":
            return second_moment(tokens.projection.mlp(), tokens.encoder)
        u = sent(self.directions(tokens.encoder.shape[-1]), tokens.encoder.device)
        return zeroth_order(tokens.projection.exact, tokens.encoder, u, self.h)
