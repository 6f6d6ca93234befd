"""`debiased`, for policies and for parts of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..ops.padding import Padding
from ..tokens import VisualTokens
from .base import Policy
from .debiasing import Debiased
from .layer import LayerPolicy
from .trend import Trend


@dataclass(kw_only=True)
class DebiasedScore:
    """A score of visual tokens without its trend over places: what `debiased` makes of `VisionAttention()`.

    Places are those of the sequence, 0..N-1, so the trend has to be one of units that were not pruned before.

    Attributes:
        inner: maps `VisualTokens` to a [G, N].
        trend: to divide by.
    """

    inner: Callable[[VisualTokens], Tensor]
    trend: Trend

    @property
    def needs(self) -> frozenset:
        return getattr(self.inner, "needs", frozenset())

    def __call__(self, tokens: VisualTokens) -> Tensor:
        """[G, N] float32"""
        scores = self.inner(tokens).float()
        place = torch.arange(scores.shape[1], device=scores.device)
        return scores * self.trend.weights(place.expand_as(scores), scores.shape[1])


def debiased(
    inner: LayerPolicy | str | Callable[[VisualTokens], Tensor],
    *,
    trend: Trend | str | Path | None = "published",
    padding: Padding | None = None,
    threshold: float = 0.5,
) -> Debiased | DebiasedScore:
    """Attention Debiasing around whatever ranks by attention: see `Debiased`.

    Of a policy inside the language model it makes a policy. Of a part that scores tokens by attention in the vision
    tower it makes a part, `FasterVLM(attention=debiased(VisionAttention(), trend=...))`. Causal attention is what makes
    a language model favour late tokens. In a tower every token sees every other: debias it only where its own mean over
    many pictures has such a trend. A part is shown no sizes of pictures, so it has no `padding`.

    Raises:
        InvalidArgumentError: there is no such trend, or `inner` scores nothing.
    """
    if isinstance(inner, (str, LayerPolicy)):
        return Debiased(inner=inner, trend=trend, padding=padding, threshold=threshold)
    if isinstance(inner, (Policy, type)) or not callable(inner):
        raise InvalidArgumentError(
            f"inner={inner!r} is neither a policy at stage 'layer' nor a score of visual tokens: debias what a policy "
            "ranks by, as in FasterVLM(attention=debiased(VisionAttention(), trend=...))."
        )
    if padding is not None:
        raise InvalidArgumentError(
            f"padding={padding!r} needs the sizes of pictures, which a score in the tower is not shown: leave it None."
        )
    trend = Trend.of(trend, type(inner).__name__)
    if trend is None:
        raise InvalidArgumentError("trend=None corrects nothing: give a Trend or the path of one.")
    return DebiasedScore(inner=inner, trend=trend)
