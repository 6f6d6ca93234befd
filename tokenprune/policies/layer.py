"""What policies share that work inside the language model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..errors import InvalidArgumentError
from ..layers import Attention, Event, LayerTokens
from ..ops import top_k
from ..tokens import Selection
from .base import Policy


@dataclass(kw_only=True)
class LayerPolicy(Policy):
    """Works between layers of the language model: scores tokens by attention, once or several times."""

    stage: ClassVar[str] = "layer"
    needs: ClassVar = frozenset()
    reads: ClassVar[str] = ""  # for `tokenprune show`: whose attention
    budgeted: ClassVar[bool] = False  # has a budget without `keep`
    everywhere: ClassVar[bool] = False  # asked about units that lose nothing, too

    @property
    def exact(self) -> bool:
        """Whether every answer has exactly k tokens. Where not, units are asked one at a time."""
        return True

    def events(self, depth: int) -> tuple[Event, ...]:
        """When tokens are scored and when they leave, in a decoder of `depth` layers; drop ascending.

        Raises:
            InvalidArgumentError: a layer that such a decoder does not have.
        """
        raise NotImplementedError

    def count(self, event: Event, total: int) -> int:
        """Tokens that an event leaves of a unit that had `total` before any event; where fewer are there, all."""
        return self.budget.count(total)

    def raters(self, x: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        """[B, L] bool, positions of the rows of events whose `rows` are "raters".

        Args:
            x: [B, L, D], the decoder's input.
            visual, text: [B, L] bool, as in `Attention`.
        """
        raise NotImplementedError

    def score(self, attention: Attention, event: Event) -> Tensor:
        """[B, L] float32, higher is better; only visual positions are read."""
        raise NotImplementedError

    def select(self, tokens: LayerTokens, k: int) -> Selection:
        """Choose or merge down to k of the N tokens of each unit. The runtime calls it with 1 <= k < N only."""
        return Selection.subset(top_k(tokens.ranking, k), scores=tokens.ranking)


def mean_share(policy: LayerPolicy, depth: int, total: int) -> float:
    """Mean share of a unit's `total` visual tokens over the layers that process them."""
    left, at, tokens = total, 0, 0
    for event in policy.events(depth):
        tokens += left * (event.drop - at)
        left, at = min(left, policy.count(event, total)), event.drop
    return (tokens + left * (depth - at)) / (depth * total)


def at_mean(policy: LayerPolicy, share: float, *, depth: int, total: int) -> LayerPolicy:
    """The policy with the `keep` that leaves, on average over the layers, a share of the visual tokens, or just less.

    Args:
        policy: with `keep` or without; `keeps` must be None.
        share: of all visual tokens that a layer processes on average.
        depth: layers of the decoder.
        total: visual tokens of a unit, as the language model gets them.

    Raises:
        InvalidArgumentError: the layers before the first drop alone process more than that.
    """
    fitting = [k for k in range(1, total + 1) if mean_share(replace(policy, keep=k), depth, total) <= share + 1e-9]
    if not fitting:
        least = mean_share(replace(policy, keep=1), depth, total)
        raise InvalidArgumentError(
            f"share={share} cannot be reached: {policy.name!r} processes {least:.3f} of the tokens on average where "
            "one is left in the end: drop in earlier layers."
        )
    return replace(policy, keep=fitting[-1])
