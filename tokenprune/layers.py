"""What a policy inside the language model may look at: `Attention` rows of one layer, and `LayerTokens`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Rows = Literal["last", "text", "visual", "raters"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Tokens leave once: when they are scored, and when they go. Layers are counted from 0.

    Attributes:
        drop: layer that no longer sees them: they leave its input, 0 <= drop < depth.
        score: layer whose attention scores them. drop - 1: the attention that was computed anyway. drop: what the layer
            would compute with all tokens; its queries and keys are made for that and once more for the tokens left.
            None where no attention is needed.
        rows: whose attention: of the "last" valid token of the prompt, of all "text" behind the last visual token, of
            the "visual" tokens still there, or of those that the policy's `raters` chooses.
        number: of the event, from 0.
        forget: once the prompt is read, the layers before lose the keys and values of all that left up to here, too.
            What is read together with the prompt, as first candidates of assisted decoding are, has seen them.
    """

    drop: int
    score: int | None = None
    rows: Rows = "last"
    number: int = 0
    forget: bool = False


@dataclass(kw_only=True)
class Attention(ABC):
    """Softmax attention that a few rows of one layer give to the L positions of this call, for B prompts.

    Probabilities are float32, after rotary embedding, scaling, soft-capping and sinks as the layer has them, and
    normalised over all keys the row sees, those of earlier calls too. Nothing of size L x L is ever held.

    Attributes:
        rows: [B, R] long, positions of the rows, ascending; anything where `row_mask` is False.
        row_mask: [B, R] bool, False where a prompt has fewer rows.
        visual: [B, L] bool, visual tokens still there.
        text: [B, L] bool, all text behind the last visual token. Positions that are neither are before, or padding.
        place: [B, L] long, where in the prompt each position stood before anything was removed.
        heads: H, of the queries.
        frequencies: [d / 2], the layer's rotary frequencies theta_u; None where there is none such.
    """

    rows: Tensor
    row_mask: Tensor
    visual: Tensor
    text: Tensor
    place: Tensor
    heads: int
    frequencies: Tensor | None = None

    @abstractmethod
    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, some at a time: which of them, and their probabilities [B, H, r, L]; zero where there is no row."""

    def total(self, weights: Tensor | None = None) -> Tensor:
        """[B, L], the sum over heads and rows, weighted by [B, 1 or H, R] where given."""
        result = 0.0
        for some, block in self.blocks():
            result = result + (block if weights is None else block * weights[:, :, some, None]).sum((1, 2))
        return result

    def count(self) -> Tensor:
        """[B, 1], rows of each prompt, at least 1."""
        return self.row_mask.sum(1, keepdim=True).clamp_min(1)


@dataclass(frozen=True, kw_only=True)
class LayerTokens:
    """G units of N visual tokens each, between two layers of the language model.

    Attributes:
        hidden: [G, N, D], hidden states that enter layer `event.drop`. Any float dtype.
        scores: [G, N] float32, the policy's own score of them; None where the event looks at no attention.
        weights: [G, N] float32, factors that a wrapper puts on the scores (`debiased`), None for none.
        place: [G, N] long, place of each token in its unit as the encoder made it, in raster order.
        total: tokens of the unit then.
        grid: (frames, rows, columns) of the unit then, or None where it formed no grid.
        image_sizes: per unit (width, height) of the picture before the processor, None where not known.
        compact: tokens left are renumbered without gaps, rather than keep their positions.
        keys: G ints that depend on the unit's prompt and its place in it alone: what a random policy seeds with.
        entered: per unit, how many of its tokens every layer so far was given.
        depth: layers of the decoder.
        event: that this is about.
    """

    hidden: Tensor
    scores: Tensor | None = None
    weights: Tensor | None = None
    place: Tensor
    total: int
    grid: tuple[int, int, int] | None = None
    image_sizes: list[tuple[int, int] | None] = field(default_factory=list)
    compact: bool = False
    keys: list[int] = field(default_factory=list)
    entered: list[tuple[int, ...]] = field(default_factory=list)
    depth: int = 0
    event: Event

    @property
    def shape(self) -> tuple[int, int]:
        """(G, N)"""
        return self.hidden.shape[0], self.hidden.shape[1]

    @property
    def ranking(self) -> Tensor:
        """[G, N] float32, what tokens are chosen by: scores times weights."""
        return self.scores if self.weights is None else self.scores * self.weights
