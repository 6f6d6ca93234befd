"""Choices of tokens that read more of an encoder than its input, for comparison."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...learn.attributions import integrated_gradients, token_shares
from ...learn.frozen_encoder import FrozenEncoder
from ...ops import inner_tokens
from ...policies.encoder import EncoderPolicy, TextTokens


@dataclass(kw_only=True)
class FirstAttention(EncoderPolicy):
    """The tokens that get the most attention in the first block of a BertModel, mean over heads and rows.

    Attributes:
        model: a copy of the one that is wrapped.
    """

    name: ClassVar[str] = "attention"
    model: Any = field(default=None, repr=False)

    @torch.no_grad()
    def score(self, tokens: TextTokens) -> Tensor:
        block, config = self.model.encoder.layer[0].attention.self, self.model.config
        heads = config.num_attention_heads
        query, key = (
            layer(tokens.embeddings).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in (block.query, block.key)
        )
        logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        shares = logits.masked_fill(~tokens.real[:, None, None], -torch.inf).softmax(-1)
        return (shares.mean(1) * tokens.real[..., None]).sum(1)


@dataclass(kw_only=True)
class Attribution(EncoderPolicy):
    """The tokens of the largest integrated gradients, which are what `SaliencyPredictor` is trained towards.

    Attributes:
        model: a copy of the one that is wrapped, which runs the whole text, forward and back.
    """

    name: ClassVar[str] = "attribution"
    model: Any = field(default=None, repr=False)

    def score(self, tokens: TextTokens) -> Tensor:
        frozen, x, real = FrozenEncoder(self.model), tokens.embeddings, tokens.real
        with frozen.attached():
            with torch.no_grad():
                teacher = frozen.answer(x, real)
            found = integrated_gradients(lambda point: frozen.number(frozen.answer(point, real), teacher), x)
        return token_shares(found, inner_tokens(real))
