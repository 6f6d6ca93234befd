"""How a policy's scores grow over the places of a unit, on average over calibration prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, InvalidFeaturesError
from ..layers import Attention, Event, LayerTokens
from ..ops.padding import Padding
from ..policies.layer import LayerPolicy
from ..policies.padded import check_padding, shows_picture
from ..policies.trend import Kind, Trend
from ..registry import get_policy
from ..tokens import Selection
from .watch import Batch, Watch, watch

STEEPEST = 30.0  # |b| that is looked for: e^30 from one end of a picture to the other
ENOUGH = 500  # units below which a fit is warned about


def fit_trend(
    model: Any,
    policy: LayerPolicy | str,
    batches: Iterable[Batch],
    *,
    kind: Kind = "exponential",
    padding: Padding | None = None,
    threshold: float = 0.5,
) -> Trend:
    """The trend of a policy's scores on a model, for `debiased(policy, trend=...)`.

    The scores of the policy's first event, of every unit (image) of every prompt, each unit divided by its mean, are
    regressed on x = place / (tokens - 1): least squares of a exp(b x) or of a cubic, in float64, every unit with the
    same weight. Nothing is pruned. The paper does not tell its way; this one is ours.

    Args:
        model: a loaded vision-language model that is not wrapped.
        policy: at stage "layer", or the name of one. Where it scores matters, its budget does not.
        batches: arguments of a forward, or (arguments, [(width, height) of every picture]). Pictures and questions of
            the kind that the model will be asked, not those it will be measured on.
        kind: of the trend.
        padding: leave out tokens that show padding, told as `Debiased` does; takes the sizes.
        threshold: largest share of padding in a cell of the picture.

    Returns:
        The trend. Its `facts` have the number of units ("samples") and the share of the variance of the mean profile
        that it explains ("r2").

    Raises:
        InvalidArgumentError: nothing that a trend can be fitted to.
        InvalidFeaturesError: a score that is negative, or not finite.
    """
    check_padding(padding, threshold)
    policy = get_policy(policy)() if isinstance(policy, str) else policy
    if not isinstance(policy, LayerPolicy):
        raise InvalidArgumentError(f"policy={policy!r} is no policy at stage 'layer': give FastV(), say.")
    if kind not in FITS:
        raise InvalidArgumentError(f"kind={kind!r} is not one of {', '.join(FITS)}.")
    profile = Profile()

    def note(tokens: LayerTokens) -> None:
        shown = None if padding is None else shows_picture(tokens, padding, threshold)
        profile.add(tokens.scores, tokens.place, tokens.total, shown)

    watch(model, FirstEvent(inner=policy, note=note, per=policy.per), batches)
    if profile.units < ENOUGH:
        warnings.warn(
            f"a trend fitted to {profile.units} units is rough: give at least {ENOUGH}, of pictures and questions that "
            "differ.",
            stacklevel=2,
        )
    coefficients, r2 = FITS[kind](*profile.points())
    facts = {"policy": policy.name, "model_type": model.config.model_type, "samples": profile.units, "r2": round(r2, 6)}
    return Trend(kind=kind, coefficients=coefficients, facts=facts)


@dataclass(kw_only=True)
class FirstEvent(Watch):
    """Notes the scores of another policy's first event."""

    inner: LayerPolicy
    note: Callable[[LayerTokens], None]

    def events(self, depth: int) -> tuple[Event, ...]:
        events = self.inner.events(depth)[:1]
        if events[0].score is None:
            raise InvalidArgumentError(f"policy={self.inner.name!r} looks at no attention: its scores have no trend.")
        return events

    def raters(self, x: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        return self.inner.raters(x, visual, text)

    def score(self, attention: Attention, event: Event) -> Tensor:
        return self.inner.score(attention, event)

    def select(self, tokens: LayerTokens, k: int) -> Selection:
        self.note(tokens)
        return super().select(tokens, k)


class Profile:
    """Sums of scores by place, for units of every size met."""

    def __init__(self):
        self.units = 0
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, scores: Tensor, place: Tensor, total: int, shown: Tensor | None = None) -> None:
        """Scores [G, N] of tokens at `place` [G, N] of units of `total`; those not `shown` [G, N] do not count."""
        scores, place = scores.detach().cpu().double(), place.cpu()
        shown = torch.ones_like(place, dtype=torch.bool) if shown is None else shown.cpu()
        if not (scores[shown] >= 0).all() or scores[shown].isinf().any():
            raise InvalidFeaturesError("scores hold a number that is negative or not finite: a trend is one of shares.")
        mean = (scores * shown).sum(1, keepdim=True) / shown.sum(1, keepdim=True).clamp_min(1)
        shown = shown & (mean > 0)  # a unit that gets no attention at all says nothing
        scores = torch.where(shown, scores / mean, 0.0)
        sums, counts = self._sums.setdefault(total, (torch.zeros(total).double(), torch.zeros(total).double()))
        sums.index_add_(0, place.flatten(), scores.flatten())
        counts.index_add_(0, place.flatten(), shown.double().flatten())
        self.units += int(shown.any(1).sum())

    def points(self) -> tuple[Tensor, Tensor, Tensor]:
        """x, mean score there, and its weight: how many units it is of, over their size. All [P] float64."""
        if not self.units:
            raise InvalidArgumentError("batches hold no visual token that gets attention: give prompts with pictures.")
        parts = []
        for total, (sums, counts) in sorted(self._sums.items()):
            x = torch.arange(total).double() / max(total - 1, 1)
            there = counts > 0
            parts.append((x[there], sums[there] / counts[there], counts[there] / total))
        return tuple(map(torch.cat, zip(*parts, strict=True)))


