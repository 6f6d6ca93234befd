"""The control of STA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .. import STA, RandomBlocks
from ..blocks import BlockTokens, Reduction


@dataclass(kw_only=True)
class RandomSlots(STA):
    """Random tokens of the whole clip, behind the blocks and down to the counts of STA."""

    reads: ClassVar = frozenset()

    seed: int = 0

    def reduce(self, tokens: BlockTokens, k: int) -> Reduction:
        return RandomBlocks(seed=self.seed).reduce(tokens, k)
