"""What policies share that drop tokens of a text in front of an encoder's first block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from .base import Policy


@dataclass(frozen=True, kw_only=True)
class TextTokens:
    """The tokens of B texts in front of the first block.

    Attributes:
        embeddings: [B, L, D], of word and place, as the encoder makes them.
        real: [B, L] bool, False at padding.
    """

    embeddings: Tensor
    real: Tensor

    @property
    def place(self) -> Tensor:
        """[B, L] long, of each token in its text, from 0; anything at padding."""
        return self.real.long().cumsum(1) - 1


@dataclass(kw_only=True)
class EncoderPolicy(Policy):
    """ceil(rho n) of a text's n tokens enter the first block, with their places; the first and the last always do.

    Attributes:
        ratio: rho in (0, 1]; None where the policy says itself how many of each text.
    """

    stage: ClassVar[str] = "encoder"
    needs: ClassVar = frozenset()
    reads: ClassVar[str] = "input embeddings"
    kinds: ClassVar = frozenset({"text"})
    budgeted: ClassVar[bool] = True
    adaptive: ClassVar[bool] = False  # whether ratio=None has a meaning

    ratio: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.keep, self.per, self.of) != (None, "image", None):
            raise InvalidArgumentError(
                f"keep={self.keep!r}, per={self.per!r}, of={self.of!r}: {self.name!r} is about texts, so leave these "
                "out and give ratio, the share of tokens that stays."
            )
        if self.ratio is not None and not (type(self.ratio) in (int, float) and 0 < self.ratio <= 1):
            raise InvalidArgumentError(f"ratio={self.ratio!r} is not in (0, 1]: give the share of tokens that stays.")

    @property
    def trained(self) -> Any:
        """The trained module it asks, None without any."""
        return None

    def score(self, tokens: TextTokens) -> Tensor:
        """[B, L]; those of the highest stay. Anything at padding."""
        raise NotImplementedError

    def shares(self, tokens: TextTokens, scores: Tensor) -> Tensor:
        """[B] rho."""
        return torch.full((len(scores),), self.ratio, dtype=torch.double, device=scores.device)