def fit_exponential(x: Tensor, y: Tensor, weight: Tensor) -> tuple[tuple[float, ...], float]:
    """(b,) of a exp(b x) with the least weighted squares, and the share of the variance explained.

    For every b the best a is known, so the search is over b alone: a scan, then golden sections around its best.
    """
    _enough_places(x, 2)

    def loss(b: float) -> float:
        shape = (b * (x - 0.5)).exp()
        return -float((weight * y * shape).sum() ** 2 / (weight * shape * shape).sum())

    step = 0.1
    grid = [i * step for i in range(-round(STEEPEST / step), round(STEEPEST / step) + 1)]
    middle = min(grid, key=loss)
    low, high, golden = middle - step, middle + step, (5**0.5 - 1) / 2
    for _ in range(60):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    b = (low + high) / 2
    shape = (b * (x - 0.5)).exp()
    return (b,), _explained(y, weight, shape * (weight * y * shape).sum() / (weight * shape * shape).sum())


def fit_cubic(x: Tensor, y: Tensor, weight: Tensor) -> tuple[tuple[float, ...], float]:
    """(c1, c2, c3) of a (1 + c1 x + c2 x^2 + c3 x^3), likewise."""
    _enough_places(x, 4)
    powers, root = torch.stack([x**i for i in range(4)], 1), weight.sqrt()[:, None]
    found = torch.linalg.lstsq(powers * root, y[:, None] * root).solution
    return tuple((found[1:, 0] / found[0, 0]).tolist()), _explained(y, weight, (powers @ found)[:, 0])


FITS = {"exponential": fit_exponential, "cubic": fit_cubic}


def _enough_places(x: Tensor, least: int) -> None:
    if len(x.unique()) < least:
        raise InvalidArgumentError(
            f"batches hold units with {len(x.unique())} different places, and a trend takes {least}: give larger "
            "pictures."
        )


def _explained(y: Tensor, weight: Tensor, fitted: Tensor) -> float:
    mean = (weight * y).sum() / weight.sum()
    spread = float((weight * (y - mean) ** 2).sum())
    if spread <= 1e-12 * float((weight * y * y).sum()):
        return 1.0  # all equal: nothing to explain
    return 1.0 - float((weight * (y - fitted) ** 2).sum()) / spread
