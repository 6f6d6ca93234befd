"""What a policy inside a vision transformer may look at (`BlockTokens`) and what it answers (`Reduction`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Reads = Literal["keys", "class_attention"]
Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class BlockTokens:
    """G images (frames, clips) of n tokens each, inside one block of a vision transformer.

    Class, distillation and register tokens come first: `prefix` of them, which stay where they are.

    Attributes:
        hidden: [G, n, D], the tokens. Any float dtype.
        keys: [G, n, d] float32, keys of the block's attention, mean over heads, after any rotary embedding; only if
            the policy reads "keys".
        class_attention: [G, n] float32, attention that the class token, the first of the prefix, pays in this block,
            mean over heads; only if the policy reads it.
        sizes: [G, n] float32, how many of the tower's tokens each stands for.
        places: [G, n] long, where each stood in the tower's input.
        prefix: P.
        grid: (frames, rows, columns) of the patches of the tower's input, which come in this order behind the prefix;
            None where it is not known.
        total: patches of the tower's input.
        block, depth: of `depth` blocks this is number `block`, from 0.
    """

    hidden: Tensor
    keys: Tensor | None = None
    class_attention: Tensor | None = None
    sizes: Tensor
    places: Tensor
    prefix: int
    grid: Grid | None
    total: int
    block: int
    depth: int

    @property
    def shape(self) -> tuple[int, int]:
        """(G, n)"""
        return self.hidden.shape[0], self.hidden.shape[1]


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """The outcome for G images of n tokens each, m of which go on.

    Attributes:
        order: [G, m] long, distinct, the tokens that go on, in this order; the prefix first, as it is.
        source: [G, n] long, for every token the place in `order` of the one that carries it on, -1 for those dropped;
            None where all that do not go on are dropped.
        weights: [G, n] float, what each token counts for in the one that carries it; None: its size.
        average: survivors become weighted means; weighted sums if False.
    """

    order: Tensor
    source: Tensor | None = None
    weights: Tensor | None = None
    average: bool = True
