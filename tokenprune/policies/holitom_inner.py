"""HoliTom, inside the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..layers import Attention, Event, LayerTokens
from ..ops import fold_into_nearest, sizes_by_source, sum_by_source, top_k
from ..registry import register
from ..tokens import Selection
from .schedule import ScheduledPolicy


@register("holitom-inner")
@dataclass(kw_only=True)
class HoliTomInner(ScheduledPolicy):
    """The tokens that the last word attends to most; the others are folded into those they resemble.

    s_j = mean over heads of A[last row, j] in layer K - 1; the k tokens of the largest s enter layer K. Each of the
    others, in ascending order, is averaged with the survivor h of the largest cosine, h <- (h + x) / 2, so that a late
    one weighs most (`ops.fold_into_nearest`).

    Attributes:
        layers: K.

    Defaults: K = 18 of 28 layers, and half of the video's tokens left (`keep` is 1 - R). `keep` is of the video as it
    was encoded: behind `holitom` at 0.25, R = 0.5 is keep=0.125.

    Source: Shao et al., "HoliTom: Holistic Token Merging for Fast Video Large Language Models", NeurIPS 2025, arXiv
    2505.21334. Its other half is `holitom`.

    Differs from the released code: K is a share of the depth (the code's 18 is for 28 layers, 60 for 80 in a script
    that misses the switch); the row is that of the last valid token of each prompt.
    """

    kinds: ClassVar = frozenset({"video"})
    published: ClassVar = (0.5,)
    reads: ClassVar = "attention of the last word"
    cost: ClassVar = "H L d multiply-adds for L tokens in the prompt, (V - k) k D for cosines; 3 V D floats"
    when: ClassVar = "Behind `holitom`, or alone in late layers, where the question has been read."
    limits: ClassVar = "Two thirds of the layers see all tokens. A fold of many forgets all but its last few."

    layers: tuple[int | float, ...] = (18 / 28,)

    def score(self, attention: Attention, event: Event) -> Tensor:
        return attention.total() / attention.heads

    def select(self, tokens: LayerTokens, k: int) -> Selection:
        order = top_k(tokens.ranking, k)
        kept = order.sort(-1).values
        source, weights = fold_into_nearest(tokens.hidden, kept)
        return Selection(
            indices=kept,
            order=order,
            scores=tokens.ranking,
            features=sum_by_source(tokens.hidden, source, k, weights).to(tokens.hidden.dtype),
            source=source,
            sizes=sizes_by_source(source, k),
            weights=weights,
        )
