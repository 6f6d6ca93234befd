"""What policies share that let tokens skip blocks of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..errors import InvalidArgumentError
from .base import Policy


@dataclass(frozen=True, kw_only=True)
class SkipTokens:
    """The tokens of B prompts in front of a block.

    Attributes:
        place: [B, L] long, of each in its prompt, from 0; anything at padding.
        real: [B, L] bool, False at padding.
        scores: [B, L] float32, attention that each got in the last block that computed it, mean over heads and the
            last `SkipPolicy.rows` tokens that were computed there; 1 / n where there was no such block.
        block: number of the block, from 0.
        sparsity: share of tokens that will skip it.
    """

    place: Tensor
    real: Tensor
    scores: Tensor
    block: int
    sparsity: float


@dataclass(kw_only=True)
class SkipPolicy(Policy):
    """Tokens skip blocks: the output of a block is its input, past attention and MLP, and they leave no key there.

    All tokens of a prompt, words and visual tokens alike; none leaves the sequence. `keep` has no meaning.
    """

    stage: ClassVar[str] = "skip"
    needs: ClassVar = frozenset()
    kinds: ClassVar = frozenset({"text", "image", "video"})
    budgeted: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if (self.keep, self.per, self.of) != (None, "image", None):
            raise InvalidArgumentError(
                f"keep={self.keep!r}, per={self.per!r}, of={self.of!r}: {self.name!r} removes no token, so leave these "
                "out and give sparsity, the mean share of tokens that skip a block."
            )

    @property
    def rows(self) -> int:
        """How many of the last tokens' attention it reads; 0: none."""
        return 0

    @property
    def trained(self) -> Any:
        """The trained module it asks, None without any."""
        return None

    def shares(self, depth: int) -> Sequence[float]:
        """Share of a prompt's tokens that skip each of `depth` blocks."""
        raise NotImplementedError

    def priority(self, tokens: SkipTokens) -> Tensor:
        """[B, L]; those of the lowest skip the block, the highest index first among equals."""
        raise NotImplementedError


def skipped(share: float, n: int) -> int:
    """Tokens of n that skip a block: round(share n), half to even. The first and the last one never do."""
    return min(round(share * n), max(n - 2, 0))
