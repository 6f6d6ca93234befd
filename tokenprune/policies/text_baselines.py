"""Baselines of stage `encoder`: what a trained choice of words has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..registry import register
from .encoder import EncoderPolicy, TextTokens


@register("text-random")
@dataclass(kw_only=True)
class TextRandom(EncoderPolicy):
    """Tokens of a text at random, the same places for the same length and seed whatever the batch or the device.

    Attributes:
        seed: change it to draw others.
    """

    cost: ClassVar = "one random number per token, on the CPU"
    when: ClassVar = "As the baseline that every method has to beat, at every ratio."
    limits: ClassVar = "Drops what matters as often as what does not."

    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if type(self.seed) is not int or not 0 <= self.seed < 2**31:
            raise InvalidArgumentError(f"seed={self.seed!r} is not an int in [0, 2**31): give such a seed.")

    def score(self, tokens: TextTokens) -> Tensor:
        scores = torch.zeros(tokens.real.shape)
        for row, real in zip(scores, tokens.real.cpu(), strict=True):
            n = int(real.sum())
            generator = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + n) % 2**63)
            row[real] = torch.rand(n, generator=generator)
        return scores.to(tokens.real.device)


@register("text-first")
@dataclass(kw_only=True)
class TextFirst(EncoderPolicy):
    """The first tokens of a text, and its last one: truncation."""

    cost: ClassVar = "nothing"
    when: ClassVar = "As a baseline, and what tokenizers do to a text that is too long."
    limits: ClassVar = "What comes late is never read."

    def score(self, tokens: TextTokens) -> Tensor:
        return -tokens.place.float()


@register("text-norm")
@dataclass(kw_only=True)
class TextNorm(EncoderPolicy):
    """The tokens whose input embeddings have the largest norm."""

    cost: ClassVar = "D multiply-adds per token"
    when: ClassVar = "As a baseline that looks at tokens and needs no training."
    limits: ClassVar = "The norm behind a layer norm says little about a word."

    def score(self, tokens: TextTokens) -> Tensor:
        return tokens.embeddings.float().norm(dim=-1)
