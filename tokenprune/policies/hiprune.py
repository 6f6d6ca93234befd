"""HiPrune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..ops import top_k
from ..registry import register
from ..tokens import Selection, VisualTokens
from .base import ProjectorPolicy
from .quality import VisionAttention


@register("hiprune")
@dataclass(kw_only=True)
class HiPrune(ProjectorPolicy):
    """Three groups by attention in the tower: anchors on objects, their neighbours, and tokens that hold the whole.

    o and d [N]: attention that a token receives in the object layer (middle) and in the deep layer, mean over heads
    and all queries. Anchors: the round(alpha k / 5) tokens of the largest o. Buffers: their neighbours left, right,
    above and below. Registers: the tokens of the largest d among the others, up to k. Should anchors and buffers
    exceed k, anchors stay first, then the buffers of the largest d. Without a grid neighbours are the tokens before and
    behind.

    Attributes:
        alpha: share of the budget meant for anchors with their four buffers.
        object_layer: tower layer of the anchors, see `Tap.layer`. 0.375 is 9 of CLIP's 24 layers; 0.5 (16 of 32) for
            Qwen2.5-VL.
        deep_layer: tower layer of the registers; None is the layer whose output the projector reads, `attentions[-2]`
            of LLaVA's CLIP and the last of Qwen2.5-VL.
        strict_paper: as released: neighbours are i - 1, i + 1, i - columns and i + columns in the sequence, clamped to
            it, so that rows wrap into each other.

    Defaults: alpha 0.1 for all models and budgets; LLaVA-NeXT with `per="crop"`, k / crops each.

    Source: Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language
    Models", arXiv 2508.00553.

    Differs from the released code: neighbours do not wrap around rows (see `strict_paper`) or frames, and it is
    always exactly k, where the code fails if anchors and buffers exceed k.
    """

    alpha: float = 0.1
    object_layer: int | float = 0.375
    deep_layer: int | float | None = None
    strict_paper: bool = False
    cost: ClassVar = "attention columns of two tower layers, three sorts of N; a few N floats"
    when: ClassVar = "A cheap attention method for towers without a class token; looks at no text and no feature."
    limits: ClassVar = "Attention favours sinks and knows no repeats: neighbours are kept though they look alike."

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.alpha, (int, float)) or not 0.0 <= self.alpha <= 1.0:
            raise InvalidArgumentError(f"alpha={self.alpha!r} is not in [0, 1]: give such a float.")
        self.attentions()  # checks the layers

    def attentions(self) -> tuple[VisionAttention, VisionAttention]:
        """Attention of the object layer and of the deep layer."""
        return tuple(VisionAttention(queries="all", layer=layer) for layer in (self.object_layer, self.deep_layer))

    @property
    def needs(self) -> frozenset:
        objects, deep = self.attentions()
        return objects.needs | deep.needs

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        objects, deep = (row(tokens) for row in self.attentions())
        picks = top_k(objects, round(self.alpha * k / 5))
        anchors = torch.zeros_like(deep, dtype=torch.bool).scatter(1, picks, True)
        near = _wrapped(anchors, picks, tokens.grid) if self.strict_paper else _neighbours(anchors, tokens.grid)
        group = torch.where(anchors, 2, near.long())
        by_depth = top_k(deep, deep.shape[1])
        by_group = top_k(group.gather(1, by_depth), k)
        return Selection.subset(by_depth.gather(1, by_group), scores=deep)


def _neighbours(chosen: Tensor, grid: tuple[int, int, int] | None) -> Tensor:
    """[G, N] bool, tokens with a chosen one beside, above or below them in their frame."""
    frames, rows, columns = grid or (1, 1, chosen.shape[1])
    near = chosen.new_zeros(len(chosen), frames, rows + 2, columns + 2)
    at = chosen.view(-1, frames, rows, columns)
    for y, x in ((0, 1), (2, 1), (1, 0), (1, 2)):
        near[:, :, y : y + rows, x : x + columns] |= at
    return near[:, :, 1:-1, 1:-1].reshape(chosen.shape)


def _wrapped(chosen: Tensor, picks: Tensor, grid: tuple[int, int, int] | None) -> Tensor:
    """[G, N] bool, tokens one step or one row before or behind a chosen one in the sequence."""
    row = grid[2] if grid else 1
    near = torch.cat([picks - 1, picks + 1, picks - row, picks + row], 1).clamp(0, chosen.shape[1] - 1)
    return torch.zeros_like(chosen).scatter(1, near, True)
