"""Quality of visual tokens that needs no text: parts that a policy is given, not policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from ..errors import InvalidArgumentError, nearest
from ..ops import runs, similarity_variance, unit_norm
from ..tokens import Tap, VisualTokens

Queries = Literal["auto", "cls", "all"]


@dataclass(kw_only=True)
class VisionAttention:
    """Attention probability that a token gets inside the vision tower, mean over heads and over its patches.

    Taken from the one row needed, or from column sums in blocks: the tower keeps its attention kernel.

    Attributes:
        queries: "cls", attention of the class token; "all", the mean over all queries of the image, for towers
            without one; "auto", whichever fits the tower.
        layer: of the tower, see `Tap.layer`. None is the layer whose output the projector reads, `attentions[-2]` of
            LLaVA's CLIP.
    """

    queries: Queries = "auto"
    layer: int | float | None = None

    def __post_init__(self):
        if self.queries not in get_args(Queries):
            raise InvalidArgumentError(
                f"queries={self.queries!r} is not one of {', '.join(get_args(Queries))}"
                f"{nearest(self.queries, get_args(Queries))}."
            )
        layer = self.layer
        fits = layer is None or type(layer) is int or (type(layer) is float and 0.0 <= layer < 1.0)
        if not fits:
            raise InvalidArgumentError(
                f"layer={layer!r} is no layer: give an int (index), a float in [0, 1) (share of the depth) or None."
            )

    @property
    def tap(self) -> Tap:
        return Tap("attention", queries=self.queries, layer=self.layer)

    @property
    def needs(self) -> frozenset:
        return frozenset({self.tap})

    def __call__(self, tokens: VisualTokens) -> Tensor:
        """[G, N] float32"""
        return tokens.tower[self.tap].float().mean((2, 3))


@dataclass(kw_only=True)
class FeatureNorm:
    """Euclidean norm of a projected token."""

    needs = frozenset({"features"})

    def __call__(self, tokens: VisualTokens) -> Tensor:
        """[G, N] float32"""
        return tokens.features.float().norm(dim=-1)


@dataclass(kw_only=True)
class LocalVariance:
    """Variance of a token's cosines with the other tokens of its run of the sequence: how unevenly it fits in there.

    Attributes:
        runs: consecutive runs that the N tokens are cut into; at most N.
    """

    runs: int = 1
    needs = frozenset({"features"})

    def __post_init__(self):
        if type(self.runs) is not int or self.runs < 1:
            raise InvalidArgumentError(f"runs={self.runs!r} is not an int of at least 1: give how many runs to cut.")

    def __call__(self, tokens: VisualTokens) -> Tensor:
        """[G, N] float32"""
        place, real = runs(tokens.shape[1], min(self.runs, tokens.shape[1]), tokens.features.device)
        variance = similarity_variance(unit_norm(tokens.features)[:, place], real)
        return variance.flatten(1)[:, real.flatten()]
