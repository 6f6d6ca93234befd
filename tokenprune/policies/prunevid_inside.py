"""PruneVid, inside the language model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import PolicyError
from ..layers import Attention, Event, LayerTokens
from ..ops import best_share
from ..registry import register
from ..tokens import Selection
from .schedule import ScheduledPolicy
from .video import frame_size


@register("prunevid-inside")
@dataclass(kw_only=True)
class PruneVidInside(ScheduledPolicy):
    """The tokens that any word behind the video attends to most in any head.

    s_j = max over heads and over the rows t of all text behind the video of A[t, j] in layer M; the k tokens of the
    largest s enter layer M + 1.

    Attributes:
        layers: M.
        forget: once the prompt is read, the caches of layers up to M lose what left, too, so all layers hold as much.
        strict_paper: as released, not the best of all but int(alpha n) of the n tokens of each frame, alpha = `keep`,
            of those that are there. (The code counts the static tokens of a segment apart; here they belong to the
            frame they stand in.)

    Defaults: M = 10 of 32 layers, and 0.4 of the video's tokens left. `keep` is of the video as it was encoded unless
    `strict_paper`: behind `prunevid` at 0.4, alpha = 0.4 is keep=0.16.

    Source: Huang et al., "PruneVid: Visual Token Pruning for Efficient Video Large Language Models", Findings of ACL
    2025, arXiv 2412.16117. Its other half is `prunevid`.

    Differs from the released code: A is the layer's own attention, where the code makes one of queries and keys without
    rotary embedding, over all positions, later ones too. The paper takes the maximum over the question only.
    """

    kinds: ClassVar = frozenset({"video"})
    published: ClassVar = (0.4,)
    offset: ClassVar = 1
    rows: ClassVar = "text"
    reads: ClassVar = "attention of all words behind the video"
    cost: ClassVar = "H R L d multiply-adds for R words behind the video and L tokens in the prompt; blocks of rows"
    when: ClassVar = "Behind `prunevid`, or alone: questions about something that is seen for a moment."
    limits: ClassVar = "A maximum over words listens to any of them, those of the template included."

    layers: tuple[int | float, ...] = (10 / 32,)
    forget: bool = True
    strict_paper: bool = False

    @property
    def exact(self) -> bool:
        return not self.strict_paper

    @property
    def everywhere(self) -> bool:
        return self.strict_paper

    def events(self, depth: int) -> tuple[Event, ...]:
        return tuple(replace(event, forget=self.forget) for event in super().events(depth))

    def count(self, event: Event, total: int) -> int:
        return total if self.strict_paper else super().count(event, total)

    def score(self, attention: Attention, event: Event) -> Tensor:
        highest = torch.zeros(attention.visual.shape, device=attention.visual.device)
        for _, block in attention.blocks():
            highest = highest.maximum(block.amax((1, 2)))
        return highest

    def select(self, tokens: LayerTokens, k: int) -> Selection:
        if not self.strict_paper:
            return super().select(tokens, k)
        i, n = tokens.event.number, tokens.shape[1]
        alpha = self.keeps[i] if self.keeps else self.published[i] if self.keep is None else self.keep
        alpha = alpha if isinstance(alpha, float) else alpha / n
        frame = tokens.place[0] // frame_size(tokens.grid)
        kept = best_share(tokens.ranking[0], frame, alpha)
        if len(kept) == 0:
            raise PolicyError(
                f"keep={alpha:.3g} with strict_paper leaves no token of any of {len(frame.unique())} frames, which "
                f"have {n} together: give a larger one, or leave strict_paper out."
            )
        return Selection.subset(kept[None], scores=tokens.ranking)
