"""What a policy may look at (`VisualTokens`) and what it answers (`Selection`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from .projection import Projection


@dataclass(frozen=True)
class Tap:
    """Something computed inside the vision tower that a policy needs, a vector for every patch.

    Attributes:
        what: "attention": the attention probability that a patch gets, c = 1; "keys": its key, after any rotary
            embedding; "class_token": the tower's output at the class token, the same for all patches of an image;
            "carrier": where a policy shortens the tower, c = 2, a number for the patch and that of the one that carries
            it, -1 for none, for the runtime's own use.
        queries: of attention: "cls" (the row of the class token), "all" (mean over all rows) or "auto" ("cls" where the
            tower has a class token, else "all").
        heads: "mean" over heads, or "joined": the heads side by side, for attention as one wide head with the scale
            1 / sqrt(its width).
        layer: index into the tower's layers, -1 the last; a float in [0, 1) that share of their number, rounded down;
            None the layer whose output the projector reads.
    """

    what: Literal["attention", "keys", "class_token", "carrier"]
    queries: Literal["auto", "cls", "all"] = "auto"
    heads: Literal["mean", "joined"] = "mean"
    layer: int | float | None = None


def looks_inside(needs: Iterable[str | Tap]) -> bool:
    """Whether any of a policy's needs is about the patches that a token was made of."""
    return any(need in ("encoder", "projection") or isinstance(need, Tap) for need in needs)


@dataclass(frozen=True, kw_only=True)
class VisualTokens:
    """G units of N visual tokens each, batched. A policy sees nothing else of the model.

    Attributes:
        features: [G, N, D], the tokens as the language model would read them. Any float dtype.
        encoder: [G, N, P, d_v], the P tower features that the projector, or the patch merger, made each token from
            (P = 1 where it merges none); only if the policy needs "encoder" or "projection".
        tower: for every `Tap` among the policy's needs [G, N, P, c] float32, values of the P patches of each token.
        projection: what made `features` out of `encoder`; only if the policy needs "projection".
        rating: [G, N] float32, what the policy's own `rate` said of these units, if it has one.
        extremes: [G, 2], the smallest and the largest rating in any unit of the same image, in other calls, too.
        text: [G, M, D], decoder input embeddings of the instruction, zero where `text_mask` is False; only if the
            policy needs "text".
        text_mask: [G, M] bool.
        instruction: G strings; only if the policy needs "instruction".
        grid: (frames, rows, columns) with frames * rows * columns == N, or None where the tokens form no grid.
        image: [G] long, equal for units cut from the same image or video (crops, frames).
        keys: G ints that depend on the unit's prompt and its place in it alone, never on the batch around it: what a
            random policy seeds with.
    """

    features: Tensor
    encoder: Tensor | None = None
    tower: Mapping[Tap, Tensor] = field(default_factory=dict)
    projection: Projection | None = None
    rating: Tensor | None = None
    extremes: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    instruction: list[str] | None = None
    grid: tuple[int, int, int] | None = None
    image: Tensor | None = None
    keys: list[int] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, int]:
        """(G, N)"""
        return self.features.shape[0], self.features.shape[1]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The outcome of a policy for G units.

    Attributes:
        indices: [G, k] long, the surviving tokens of each unit, distinct and ascending.
        order: [G, k] long, the same indices in the order they were chosen, where the method has one.
        scores: [G, N] float, what the choice was made by, where the method has one number per token.
        features: [G, k, D], merged features that replace those at `indices`; None for a subset.
        source: [G, N] long, for every original token the place in `indices` of the survivor that carries it, or -1.
        sizes: [G, k] float, how many original tokens each survivor stands for; None means 1.
        weights: [G, N] float, the share of each original token in the merged features of its survivor; None means
            equal shares. Whatever else the decoder reads per token is merged with the same shares.
    """

    indices: Tensor
    order: Tensor | None = None
    scores: Tensor | None = None
    features: Tensor | None = None
    source: Tensor | None = None
    sizes: Tensor | None = None
    weights: Tensor | None = None

    @classmethod
    def subset(cls, order: Tensor, *, scores: Tensor | None = None) -> Selection:
        """A subset selection from [G, k] indices in the order they were chosen."""
        return cls(indices=order.sort(dim=-1).values, order=order, scores=scores)

    def source_map(self, n: int) -> Tensor:
        """[G, n] long: `source`, or for a subset the place of each kept token in `indices` and -1 for the dropped."""
        if self.source is not None:
            return self.source
        g, k = self.indices.shape
        place = torch.arange(k, device=self.indices.device).expand(g, k)
        return self.indices.new_full((g, n), -1).scatter(1, self.indices, place)

    def merge_weights(self, n: int) -> Tensor:
        """[G, n] float32: shares that sum to 1 for each survivor, in proportion to `weights`; 0 for the dropped.

        A survivor whose weights are all 0 has shares of 0. What is merged with these keeps its scale, where a policy
        that adds tokens up relies on the projector's normalisation to take theirs away.
        """
        source = self.source_map(n)
        carried = (source >= 0).float()
        weights = carried if self.weights is None else self.weights.float() * carried
        place = source.clamp_min(0)
        sums = torch.zeros(self.indices.shape, device=source.device).scatter_add(1, place, weights).gather(1, place)
        return torch.where(sums > 0, weights / sums.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
