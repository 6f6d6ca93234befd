"""Where in a decoder the text stops looking at the picture as it did, and how many tokens hold its attention there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..layers import Attention, Event
from .watch import Batch, Watch, watch


def detect_schedule(model: Any, batches: Iterable[Batch], *, drops: int = 3, coverage: float = 0.9) -> dict[str, Any]:
    """Layers and shares for `AdaptInfer`: `AdaptInfer.from_schedule` reads them from the JSON of this.

    Over layers l, m_l is the attention that words give to visual tokens, mean over words, heads and prompts, and
    C_p = m_0 + ... + m_(p-1) its cumulative curve. The `drops` points where straight lines that meet there fit the
    curve best (`change_points`) are where the text begins to look more, or less; tokens leave the input of layer p, so
    l = p - 1 in AdaptInfer's numbering. What stays is the mean share of visual tokens that hold `coverage` of the
    attention that a prompt's picture gets in layer l, or what an earlier drop left, where that is less.

    AdaptInfer's authors tell that they look for changes of cumulative text-to-vision attention over more than 1000
    samples, and publish neither the detector nor how shares are found: this definition of both is ours.

    Args:
        model: a loaded vision-language model that is not wrapped.
        batches: arguments of a forward, or (arguments, [(width, height) of every picture]).
        drops: how many layers drop tokens.
        coverage: share of the attention that the tokens left should hold, in (0, 1].

    Returns:
        {"model_type", "depth", "samples" (prompts), "coverage", "layers" (l of every drop), "keeps" (shares of the
        tokens that the language model got), "curve" (m_l), "shares" (of tokens that hold `coverage`, per layer)}. The
        last layer is not looked at: nothing can leave behind it.

    Raises:
        InvalidArgumentError: a decoder with too few layers for that many drops, or prompts without a picture or text.
    """
    if type(drops) is not int or drops < 1:
        raise InvalidArgumentError(f"drops={drops!r} is not an int of at least 1: give how many layers drop tokens.")
    if not (type(coverage) in (int, float) and 0 < coverage <= 1):
        raise InvalidArgumentError(f"coverage={coverage!r} is not in (0, 1]: give a share of the attention.")
    notes: list[list[tuple[float, float]]] = []

    def note(layer: int, found: list[tuple[float, float]]) -> None:
        while len(notes) <= layer:
            notes.append([])
        notes[layer] += found

    watch(model, EveryLayer(note=note, coverage=coverage, drops=drops), batches)
    samples = len(notes[0]) if notes else 0
    if not samples:
        raise InvalidArgumentError("batches hold no prompt with both a picture and text behind it: give some.")
    curve, shares = ([sum(one[i] for one in layer) / samples for layer in notes] for i in range(2))
    cumulative = [0.0]
    for mass in curve:
        cumulative.append(cumulative[-1] + mass)
    layers = [p - 1 for p in change_points(cumulative, drops)]
    keeps: list[float] = []
    for layer in layers:
        keeps.append(min([max(round(shares[layer], 4), 1e-4), *keeps[-1:]]))
    return {
        "model_type": model.config.model_type,
        "depth": len(curve) + 1,
        "samples": samples,
        "coverage": coverage,
        "layers": layers,
        "keeps": keeps,
        "curve": [round(mass, 6) for mass in curve],
        "shares": [round(share, 6) for share in shares],
    }


@dataclass(kw_only=True)
class EveryLayer(Watch):
    """Notes, layer by layer, how much attention text gives to visual tokens, and the share of them that holds most."""

    note: Callable[[int, list[tuple[float, float]]], None]
    coverage: float
    drops: int

    def events(self, depth: int) -> tuple[Event, ...]:
        if depth < self.drops + 2:
            raise InvalidArgumentError(
                f"drops={self.drops} are too many for a decoder with {depth} layers: give at most {max(depth - 2, 0)}."
            )
        return tuple(Event(drop=i + 1, score=i, rows="text", number=i) for i in range(depth - 1))

    def score(self, attention: Attention, event: Event) -> Tensor:
        scores = attention.total() / (attention.heads * attention.count())
        ranked = (scores * attention.visual).cpu().double().sort(1, descending=True).values
        mass, n = ranked.sum(1), attention.visual.sum(1).cpu()
        # places before the one where the sum reaches the coverage, and that one
        holding = (ranked.cumsum(1) < self.coverage * mass[:, None] * (1 - 1e-9)).sum(1) + 1
        share = holding.minimum(n).double() / n.clamp_min(1)
        there = (n > 0) & attention.row_mask.any(1).cpu()
        self.note(event.number, list(zip(mass[there].tolist(), share[there].tolist(), strict=True)))
        return scores


def change_points(curve: list[float], count: int) -> list[int]:
    """The places in a curve, ascending, where `count` + 1 straight lines over the stretches between them fit it best.

    Least squares, exact by dynamic programming. Both lines at a change point cover it; none spans fewer than two steps
    as long as the curve has enough of them.

    Raises:
        InvalidArgumentError: more lines than steps.
    """
    last = len(curve) - 1
    if count + 1 > last:
        raise InvalidArgumentError(f"count={count} change points are too many for a curve of {last} steps.")
    least = 2 if 2 * (count + 1) <= last else 1
    error = {(i, j): _residual(curve[i : j + 1]) for i in range(last) for j in range(i + least, last + 1)}
    best = {j: (error[0, j], []) for j in range(least, last + 1)}
    for _ in range(count):
        best = {
            j: min(
                ((best[i][0] + error[i, j], [*best[i][1], i]) for i in best if (i, j) in error),
                key=lambda found: found[0],
            )
            for j in range(min(best) + least, last + 1)
        }
    return best[last][1]


def _residual(y: list[float]) -> float:
    """Squared error of the best straight line through equally spaced values."""
    if len(y) < 3:
        return 0.0
    values = torch.tensor(y, dtype=torch.float64)
    x = torch.arange(len(y), dtype=torch.float64) - (len(y) - 1) / 2
    centred = values - values.mean()
    return float((centred - x * (x @ centred) / (x @ x)).square().sum())
