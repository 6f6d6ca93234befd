"""Random choice inside the vision transformer: the control of every policy there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..blocks import BlockTokens, Grid, Reduction
from ..errors import InvalidArgumentError
from ..ops import draw
from ..registry import register
from .baselines import Random
from .evit import EViT
from .tome import ToMe
from .vision import VisionPolicy


@register("random-blocks")
@dataclass(kw_only=True)
class RandomBlocks(VisionPolicy):
    """Uniformly random subsets of the patches, at the blocks and counts of ToMe or EViT. Looks at nothing.

    The same places for all images, from the seed and the number of the block alone; those left stay in order.

    Attributes:
        r: as of `tome`: so many leave each block.
        blocks: as of `evit`: only there tokens leave. None: in every block, as with `tome`.
        keep_rate: as of `evit`, with `blocks`; its fused token is counted, so counts are the same.
        seed: change it to draw other subsets.
    """

    cost: ClassVar = "one permutation of the patches left on the CPU, per block"
    when: ClassVar = "As the control that merging and class attention have to beat, at the same blocks and counts."
    limits: ClassVar = "Small things are lost by chance: average over seeds."
    budgeted = property(lambda self: self._like.budgeted)

    r: int | list[int] | tuple[int, float] | None = None
    blocks: tuple[int | float, ...] | None = None
    keep_rate: float | None = None
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        Random(seed=self.seed)
        if self.blocks is not None and self.r is not None:
            raise InvalidArgumentError(f"r={self.r!r} and blocks={self.blocks!r} are both given: drop one of them.")
        if self.blocks is None and self.keep_rate is not None:
            raise InvalidArgumentError(f"keep_rate={self.keep_rate!r} is given without blocks: give both.")
        _ = self._like  # which looks at the values

    @property
    def _like(self) -> VisionPolicy:
        budget = {"keep": self.keep, "rounding": self.rounding}
        if self.blocks is None:
            return ToMe(r=self.r, **budget)
        return EViT(keep_rate=self.keep_rate, blocks=self.blocks, **budget)

    def counts(self, depth: int, total: int, grid: Grid | None = None) -> list[int]:
        return self._like.counts(depth, total, grid)

    def reduce(self, tokens: BlockTokens, k: int) -> Reduction:
        (g, n), p = tokens.shape, tokens.prefix
        drawn = p + draw([0], n - p, k, seed=self.seed, number=tokens.block).sort(-1).values
        order = torch.cat([torch.arange(p)[None], drawn], 1)
        return Reduction(order=order.to(tokens.hidden.device, non_blocking=True).expand(g, -1))
