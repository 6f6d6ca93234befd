"""FrameFusion."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..layers import Attention, Event, LayerTokens
from ..ops import average_by_source, chain_map, chain_similarity, top_k
from ..registry import register
from ..tokens import Selection
from .schedule import ScheduledPolicy
from .video import frame_size


@register("framefusion")
@dataclass(kw_only=True)
class FrameFusion(ScheduledPolicy):
    """Tokens like the one at their place a frame before are merged with it; then those the last word ignores go.

    Merging, before layer 0: z_i = cos(h_i, h of the same position in the frame before, as far as it is still there).
    The tokens of the largest z join the one before; every run of joined tokens is averaged with the token it begins at,
    which stays where it is. Pruning, before layer 1: the tokens that the last word attends to most in layer 0 stay,
    s_j = mean over heads of A[last row, j].

    Attributes:
        layers: of the merge, and of as many prunings as follow.
        strict_paper: as published, by content: every layer merges the tokens with z >= `similarity_lower_bound`, until
            they are fewer than `ratio_lower_bound` of those there; the next one prunes to the budget. None removes more
            than the share u that makes the mean over all layers `target_cost`; a merge that reaches u is the last step.
        target_cost: mean share of the tokens that the layers read, of `strict_paper`, whatever `keep` says.
        similarity_lower_bound, ratio_lower_bound: of `strict_paper`. The former is 0.6 for LLaVA-Video, 0.7 for
            MiniCPM-V and NVILA, 0.5 for Qwen2-VL and InternVL in the released scripts.

    Defaults: without `keep` half stay merged and 29 % in the end, 0.3 on average over 28 layers, the paper's budget.

    Source: Fu et al., "FrameFusion: Combining Similarity and Importance for Video Token Reduction on Large Vision
    Language Models", ICCV 2025, arXiv 2501.01986.

    Differs from the released code: a fixed schedule and exactly k unless `strict_paper`. All happens in front of
    layers, once for each, where the code acts between attention and MLP and twice in layer 0, so the cost is met; the
    depth is the model's (the code counts 28 layers always). Fewer tokens than a frame has join along the raster, too.
    """

    kinds: ClassVar = frozenset({"video"})
    reads: ClassVar = "hidden states, attention of the last word"
    published: ClassVar = (0.5, 0.2926)
    earliest: ClassVar = 0
    cost: ClassVar = "V D multiply-adds and a sort for the merge, H L d for a pruning; V D floats"
    when: ClassVar = "Videos with a camera that stands still, when the question decides among what is left."
    limits: ClassVar = "Compares a position with itself only: a moving camera leaves little to merge."

    layers: tuple[int | float, ...] = (0, 1)
    strict_paper: bool = False
    target_cost: float = 0.3
    similarity_lower_bound: float = 0.6
    ratio_lower_bound: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("target_cost", 0.0), ("similarity_lower_bound", -1.0), ("ratio_lower_bound", 0.0)):
            if type(value := getattr(self, name)) is not float or not least <= value <= 1.0:
                raise InvalidArgumentError(f"{name}={value!r} is not in [{least}, 1]: give such a float.")

    @property
    def exact(self) -> bool:
        return not self.strict_paper

    @property
    def everywhere(self) -> bool:
        return self.strict_paper

    def events(self, depth: int) -> tuple[Event, ...]:
        every = (Event(drop=i, score=i - 1, number=i) for i in range(depth))
        merging, *pruning = every if self.strict_paper else super().events(depth)
        return replace(merging, score=None), *pruning

    def count(self, event: Event, total: int) -> int:
        return total if self.strict_paper else super().count(event, total)

    def score(self, attention: Attention, event: Event) -> Tensor:
        return attention.total() / attention.heads

    def select(self, tokens: LayerTokens, k: int) -> Selection:
        if self.strict_paper:
            return self._published(tokens)
        return self._merged(tokens, k) if not tokens.event.number else super().select(tokens, k)

    def _merged(self, tokens: LayerTokens, k: int, at_least: float = -torch.inf) -> Selection:
        """Down to k tokens, as far as those that are similar enough reach."""
        order, similarity = chain_similarity(tokens.hidden, tokens.place, frame_size(tokens.grid))
        best = top_k(similarity, tokens.shape[1] - k)
        joins = torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, best, True) & (similarity >= at_least)
        indices, source = chain_map(order, joins, int((~joins[0]).sum()) if self.strict_paper else k)
        features, sizes = average_by_source(tokens.hidden, source, indices.shape[1])
        return Selection(indices=indices, features=features, source=source, sizes=sizes)

    def _published(self, tokens: LayerTokens) -> Selection:
        """What the next call of the released code does to one unit; what the calls before did, its counts tell."""
        n, (counts,) = tokens.shape[1], tokens.entered
        left, merging = tokens.total, True
        for i, count in enumerate(counts):
            removed, limit = left - count, int(self.most(counts[:i], tokens) * left)
            if not merging or removed == limit > 0:
                return Selection.subset(torch.arange(n, device=tokens.hidden.device)[None])
            merging, left = removed / left >= self.ratio_lower_bound, count
        most = self.most(counts, tokens)
        if not merging:
            return super().select(tokens, max(1, round(n * (1 - most))))
        return self._merged(tokens, max(1, n - int(most * n)), self.similarity_lower_bound)

    def most(self, counts: tuple[int, ...], tokens: LayerTokens) -> float:
        """u: the share of the tokens left that may go behind layers that read `counts`, or has to."""
        left = counts[-1] if counts else tokens.total
        rest = tokens.depth * self.target_cost * tokens.total - sum(counts)
        return min(1.0, max(0.0, 1 - rest / ((tokens.depth - len(counts)) * left)))
