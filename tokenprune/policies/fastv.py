"""FastV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import InvalidArgumentError
from ..layers import Attention, Event
from ..registry import register
from .layer import LayerPolicy
from .schedule import layer_at


@register("fastv")
@dataclass(kw_only=True)
class FastV(LayerPolicy):
    """The tokens that the last word of the prompt attends to most, two layers in.

    s_j = mean over heads of A[last row, j] in layer K - 1; the k tokens of the largest s enter layer K.

    Attributes:
        layer: K, the first layer that reads the shortened sequence: an int of at least 1, or a float in (0, 1), that
            share of the decoder's depth, rounded down.

    Defaults: K = 2, as the paper's tables of latency; K = 3 with half of the tokens gone for quality.

    Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv 2403.06764.

    Differs from the released code: the row is that of the last valid token of each prompt, not of the last of the
    batch; the window is the image (the scripts start it one token late); chosen once, at prefill. `keep` is what is
    left, where the paper's R is what goes. The paper describes the attention a token receives on average, the code
    reads the last row; this follows the code.
    """

    layer: int | float = 2
    reads: ClassVar = "attention of the last word"
    cost: ClassVar = "H L d multiply-adds for L tokens in the prompt; H L floats"
    when: ClassVar = "Where the question decides what matters, at moderate budgets; costs next to nothing."
    limits: ClassVar = "Attention in early layers favours the end of the image (see `debiased`); repeats are all kept."

    def __post_init__(self):
        super().__post_init__()
        whole, share = type(self.layer) is int and self.layer >= 1, type(self.layer) is float and 0 < self.layer < 1
        if not whole and not share:
            raise InvalidArgumentError(f"layer={self.layer!r} is neither an int of at least 1 nor a float in (0, 1).")

    def events(self, depth: int) -> tuple[Event, ...]:
        drop = layer_at(self.layer, depth)
        if not 1 <= drop < depth:
            raise InvalidArgumentError(
                f"layer={self.layer!r} is layer {drop} of a decoder with {depth} layers: give an int from 1 to "
                f"{depth - 1}, or a share."
            )
        return (Event(drop=drop, score=drop - 1, rows="last"),)

    def score(self, attention: Attention, event: Event) -> Tensor:
        return attention.total() / attention.heads
