"""The two predictors of AD-TP: how salient each token of a text is, and what share of the text is enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidArgumentError, PredictorError
from ..ops import inner_tokens, tokens_left
from .base import Predictor

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LONG = 512.0  # tokens, by whose logarithm that of a length is divided


class SaliencyPredictor(Predictor):
    """TSP, the token saliency predictor, and ARP, that of the retention ratio, on an encoder's input embeddings.

    TSP: a layer norm and two linear layers with a GELU between them, for each token by itself, u_i = w . gelu(W1
    norm(x_i) + W2 norm(mean x) + W3 p_i) + v . p_i with p_i = (place / n, log n). softmax(u) over the inner tokens is
    trained towards the shares of attribution. ARP: an MLP of the mean embedding, log n, and the share of softmax(u)
    that each candidate ratio would keep, -> one logit per candidate.

    Args:
        width: D, of the input embeddings.
        hidden: of TSP; ARP has half of it.
        ratios: candidates, ascending.
        base: see `Predictor`.

    The paper says "a few linear layers", ten candidates, and an ARP on the embedding of [CLS]. In front of the first
    block that one is the same for every text: so here it is the mean embedding, as W2's input, and what TSP found.
    """

    kind: ClassVar[str] = "adtp"

    def __init__(
        self,
        *,
        width: int,
        hidden: int = 128,
        ratios: Sequence[float] = RATIOS,
        base: dict[str, Any] | None = None,
    ):
        super().__init__(base=base)
        if not ratios or list(ratios) != sorted(ratios) or not all(0 < one <= 1 for one in ratios):
            raise InvalidArgumentError(f"ratios={ratios!r} are no candidates: give shares in (0, 1], ascending.")
        self.width, self.ratios = width, list(ratios)
        self.norm, self.token = nn.LayerNorm(width), nn.Linear(width, hidden)
        self.text, self.place = nn.Linear(width, hidden, bias=False), nn.Linear(2, hidden, bias=False)
        self.head, self.straight = nn.Linear(hidden, 1), nn.Linear(2, 1, bias=False)
        inputs, narrow = width + 1 + len(self.ratios), max(1, hidden // 2)
        self.arp = nn.Sequential(nn.Linear(inputs, narrow), nn.GELU(), nn.Linear(narrow, len(self.ratios)))

    def forward(self, embeddings: Tensor, real: Tensor) -> Tensor:
        """u, [B, L] float32, a higher one is to stay.

        Args:
            embeddings: [B, L, D], of word and place, as the first block reads them.
            real: [B, L] bool, False at padding.

        Raises:
            PredictorError: D is not the width it was made for.
        """
        if embeddings.shape[-1] != self.width:
            raise PredictorError(
                f"embeddings are of width {embeddings.shape[-1]}, and this predictor was trained for {self.width}."
            )
        x, n = embeddings.to(self.head.weight.dtype), real.sum(1, keepdim=True).clamp_min(1)
        place = (real.long().cumsum(1) - 1) / n
        where = torch.stack([place, _log(n).expand_as(place)], -1).to(x)
        hidden = self.token(self.norm(x)) + self.text(self._mean(x, real))[:, None] + self.place(where)
        return (self.head(F.gelu(hidden)) + self.straight(where)).squeeze(-1).float()

    def choose(self, embeddings: Tensor, real: Tensor, scores: Tensor) -> Tensor:
        """Logits of the candidate ratios, [B, C] float32; scores: u."""
        x, n = embeddings.to(self.head.weight.dtype), real.sum(1, keepdim=True)
        inputs = [self._mean(x, real), _log(n.clamp_min(1)).to(x), self.masses(scores, real).to(x)]
        return self.arp(torch.cat(inputs, 1)).float()

    def masses(self, scores: Tensor, real: Tensor) -> Tensor:
        """[B, C], the share of softmax(u) over inner tokens that the highest hold, at every candidate ratio."""
        within, n = inner_tokens(real), real.sum(1)
        shares = scores.float().masked_fill(~within, -torch.inf).softmax(1).nan_to_num(0.0)  # of no inner token
        sums = F.pad(shares.sort(1, descending=True).values.cumsum(1), (1, 0))
        counts = [tokens_left(torch.full_like(n, ratio, dtype=torch.double), n) - 2 for ratio in self.ratios]
        return sums.gather(1, torch.stack(counts, 1).clamp_min(0))

    def _mean(self, x: Tensor, real: Tensor) -> Tensor:
        weight = real[..., None].to(x)
        return self.norm((x * weight).sum(1) / weight.sum(1).clamp_min(1))

    def flops(self, n: int) -> int:
        """Of one text with n tokens."""
        each = (self.token, self.place, self.head, self.straight)
        once = self.text.weight.numel() + sum(one.numel() for one in self.arp.parameters())
        return 2 * (n * sum(one.weight.numel() for one in each) + once)

    def __repr__(self) -> str:
        return f"SaliencyPredictor({self.parameters_count} parameters, width {self.width})"


def _log(n: Tensor) -> Tensor:
    return n.float().log() / torch.tensor(LONG).log()
