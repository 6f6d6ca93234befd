"""The router of FTP: says of every token and every block whether the token may skip the block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, PredictorError
from .base import Predictor

FACTORS = 4


class TokenRouter(Predictor):
    """One MLP for all blocks, 4 -> `hidden` -> 2 logits (skip, keep), that never sees a hidden state.

    Its factors of a token x in front of block i: place / n; log(1 + a / mean a), where a is the attention that x got in
    the last block that computed it (1 / n before there is any); the share of tokens with a larger a; s_i.

    Args:
        schedules: shares of tokens s_0 ... s_(L-1) that skip each block, one list for every mean that was searched.
        rows: so many of the last tokens that a block computes say how much attention each token gets.
        hidden: width.
        base: see `Predictor`.

    The paper names the four factors and the MLP's sizes. Their scales, and the logarithm, are designed here.
    """

    kind: ClassVar[str] = "ftp"

    def __init__(
        self,
        *,
        schedules: Sequence[Sequence[float]] = (),
        rows: int = 16,
        hidden: int = 64,
        base: dict[str, Any] | None = None,
    ):
        super().__init__(base=base)
        self.schedules, self.rows = [list(one) for one in schedules], rows
        for one in self.schedules:
            if len(one) != len(self.schedules[0]) or not all(0 <= share <= 1 for share in one):
                raise InvalidArgumentError(f"schedules has {one}: give as many shares from 0 to 1 as there are blocks.")
        self.mlp = nn.Sequential(nn.Linear(FACTORS, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, place: Tensor, real: Tensor, scores: Tensor, sparsity: float) -> Tensor:
        """Logits (skip, keep), [B, L, 2] float32.

        Args:
            place: [B, L] long, of each token in its prompt, from 0.
            real: [B, L] bool, False at padding.
            scores: [B, L] float32, attention each got last; anything at padding.
            sparsity: s_i.
        """
        n = real.sum(1, keepdim=True).clamp_min(1)
        scores = scores.float().masked_fill(~real, 0.0)
        mean = (scores.sum(1, keepdim=True) / n).clamp_min(1e-12)
        ascending = scores.masked_fill(~real, torch.inf).sort(1).values
        larger = n - torch.searchsorted(ascending, scores.contiguous(), right=True).minimum(n)
        factors = (place / n, (scores / mean).log1p(), larger / n, torch.full_like(scores, sparsity))
        return self.mlp(torch.stack([one.float() for one in factors], -1))

    def __repr__(self) -> str:
        return f"TokenRouter({self.parameters_count} parameters, {len(self.schedules)} schedules)"

    def schedule_at(self, sparsity: float) -> tuple[float, ...] | None:
        """Shares of every block with this mean, between the two schedules searched for the nearest means (none skips
        anything at 0); None where none was searched.

        Raises:
            PredictorError: a larger mean than any that was searched.
        """
        if not self.schedules:
            return None
        known = [[0.0] * len(self.schedules[0]), *sorted(self.schedules, key=sum)]
        means = [sum(one) / len(one) for one in known]
        above = next((i for i, mean in enumerate(means) if mean >= sparsity - 1e-6), None)
        if above is None:
            raise PredictorError(
                f"sparsity={sparsity} is above {means[-1]:.3g}, the largest mean that the predictor has a schedule "
                "for: give less, or a schedule of your own."
            )
        below = max(above - 1, 0)
        span = means[above] - means[below]
        part = (sparsity - means[below]) / span if span > 0 else 0.0
        return tuple(min(1.0, max(0.0, a + part * (b - a))) for a, b in zip(known[below], known[above], strict=True))
