"""Random choice between layers: the control of every policy there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..layers import Event, LayerTokens
from ..ops import draw, sent
from ..registry import register
from ..tokens import Selection
from .baselines import Random
from .schedule import ScheduledPolicy


@register("random-layers")
@dataclass(kw_only=True)
class RandomLayers(ScheduledPolicy):
    """Uniformly random subsets of what is left, at the layers and counts of any schedule. Looks at no attention.

    The same for the same seed, prompt and event whatever the batch around it or the device.

    Attributes:
        layers: tokens leave the input of these, so K for FastV and PyramidDrop, one more than the papers' numbers for
            SparseVLM and AdaptInfer.
        seed: change it to draw other subsets.

    Defaults: those of `pyramiddrop`; half of the tokens go at every layer, without `keep` and `keeps`.
    """

    cost: ClassVar = "one permutation of the tokens left on the CPU, per event"
    when: ClassVar = "As the control that a score inside the language model has to beat, at the same layers and counts."
    limits: ClassVar = "Small things are lost by chance: average over seeds."

    layers: tuple[int | float, ...] = (0.25, 0.5, 0.75)
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        Random(seed=self.seed)

    @property
    def published(self) -> tuple[float, ...]:
        return tuple(0.5 ** (i + 1) for i in range(len(self.layers)))

    def events(self, depth: int) -> tuple[Event, ...]:
        return tuple(replace(event, score=None) for event in super().events(depth))

    def select(self, tokens: LayerTokens, k: int) -> Selection:
        order = draw(tokens.keys, tokens.shape[1], k, seed=self.seed, number=tokens.event.number)
        return Selection.subset(sent(order, tokens.hidden.device))
