"""Every policy inside the language model once, configured, and what one may look at there."""

from dataclasses import dataclass, replace
from functools import partial

import torch

from tokenprune.layers import Attention, Event, LayerTokens
from tokenprune.policies import (
    AdaptInfer,
    FastV,
    FrameFusion,
    HiMAP,
    HoliTomInner,
    PruneVidInside,
    PyramidDrop,
    RandomLayers,
    SparseVLM,
)
from tokenprune.policies.debiasing import Debiased

# name -> factory; call it with keep=... (and per=..., rounding=...)
LAYER_POLICIES = {
    "fastv": FastV,
    "pyramiddrop": PyramidDrop,
    "sparsevlm": SparseVLM,
    "sparsevlm-subset": partial(SparseVLM, tau=0),
    "sparsevlm-plus": partial(SparseVLM, version="plus"),
    "himap": HiMAP,
    "adaptinfer": AdaptInfer,
    "adaptinfer-half": partial(AdaptInfer, lb=0.5),
    "framefusion": FrameFusion,
    "prunevid-inside": partial(PruneVidInside, forget=False),  # which tests/stages/test_forgetting.py is about
    "holitom-inner": HoliTomInner,
    "debiased": partial(Debiased, inner="fastv", trend=None, padding="area"),  # of no picture: nothing to correct
    "random-layers": partial(RandomLayers, seed=1),
}
# Policy -> why shuffling its tokens must not shuffle its answer.
LAYER_BY_PLACE = {
    "random-layers": "draws places",
    "framefusion": "compares a place with itself, frame by frame",
    "holitom-inner": "folds tokens in the order of the sequence",
}
# Policies whose first event looks at no attention
UNSCORED = ("random-layers", "framefusion")
# Policies whose answer holds means of tokens that go
RECYCLING = ("sparsevlm", "holitom-inner")


@dataclass(kw_only=True)
class GivenAttention(Attention):
    """Rows of given probabilities, [B, H, R, L], some at a time."""

    probabilities: torch.Tensor
    some: int = 3

    def blocks(self):
        for start in range(0, self.probabilities.shape[2], self.some):
            rows = slice(start, start + self.some)
            yield rows, self.probabilities[:, :, rows]


def spans(prefix: int, visual: int, text: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[1, L] bool, the visual tokens and the text behind them, of one prompt."""
    place = torch.arange(prefix + visual + text)[None]
    return (place >= prefix) & (place < prefix + visual), place >= prefix + visual


def given_attention(probabilities, rows, visual, text, **fields) -> GivenAttention:
    """Around [B, H, R, L] probabilities of rows at [B, R] positions; nothing has left before."""
    place = torch.arange(visual.shape[1]).expand(visual.shape)
    defaults = {"row_mask": torch.ones_like(rows, dtype=torch.bool), "place": place, "heads": probabilities.shape[1]}
    return GivenAttention(probabilities=probabilities, rows=rows, visual=visual, text=text, **(defaults | fields))


def causal_attention(sizes, *, heads=4, rows="text", seed=0, theta=10000.0, dim=8, raters=None) -> GivenAttention:
    """Random causal attention of prompts of (prefix, visual, text) tokens each, padded on the right.

    Args:
        raters: [B, L] bool, the rows where `rows` is "raters".
    """
    length = max(map(sum, sizes))
    visual, text = (torch.zeros(len(sizes), length, dtype=torch.bool) for _ in range(2))
    maps = torch.zeros(len(sizes), heads, length, length)
    for i, size in enumerate(sizes):
        n, generator = sum(size), torch.Generator().manual_seed(seed + i)
        scores = torch.randn(heads, n, n, generator=generator).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        maps[i, :, :n, :n] = scores.softmax(-1)
        visual[i, :n], text[i, :n] = (span[0] for span in spans(*size))
    which = {"text": text, "visual": visual, "raters": raters}.get(rows)
    if rows == "last":
        last = torch.tensor([sum(size) - 1 for size in sizes])
        which = torch.arange(length) == last[:, None]
    counts = which.sum(1, keepdim=True)
    places = which.byte().sort(dim=1, descending=True, stable=True).indices[:, : int(counts.max())]
    mask = torch.arange(places.shape[1]) < counts
    taken = maps.gather(2, places[:, None, :, None].expand(-1, heads, -1, length)) * mask[:, None, :, None]
    frequencies = theta ** -(torch.arange(0, dim, 2) / dim)
    return given_attention(taken, places.masked_fill(~mask, -1), visual, text, row_mask=mask, frequencies=frequencies)


def layer_tokens(hidden, scores=None, *, number=0, **fields) -> LayerTokens:
    """Around [G, N, D] hidden states; without scores, random ones."""
    g, n, _ = hidden.shape
    if scores is None:
        scores = torch.rand(g, n, generator=torch.Generator().manual_seed(n))
    place = torch.arange(n).expand(g, n)
    defaults = {"place": place, "total": n, "keys": list(range(g)), "event": Event(drop=2, score=1, number=number)}
    defaults["grid"] = None if n % 2 else (2, n // 2, 1)
    return LayerTokens(hidden=hidden, scores=scores, **(defaults | fields))


def layer_unit(tokens: LayerTokens, i: int) -> LayerTokens:
    """Unit i alone."""
    part = slice(i, i + 1)
    names = ("hidden", "scores", "place", "keys")
    return replace(tokens, **{name: getattr(tokens, name)[part] for name in names})


def shuffled(tokens: LayerTokens, shuffle: torch.Tensor) -> LayerTokens:
    """The same tokens in another order, [N] long."""
    return replace(tokens, hidden=tokens.hidden[:, shuffle], scores=tokens.scores[:, shuffle])
