"""PyramidDrop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..budget import Rounding
from ..layers import Attention, Event
from ..registry import register
from .schedule import ScheduledPolicy


@register("pyramiddrop")
@dataclass(kw_only=True)
class PyramidDrop(ScheduledPolicy):
    """Half of the tokens go at each of several layers: those that the last word of the prompt attends to least.

    s_j = mean over heads of A[last row, j] as layer r itself would compute it with all tokens that are still there; the
    tokens of the largest s enter layer r. What stays after stage i is a share lambda^i of the unit as the language
    model got it, truncated, so rounding does not add up.

    Defaults: `layers` at a quarter, a half and three quarters of the depth, r = 8, 16, 24 of 32; without `keep` and
    `keeps`, lambda = 0.5: 0.5, 0.25, 0.125 are left, 0.47 on average over the layers. With `keep`, lambda is such that
    this is left in the end. `layers=(2, 10, 20), keeps=(0.32, 0.16, 0.08)` leaves 128 of 576 on average.

    Source: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
    Reduction", CVPR 2025, arXiv 2410.17247. The released code has layers 8, 16, 24 for decoders of 40 layers, too.

    Differs from the released code: queries and keys of layer r are made for the rows needed, where it projects all
    three for all rows; grouped heads work; every image of a prompt counts for itself, where it reads the first one's
    place and count; no prompt is cut at the end. The paper says last instruction token, the code takes the last token
    of the prompt, as here. Scores stay float32.
    """

    positions: ClassVar = "compact"
    lag: ClassVar = 0
    reads: ClassVar = "attention of the last word"
    cost: ClassVar = "per stage 2 L D^2 multiply-adds for the keys of layer r, and H L d; H L floats"
    when: ClassVar = "When early layers should see everything: tokens go gradually, as deeper layers need fewer."
    limits: ClassVar = (
        "Half of the prefill remains by default; attention favours the end of the image (see `debiased`)."
    )

    layers: tuple[int | float, ...] = (0.25, 0.5, 0.75)
    rounding: Rounding = "floor"

    @property
    def published(self) -> tuple[float, ...]:
        return tuple(0.5 ** (i + 1) for i in range(len(self.layers)))

    def score(self, attention: Attention, event: Event) -> Tensor:
        return attention.total() / attention.heads
