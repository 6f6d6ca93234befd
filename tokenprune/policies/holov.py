"""HoloV."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..ops import gather_rows, quotas, runs, similarity_variance, unit_norm
from ..registry import register
from ..tokens import Selection, VisualTokens
from .attention import AttentionPolicy


@register("holov")
@dataclass(kw_only=True)
class HoloV(AttentionPolicy):
    """Holistic: the budget is shared out over C consecutive runs of tokens, and spent in each on its best tokens.

    a [N] attention in the tower, Z [N, D] tokens. In a run of M tokens: S = cosines of Z with a zero diagonal,
    mu_i = sum_j S_ij / (M - 1), v_i = sum_j (S_ij - mu_i)^2 / (M - 1); s_i = 1000 a_i + gamma g v_i with
    g = mean(1000 a) / mean(v). A run gets a share of k in proportion to (mean s)^tau; what is more than its tokens
    goes to the other runs. In each run the tokens of the largest s stay.

    Attributes:
        num_crops: C; None is max(1, floor(1024 N / (576 k))): 16, 8 and 5 for 64, 128 and 192 of LLaVA's 576 tokens.
        gamma: weight of the variance; None is 1, and 0.09 with `strict_paper`.
        tau: exponent of the runs' scores: above 1 strong runs get more, 0 shares equally.
        by: "score", the tokens of the largest s stay in a run; "attention", those of the largest a.
        attention: maps `VisualTokens` to a [G, N].
        strict_paper: as released: by attention, gamma 0.09; what a run cannot take is lost, and rows of zeros stand
            for the missing tokens, here at the lowest places not chosen.

    Source: Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
    NeurIPS 2025, arXiv 2510.02912.

    Differs from the released code, which contradicts the paper: by default this is the paper (score, gamma,
    redistribution); see `strict_paper`. Differs from the paper: overflow is shared out by the runs' weights alone, in
    closed form (the paper: by weight times free room, in rounds), and what rounding leaves goes one each to the runs of
    the largest weight, as in the code (the paper: all to one run). Tokens stay in their original order in either mode;
    the code's order, run by run, is `Selection.order`. Re-injection of pruned tokens, in the paper only, is not here.
    """

    num_crops: int | None = None
    gamma: float | None = None
    tau: float = 1.0
    by: Literal["score", "attention"] = "score"
    strict_paper: bool = False
    cost: ClassVar = "N^2 D / C multiply-adds, a sort; two 32 MiB blocks + 2 N D floats"
    when: ClassVar = "Strong pruning where attention alone crowds into few spots: every region keeps a say."
    limits: ClassVar = "Runs are stripes of the raster, not regions. Reads the tower's attention, which favours sinks."

    def __post_init__(self):
        super().__post_init__()
        if self.num_crops is not None and (type(self.num_crops) is not int or self.num_crops < 1):
            raise InvalidArgumentError(f"num_crops={self.num_crops!r} is not an int of at least 1: give one, or None.")
        for name, value in (("gamma", 1.0 if self.gamma is None else self.gamma), ("tau", self.tau)):
            if not isinstance(value, (int, float)) or not 0.0 <= value < float("inf"):
                raise InvalidArgumentError(f"{name}={value!r} is not a float of at least 0: give such a float.")
        if self.by not in ("score", "attention"):
            raise InvalidArgumentError(f"by={self.by!r} is neither 'score' nor 'attention': give one of them.")

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        n = tokens.shape[1]
        c = min(n, self.num_crops or max(1, 1024 * n // (576 * k)))
        place, real = runs(n, c, tokens.features.device)
        attention = self.attention(tokens).float()[:, place] * real
        variance = similarity_variance(unit_norm(tokens.features)[:, place], real)
        sizes, strict = real.sum(-1), self.strict_paper
        scale = 1000 * attention.abs().sum(-1) / (variance.sum(-1) + 1e-6 * sizes)
        gamma = (0.09 if strict else 1.0) if self.gamma is None else self.gamma
        score = 1000 * attention + gamma * scale[..., None] * variance
        weights = (score.sum(-1) / sizes).clamp_min(0.0) ** self.tau
        quota = _released_quotas(k, weights) if strict else quotas(k, sizes, weights)
        best = score if self.by == "score" and not strict else attention
        rank = best.masked_fill(~real, -torch.inf).sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
        at = torch.arange(rank.shape[-1], device=rank.device)
        rank = torch.where((quota >= sizes)[..., None], at, rank) if strict else rank
        kept = (rank < quota[..., None]) & real
        later = torch.where(kept, torch.arange(c, device=rank.device)[:, None] * len(at) + rank, c * len(at))
        sequence = (~real).flatten().long().sort(stable=True).indices[:n]  # without the padding
        order = later.flatten(1)[:, sequence].sort(dim=-1, stable=True).indices[:, :k]
        subset = Selection.subset(order, scores=score.flatten(1)[:, sequence])
        return _with_zeros(tokens, subset, kept.flatten(1)[:, sequence]) if strict else subset


def _released_quotas(k: int, weights: Tensor) -> Tensor:
    """[G, C] long, whatever the runs can take."""
    share = weights / (weights.sum(-1, keepdim=True) + 1e-6)
    quota = (share * k).floor().long()
    rank = share.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    return quota + (rank < k - quota.sum(-1, keepdim=True))


def _with_zeros(tokens: VisualTokens, subset: Selection, kept: Tensor) -> Selection:
    """The k places of `subset`, with a row of zeros at those that are not kept."""
    rows = gather_rows(tokens.features, subset.indices) * kept.gather(1, subset.indices)[..., None]
    sizes = torch.ones_like(subset.indices, dtype=torch.float32)
    source = subset.source_map(tokens.shape[1])
    return replace(subset, features=rows, source=source, sizes=sizes, weights=kept.float())
