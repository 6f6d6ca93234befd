"""Attention Debiasing, around any policy that ranks by attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..budget import Quota, Rounding, Unit, Whole
from ..errors import InvalidArgumentError
from ..layers import Attention, Event, LayerTokens
from ..ops.padding import Padding
from ..registry import get_policy, register
from ..tokens import Selection
from .layer import LayerPolicy
from .padded import check_padding, shows_picture
from .trend import Trend

_BUDGET = ("keep", "per", "rounding", "of", "quota")


@register("debiased")
@dataclass(kw_only=True)
class Debiased(LayerPolicy):
    """Another policy with its attention freed of recency and of padding: `debiased(FastV(keep=64), padding="area")`.

    s'_j = s_j w_j c_j for the j-th of V tokens of a unit, in the first event of `inner` alone; later ones see its own
    scores, and so does what `inner` merges by.
    w_j = f(0) / f(x_j), x_j = j / (V - 1): undoes the `Trend` f that scores have over places, whatever the picture.
    c_j = 0 where the cell of token j shows padding, known from the picture's size; else 1. Where the picture has fewer
    than k tokens, padding follows in raster order, so that k stay.

    Attributes:
        inner: policy at stage "layer" whose scores are corrected, or its name. Fields of the budget that are None are
            its own.
        trend: "published" (that of `inner` in the paper, for LLaVA-1.5), the path of one from `tokenprune train
            debias`, a `Trend`, or None for w = 1.
        padding: how cells of a picture that the processor pastes in the middle of a square are told from padding, given
            `handle.image_sizes`: "area" (exact share), "crop" (whole cells) or "bilinear" (Pillow's, of a 0/1 picture).
            Only units of one square grid have c; None for c = 1, as for processors that do not pad.
        threshold: largest share of padding in a cell of the picture.

    Defaults: the released hosts have "area" at 0.5 (FastV, HiMAP, TokenCarve) or 0.01 (PyramidDrop), "bilinear" at 0.5
    (SparseVLM), and "crop" in FastV without w.

    Source: Attention Debiasing for Token Pruning in Vision-Language Models, arXiv 2508.17807.

    Differs from the released code: one trend for all questions, the mean of its rates over benchmarks, where it has one
    for each (`Trend.published("himap", "gqa")`); over x, so that units of any size have one; FastV still keeps k where
    the picture has fewer tokens, with padding, and does drop tokens instead of masking them.
    """

    reads: ClassVar = "what `inner` reads"
    cost: ClassVar = "that of `inner`, and a product per token; 2 N floats"
    when: ClassVar = "Around policies that score in early layers and favour the end of the image, or pad pictures."
    limits: ClassVar = (
        "Published trends are of LLaVA-1.5 and its prompts: fit your own model's. Where the end matters more by nature "
        "(documents), the trend takes that away, too."
    )

    inner: LayerPolicy | str | None = None
    trend: Trend | str | Path | None = "published"
    padding: Padding | None = None
    threshold: float = 0.5
    keep: int | float | None = None
    per: Unit | None = None
    rounding: Rounding | None = None
    of: Whole | None = None
    quota: Quota | None = None

    def __post_init__(self):
        inner = get_policy(self.inner)() if isinstance(self.inner, str) else self.inner or LayerPolicy()
        if not isinstance(inner, LayerPolicy):
            raise InvalidArgumentError(f"inner={inner!r} is no policy at stage 'layer': give FastV(keep=...), say.")
        given = {name: value for name in _BUDGET if (value := getattr(self, name)) is not None}
        self.inner = replace(inner, **given)
        vars(self).update({name: getattr(self.inner, name) for name in (*_BUDGET, "kinds")})
        check_padding(self.padding, self.threshold)
        if self.trend is None and self.padding is None:
            raise InvalidArgumentError("trend=None and padding=None correct nothing: give one of them.")
        if type(inner) is not LayerPolicy:
            self.trend = Trend.of(self.trend, inner.name)

    budgeted = property(lambda self: self.inner.budgeted)
    positions = property(lambda self: self.inner.positions)
    everywhere = property(lambda self: self.inner.everywhere)
    exact = property(lambda self: self.inner.exact)

    def events(self, depth: int) -> tuple[Event, ...]:
        if type(self.inner) is LayerPolicy:
            raise InvalidArgumentError(
                "inner=None leaves 'debiased' nothing to correct: give debiased(FastV(keep=...))."
            )
        events = self.inner.events(depth)
        if events[0].score is None:
            raise InvalidArgumentError(f"inner={self.inner.name!r} looks at no attention at first: nothing to correct.")
        return events

    def count(self, event: Event, total: int) -> int:
        return self.inner.count(event, total)

    def raters(self, x: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        return self.inner.raters(x, visual, text)

    def score(self, attention: Attention, event: Event) -> Tensor:
        return self.inner.score(attention, event)

    def select(self, tokens: LayerTokens, k: int) -> Selection:
        if tokens.event.number == 0:
            weights = torch.ones_like(tokens.scores) if tokens.weights is None else tokens.weights
            if self.trend is not None:
                weights = weights * self.trend.weights(tokens.place, tokens.total)
            if self.padding is not None:
                weights = weights * shows_picture(tokens, self.padding, self.threshold)
            tokens = replace(tokens, weights=weights)
        return self.inner.select(tokens, k)
