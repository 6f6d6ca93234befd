"""SparseVLM and SparseVLM+."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from torch import Tensor

from ..errors import InvalidArgumentError
from ..layers import Attention, Event, LayerTokens
from ..registry import register
from ..tokens import Selection
from .raters import marked_by_rank, text_raters, without_gravity
from .recycling import RecyclingPolicy

Version = Literal["1.5", "plus"]
Counts = Literal["schedule", "rank"]
# of 576, by version and the mean that the paper gives: kept behind layers 2, 6, 15; merged ones come on top
LISTS = {
    "1.5": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "plus": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
MERGED = (9, 4, 3)  # on top of 300, 200, 110


@register("sparsevlm")
@dataclass(kw_only=True)
class SparseVLM(RecyclingPolicy):
    """The tokens that the words about the picture attend to; the best of the rest are recycled as a few cluster means.

    Raters: words t with r_t > mean(r), r_t = mean over visual v of softmax over words of H_v . H_t, H the input
    embeddings; the last word where there is none. s_j = mean over raters and heads of A[t, j] in layer l. The tokens of
    the largest s enter layer l + 1, and C more: of the n_p others the m = int(tau n_p) + 1 best go into
    C = int(theta m) + 1 density-peak clusters (`ops.density_peaks`), whose means stand behind the kept ones.

    version="plus", not "1.5": s from A / g, g the rotary embedding's product at the distance of row and token
    (`ops.rotary_gravity`), over the heads alone that attend most to visual tokens; nothing recycled, positions stay.

    Attributes:
        layers: l; tokens leave the input of the layer behind it.
        tau, theta: shares of the others that are recycled, and of clusters among these; tau = 0 recycles nothing.
        version, heads: as above; the heads of "plus" are an int or a share of the layer's heads.
        counts: "schedule", or "rank", the paper's rule: int(13.5 rank(P)) tokens of a prompt stay at each layer and the
            merged on top, P [raters, V] the mean over heads, whatever the budget names. Layers 2, 6, 15, 19 then.
        strict_paper: the schedule names kept tokens, and merged ones come on top; "plus" refuses where g <= 0.

    Defaults: l = 2, 6, 15 of 32 layers; without `keep` and `keeps` the released list for "192" of 576, 309, 204, 113
    with merged tokens ("plus": 300, 200, 118); `keeps=LISTS["1.5"][64], strict_paper=True` is another.

    Source: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML
    2025, arXiv 2410.04417.

    Differs from the released code: exactly k tokens, C of them merged, at most half, unless `strict_paper`; kept
    positions put each mean at its centre; no noise in the density; g counts tokens of the prompt and is at least 1 (it
    turns negative at distance 1707 for base 1e4); its 14 heads, whatever H, are a share; a `keep` of what is there or
    more drops nothing. The paper prunes lambda (V - rank) tokens and sums each cluster; the rule here is the code's.
    """

    rows: ClassVar = "raters"
    raters: ClassVar = staticmethod(text_raters)
    offset: ClassVar = 1
    reads: ClassVar = "attention of chosen words"
    cost: ClassVar = "H T L d multiply-adds for T raters, V T D once, m^2 D for m = 0.3 n_p recycled; m^2 in blocks"
    when: ClassVar = "Questions about something in the picture, at moderate budgets; recycling helps at small ones."
    limits: ClassVar = "Raw embeddings decide the raters, often a single word; the rank is sensitive to rounding."

    layers: tuple[int | float, ...] = (2 / 32, 6 / 32, 15 / 32)
    version: Version = "1.5"
    heads: int | float = 14 / 32
    counts: Counts = "schedule"
    strict_paper: bool = False

    def __post_init__(self):
        for name, allowed in (("version", Version), ("counts", Counts)):
            if (value := getattr(self, name)) not in get_args(allowed):
                raise InvalidArgumentError(f"{name}={value!r} is not one of {', '.join(get_args(allowed))}.")
        whole, share = type(self.heads) is int and self.heads >= 1, type(self.heads) is float and 0 < self.heads <= 1
        if not whole and not share:
            raise InvalidArgumentError(f"heads={self.heads!r} is neither an int of at least 1 nor a share in (0, 1].")
        if (self.version, self.counts) == ("plus", "rank"):
            raise InvalidArgumentError("counts='rank' is no part of version='plus': leave one of them out.")
        super().__post_init__()

    @property
    def positions(self) -> str:
        return "original" if self.version == "plus" else "compact"

    @property
    def exact(self) -> bool:
        return self.counts == "schedule" and (self.version == "plus" or not self.strict_paper)

    @property
    def everywhere(self) -> bool:
        return self.counts == "rank"

    @property
    def published(self) -> tuple[float, ...]:
        if self.counts == "rank":
            return (1.0,) * len(self.layers)
        merged = (0, 0, 0) if self.version == "plus" or self.strict_paper or self.tau == 0 else MERGED
        return tuple((k + c) / 576 for k, c in zip(LISTS[self.version][192], merged, strict=True))

    def count(self, event: Event, total: int) -> int:
        return total if self.counts == "rank" else super().count(event, total)

    def score(self, attention: Attention, event: Event) -> Tensor:
        if self.version == "plus":
            return without_gravity(attention, self.heads, strict=self.strict_paper)
        if self.counts == "rank":
            return marked_by_rank(attention, 13.5)
        return attention.total() / (attention.heads * attention.count())

    def select(self, tokens: LayerTokens, k: int) -> Selection:
        n = tokens.shape[1]
        if self.counts == "rank":
            k = max(1, int((~tokens.scores.signbit()).sum()))
            tokens = replace(tokens, scores=tokens.scores.abs())
        kept = self.kept_of(n, k) if self.exact and self.version != "plus" else k
        return self.recycle(tokens, kept, k - kept if self.exact else self.recycled(n - kept)[1])
