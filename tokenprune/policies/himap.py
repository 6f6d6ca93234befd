"""HiMAP."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..errors import InvalidArgumentError
from ..layers import Attention, Event
from ..registry import register
from .schedule import ScheduledPolicy


@register("himap")
@dataclass(kw_only=True)
class HiMAP(ScheduledPolicy):
    """First the tokens that the text attends to, some layers later those that the image itself attends to.

    Text stage, before layer a: s_j = sum over all text rows t of the mean over heads of A[t, j] in layer a - 1.
    Image stage, before layer b: s_j = sum over the visual rows i still there of the mean over heads of A[i, j] in
    layer b - 1. The tokens of the largest s stay, at their positions.

    Attributes:
        layers: a and b.
        keeps: what each stage leaves.

    Defaults: a = 2 and b = 8 of 32 layers; without `keep` and `keeps`, 115 and 90 of 576 tokens (125 on average over
    the layers).

    Source: Yin et al., "Lifting the Veil on Visual Information Flow in MLLMs: Unlocking Pathways to Faster Inference",
    CVPR 2025, arXiv 2503.13108. The budget is that of the released code of Attention Debiasing, arXiv 2508.17807.

    Differs from the released code: no attention map is kept, so it runs beside any attention kernel; batches and
    several images.
    """

    published: ClassVar = (115 / 576, 90 / 576)
    reads: ClassVar = "attention of all words, then of all tokens"
    cost: ClassVar = "H T L d and H N L d multiply-adds for T words and N tokens left; a block of attention rows"
    when: ClassVar = "Small budgets from an early layer on, where the question is long enough to point at things."
    limits: ClassVar = "Only later rows see a token, so the image stage favours the start of the image."

    layers: tuple[int | float, ...] = (2 / 32, 8 / 32)

    def __post_init__(self):
        super().__post_init__()
        if len(self.layers) != 2:
            raise InvalidArgumentError(
                f"layers={self.layers!r} are {len(self.layers)}: give two, of the text stage and of the image stage."
            )

    def events(self, depth: int) -> tuple[Event, ...]:
        stages = zip(super().events(depth), ("text", "visual"), strict=True)
        return tuple(replace(event, rows=rows) for event, rows in stages)

    def score(self, attention: Attention, event: Event) -> Tensor:
        return attention.total() / attention.heads
