"""DART."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..ops import gather_rows, least_similar_to_pivots, top_k, unit_norm
from ..registry import register
from ..tokens import Selection, VisualTokens
from .base import ProjectorPolicy


@register("dart")
@dataclass(kw_only=True)
class DART(ProjectorPolicy):
    """Duplication instead of importance: a few strong tokens, and those least similar to them. Here before layer 0.

    Pivots: the tokens X [N, D] of the largest L1 norm, then the instruction's embeddings T [M, D] of the largest L1
    norm, each by descending norm. One pivot t after the other keeps those of the remaining tokens with the smallest
    cos(X_i, pivot_t). The image's pivots are kept as well; text pivots only point. The k - pivot_image tokens beside
    the pivots are shared equally, earlier pivots taking one more where this does not divide. Without text the image's
    pivots share them; for k <= pivot_image the first k pivots are all that is kept.

    Attributes:
        pivot_image: image pivots.
        pivot_text: text pivots.
        strict_paper: as released: every pivot keeps floor(k / pivots), which with the pivots on top makes
            pivot_image + pivots * floor(k / pivots) tokens, 132 for k = 128; no more than N.

    Defaults: 4 and 4 pivots for all models and budgets.

    Source: Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More",
    EMNLP 2025, arXiv 2502.11494.

    Differs from the paper: DART prunes inside the language model, where the norm is of the keys of layer K-1 and the
    cosine of normed hidden states entering layer K. Before layer 0 neither exists; the tokens that the decoder reads
    stand for both, and the rule of selection is the same. Text pivots come from the whole instruction (set
    `handle.instruction` to leave the template out), where the paper takes tokens behind the image only. Differs from
    the released code: exactly k (see `strict_paper`), and pivots in order of their norm (the code iterates a Python
    set, in order of hash).
    """

    pivot_image: int = 4
    pivot_text: int = 4
    strict_paper: bool = False
    needs: ClassVar = frozenset({"features", "text"})
    cost: ClassVar = "8 N D multiply-adds and 8 sorts of N; N D floats"
    when: ClassVar = "Cheap diversity where k greedy steps are too slow; scales to very many tokens."
    limits: ClassVar = (
        "Cosines of raw embeddings say less than those of hidden states: the paper's figures are for inside the model."
    )

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("pivot_image", 1), ("pivot_text", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InvalidArgumentError(f"{name}={value!r} is not an int of at least {least}: give such a number.")

    @property
    def exact(self) -> bool:
        return not self.strict_paper

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        x, norm = tokens.features, tokens.features.float().abs().sum(-1)
        text_norm = tokens.text.float().abs().sum(-1).masked_fill(~tokens.text_mask, -1.0)
        return self.by_norm(x, norm, tokens.text, text_norm, k)

    def by_norm(self, x: Tensor, norm: Tensor, text: Tensor, text_norm: Tensor, k: int) -> Selection:
        """The rule, given what is compared, x [G, N, c] and text [G, M, c], and norms [G, N], [G, M]; -1 is padding."""
        n = x.shape[1]
        image_pivots = top_k(norm, min(self.pivot_image, n if self.strict_paper else k))
        text_pivots = top_k(text_norm, self.pivot_text)
        x, text = unit_norm(x), unit_norm(gather_rows(text, text_pivots))
        pivots = torch.cat([gather_rows(x, image_pivots), text], 1)
        valid = torch.cat([torch.ones_like(image_pivots), (text_norm.gather(1, text_pivots) >= 0).long()], 1)
        number = valid.sum(-1, keepdim=True)
        rest = k - image_pivots.shape[1]
        if self.strict_paper:  # asked one unit at a time
            rest = min(k // int(number[0]) * int(number[0]), n - image_pivots.shape[1])
        counts = valid * (rest // number + (torch.arange(valid.shape[1], device=x.device) < rest % number))
        kept = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device).scatter(1, image_pivots, True)
        place = least_similar_to_pivots(x, pivots, counts, kept)
        others = place.sort(dim=-1, stable=True).indices[:, :rest]
        return Selection.subset(torch.cat([image_pivots, others], 1))
