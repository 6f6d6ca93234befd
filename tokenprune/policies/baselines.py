"""Baselines. They belong in every comparison: several published methods lose to them on some tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import InvalidArgumentError
from ..ops import average_by_source, draw, even_points, points_on_grid, sent, sources_on_grid, top_k
from ..registry import register
from ..tokens import Selection, VisualTokens
from .base import ProjectorPolicy
from .quality import FeatureNorm


def _spread(tokens: VisualTokens, k: int) -> tuple[tuple[int, int, int], list[int]]:
    """The unit's grid (a line where it has none) and k places spread evenly over it."""
    n = tokens.shape[1]
    return (tokens.grid, points_on_grid(tokens.grid, k)) if tokens.grid else ((1, 1, n), even_points(n, k))


@register("none")
@dataclass(kw_only=True)
class NoPruning(ProjectorPolicy):
    """Keeps every token: the dense model, through the same wrapper."""

    keep: int | float | None = 1.0
    needs: ClassVar = frozenset()
    cost: ClassVar = "nothing"
    when: ClassVar = "As the reference of a comparison."
    limits: ClassVar = "Saves nothing."

    def __post_init__(self):
        super().__post_init__()
        self.keep = 1.0  # whatever budget the comparison runs at

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        g, n = tokens.shape
        return Selection.subset(torch.arange(n, device=tokens.features.device).expand(g, n))


@register("random")
@dataclass(kw_only=True)
class Random(ProjectorPolicy):
    """A uniformly random subset, the same for the same seed and prompt whatever the batch around it or the device.

    Attributes:
        seed: change it to draw another subset.
    """

    seed: int = 0
    needs: ClassVar = frozenset()
    cost: ClassVar = "one permutation of N on the CPU"
    when: ClassVar = "As the baseline that every method has to beat, at every budget."
    limits: ClassVar = "Small things are lost by chance: average over seeds."

    def __post_init__(self):
        super().__post_init__()
        if type(self.seed) is not int or not 0 <= self.seed < 2**31:
            raise InvalidArgumentError(f"seed={self.seed!r} is not an int in [0, 2**31): give such a seed.")

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        order = draw(tokens.keys, tokens.shape[1], k, seed=self.seed)
        return Selection.subset(sent(order, tokens.features.device))


@register("uniform")
@dataclass(kw_only=True)
class Uniform(ProjectorPolicy):
    """Tokens at evenly spread places of the grid (a line where the tokens form no grid). Looks at nothing."""

    needs: ClassVar = frozenset()
    cost: ClassVar = "k integer operations on the CPU"
    when: ClassVar = "The same coverage for every picture at no cost; as a baseline, steadier than random."
    limits: ClassVar = "Things between the places are lost, text and fine print first."

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        _, points = _spread(tokens, k)
        return Selection.subset(sent(points, tokens.features.device).expand(tokens.shape[0], k))


@register("norm")
@dataclass(kw_only=True)
class Norm(ProjectorPolicy):
    """The k projected tokens of the largest Euclidean norm."""

    cost: ClassVar = "N D multiply-adds and a sort of N"
    when: ClassVar = "As a baseline for scores that look at one token at a time."
    limits: ClassVar = "Large norms are often artefacts in the background, and repeats of one thing are all kept."

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        norm = FeatureNorm()(tokens)
        return Selection.subset(top_k(norm, k), scores=norm)


@register("pool")
@dataclass(kw_only=True)
class Pool(ProjectorPolicy):
    """Average pooling to any count: every token is averaged into the nearest of the places `uniform` would keep.

    Where k divides the grid into equal blocks this is plain average pooling. Averages take the position of their place.
    """

    cost: ClassVar = "N k distances and N D additions"
    when: ClassVar = "Questions about the whole scene: nothing is dropped, everything is averaged."
    limits: ClassVar = "Averages of tokens are nothing the model was trained on; fine detail drowns at small budgets."

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        (g, n), device = tokens.shape, tokens.features.device
        grid, points = _spread(tokens, k)
        source = sent(sources_on_grid(grid, points), device).expand(g, n)
        merged, sizes = average_by_source(tokens.features, source, k)
        indices = sent(points, device).expand(g, k)
        return Selection(indices=indices, features=merged, source=source, sizes=sizes)
