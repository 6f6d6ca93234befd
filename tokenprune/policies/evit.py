"""EViT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..blocks import BlockTokens, Grid, Reduction
from ..errors import InvalidArgumentError
from ..ops import top_k
from ..registry import register
from .schedule import layer_at
from .vision import VisionPolicy


@register("evit")
@dataclass(kw_only=True)
class EViT(VisionPolicy):
    """The tokens that the class token attends to go on, the others fused into one. In three blocks.

    Between attention and MLP of such a block with n patches X [n, D]: c_j = mean over heads of the class token's
    attention to patch j in this block. The ceil(keep_rate n) patches of the largest c stay, by falling c. One more
    token, the sum of c_j x_j over those dropped, not divided by anything, stands behind them; it is a token like others
    later on.

    Attributes:
        keep_rate: share that each of `blocks` leaves. Excludes `keep`, which is the tokens left behind the last of
            them, reached in equal ratios, the fused one among them.
        blocks: which, ascending: ints from 0, or floats in [0, 1), that share of the depth, rounded down. Shares that
            fall on one block count once. A block that would leave as many tokens as it has is left out.
        fuse: add the fused token.

    Defaults: keep_rate 0.7, fused, at blocks 3, 6 and 9 of 12.

    Source: Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
    ICLR 2022, arXiv 2202.07800.

    Differs from the paper: models there are trained with it, the keep rate falling from 1; here any model is.
    """

    reads: ClassVar = frozenset({"class_attention"})
    cost: ClassVar = "n (d + D) multiply-adds and a sort per block that drops, for keys of width d"
    when: ClassVar = "Classifiers whose answer is read off the class token: it says itself what it looks at."
    limits: ClassVar = "Needs a class token, and drops by what it attends to half way; made for models trained with it."

    keep_rate: float | None = None
    blocks: tuple[int | float, ...] = (0.25, 0.5, 0.75)
    fuse: bool = True

    def __post_init__(self):
        super().__post_init__()
        rate = self.keep_rate
        if rate is not None and self.keep is not None:
            raise InvalidArgumentError(f"keep={self.keep!r} and keep_rate={rate!r} are both given: drop one of them.")
        if rate is not None and (type(rate) not in (int, float) or not 0 < rate <= 1):
            raise InvalidArgumentError(f"keep_rate={rate!r} is not in (0, 1]: give such a share.")
        if not isinstance(self.blocks, (tuple, list)) or not self.blocks:
            raise InvalidArgumentError(f"blocks={self.blocks!r} is no tuple with at least one block: give one.")
        self.blocks = tuple(self.blocks)
        for block in self.blocks:
            if not (block >= 0 if type(block) is int else type(block) is float and 0 <= block < 1):
                raise InvalidArgumentError(
                    f"blocks={self.blocks!r} has {block!r}: give ints from 0, or floats in [0, 1) for shares of depth."
                )

    def places(self, depth: int) -> list[int]:
        """The blocks that drop, of `depth`."""
        places = [layer_at(block, depth) for block in self.blocks]
        if places != sorted(places) or places[-1] >= depth:
            raise InvalidArgumentError(
                f"blocks={self.blocks!r} are {places} of {depth} that are read: give rising ones up to {depth - 1}."
            )
        return sorted(set(places))

    def counts(self, depth: int, total: int, grid: Grid | None = None) -> list[int]:
        left, result, places = total, [], self.places(depth)
        last = None if self.keep is None else self.budget.count(total)
        for block in range(depth):
            if block in places:
                if last is None:  # rounded as in the released code: ceil of a product in double precision
                    wanted = math.ceil((0.7 if self.keep_rate is None else self.keep_rate) * left) + self.fuse
                else:
                    wanted = round(total * (last / total) ** ((places.index(block) + 1) / len(places)))
                left = min(left, wanted)
            result.append(left)
        return result

    def reduce(self, tokens: BlockTokens, k: int) -> Reduction:
        (g, n), p, attention = tokens.shape, tokens.prefix, tokens.class_attention
        best = p + top_k(attention[:, p:], k)
        place = torch.arange(n, device=best.device).expand(g, n)
        order = torch.cat([place[:, :p], best], 1)
        if not self.fuse:
            return Reduction(order=order)
        # the last of them is the most attended one of those that go, and becomes the fused token
        source = torch.full_like(place, p + k - 1).scatter(1, order, place[:, : p + k])
        weights = attention.scatter(1, order[:, :-1], 1.0)
        return Reduction(order=order, source=source, weights=weights, average=False)
