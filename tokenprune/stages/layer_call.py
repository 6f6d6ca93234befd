"""What one call of the decoder knows about tokens that leave between its layers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..layers import Event
from ..policies.layer import LayerPolicy
from .cache import LayerState
from .deepstack import LayerDeepStack
from .gather import Cut
from .happened import History
from .units import UnitState, kept_of
from .visual import Call


@dataclass(frozen=True, eq=False)
class Planned:
    """An event of one policy in one decoder.

    Attributes:
        score: layer whose attention is read; None where none is.
        enters: that layer is the one that tokens leave, and is entered once with all of them to be read.
        compact: the tokens left are renumbered.
    """

    policy: LayerPolicy
    event: Event
    score: int | None
    enters: bool
    compact: bool


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """The L positions that a layer reads.

    Attributes:
        cut: which of the decoder's input they are; None as long as that is all of it.
        real: [B, L] bool, False at padding.
        visual: [B, L] bool, tokens of units that are still there.
        text: [B, L] bool, text behind the last visual token of each prompt.
        place: [B, L] long, where in the prompt each stood before anything was removed.
        positions: [B, L] long, position ids where they were renumbered; None where all keep what they had.
    """

    cut: Cut | None = None
    real: Tensor
    visual: Tensor
    text: Tensor
    place: Tensor
    positions: Tensor | None = None

    def rows(self, which: str) -> Tensor:
        """[B, L] bool, rows by name: "last", "text" (the last token where there is none) or "visual"."""
        if which == "visual":
            return self.visual
        last = self.real & (self.real.long().flip(1).cumsum(1).flip(1) == 1)
        return last if which == "last" else torch.where(self.text.any(1, keepdim=True), self.text, last)

    def after(self, step: Cut) -> Sequence:
        """With the positions that `step` keeps."""
        flags = {name: step.take(getattr(self, name), 1) & step.valid for name in ("real", "visual", "text")}
        return replace(
            self,
            cut=step if self.cut is None else self.cut.then(step),
            place=step.take(self.place, 1),
            positions=None if self.positions is None else step.take(self.positions, 1),
            **flags,
        )

    def renumbered(self, given: Tensor, shift: Tensor | None) -> Sequence:
        """Position ids without gaps.

        Args:
            given: [B | 1, L0], of the decoder's input.
            shift: [B], how much lower the layers behind already number what they hold; None for as given.
        """
        kept = self.cut.take(given.expand(len(self.real), -1), 1)
        first = torch.where(self.real, kept, kept.amax() + 1).amin(1, keepdim=True)
        if shift is not None:
            first = first - shift.to(first.device)[:, None]
        return replace(self, positions=first + (self.real.long().cumsum(1) - 1).clamp_min(0))


@dataclass
class LayerCall:
    """One call of the decoder.

    Attributes:
        past: slots filled in the first layer before it.
        mask: [B, past + L] over slots of the first layer; None where all are valid.
        positions: [B | 1, L] position ids of the decoder's input; None where they have several axes.
        batch, length: B and L.
        static: the cache is one of fixed size.
        units: with slots in the current sequence.
        image_sizes: (width, height) of the pictures of the batch in order, None where not known.
        outer: of the outer module, where it brings visual tokens.
        lengths: [B] long on the CPU, positions of every sample in the current sequence without left padding.
        others: [B] long on the CPU, those of them that belong to no unit.
        sequence: what the next layer reads; None where no visual token is to leave.
        raters: [B, L] bool over the decoder's input, by policy.
        pending: events to come.
        scores: [B, L] of events to come.
        drops: what is left behind every drop.
        scored: milliseconds that scores of events to come took inside a layer, where they are timed.
        history: what happened so far; None where no visual token is to leave.
        renewed: what the layers from here on get, each made once for as long as they read the same sequence.
        layer: that was entered last.
        forgets: drop of the last event that earlier layers forget with; 0 where none does.
    """

    past: int
    mask: Tensor | None
    positions: Tensor | None
    batch: int
    length: int
    static: bool = False
    units: list[UnitState] = field(default_factory=list)
    image_sizes: list[tuple[int, int]] | None = None
    outer: Call | None = None
    lengths: Tensor | None = None
    others: Tensor | None = None
    sequence: Sequence | None = None
    raters: dict[int, Tensor] = field(default_factory=dict)
    pending: list[Planned] = field(default_factory=list)
    scores: dict[Planned, Tensor] = field(default_factory=dict)
    drops: dict[int, Sequence] = field(default_factory=dict)
    deepstack: LayerDeepStack | None = None
    scored: dict[Planned, float] = field(default_factory=dict)
    history: History | None = None
    renewed: dict[Any, Any] = field(default_factory=dict)
    layer: int = 0
    forgets: int = 0

    @property
    def cut(self) -> Cut | None:
        return None if self.sequence is None else self.sequence.cut

    def size_of(self, unit: UnitState) -> tuple[int, int] | None:
        """(width, height) of the picture that a unit is all of."""
        return None if self.image_sizes is None else self.image_sizes[unit.image]

    def origin(self, sample: Tensor, slots: Tensor) -> Tensor:
        """Where in the decoder's input [G, N] positions of samples [G, 1] stood."""
        return slots if self.cut is None else self.cut.index[sample, slots]

    def rows(self, one: Planned) -> Tensor:
        """[B, L] bool over the current sequence, whose attention an event reads."""
        if one.event.rows != "raters":
            return self.sequence.rows(one.event.rows)
        raters = self.raters[id(one.policy)]
        return raters if self.cut is None else self.cut.take(raters, 1) & self.cut.valid

    def most_rows(self, one: Planned) -> int:
        """How many rows of a sample an event reads at most, as far as the host knows."""
        if one.event.rows == "visual":
            return int(kept_of(self.units, self.batch).max())
        return 1 if one.event.rows == "last" else max(1, self.outer.words)

    def seen(self, new: int, old: LayerState | None) -> Tensor | None:
        """[B, past + new] bool over the slots of a layer with the cache `old`, or None if all are valid."""
        past = self.past if old is None else old.length(self.past)
        earlier = None if self.mask is None else self.mask[:, : self.past]
        before = earlier if old is None else old.mask(earlier, self.past, 0)
        here = None if self.mask is None else self.mask[:, self.past :]
        if self.cut is not None:
            here = self.sequence.real if self.cut.ragged or self.mask is not None else None
        if before is None and here is None:
            return None
        like = before if here is None else here
        ones = torch.ones(1, 1, dtype=torch.bool, device=like.device)
        before = ones.expand(self.batch, past) if before is None else before.bool()
        here = ones.expand(self.batch, new) if here is None else here.bool()
        return torch.cat([before, here.to(before.device)], 1)


def hidden_rows(hidden: Tensor, batch: int) -> Tensor:
    """[B, L, ...] hidden states, where a layer keeps several streams beside each other, [S, B, L, D], too."""
    return hidden if hidden.ndim == 3 or hidden.shape[0] == batch else hidden.movedim(0, 2)


def laid_out_as(hidden: Tensor, rows: Tensor, batch: int) -> Tensor:
    """Rows [B, L, ...] in the layout of `hidden`."""
    return rows if hidden.ndim == 3 or hidden.shape[0] == batch else rows.movedim(2, 0)
