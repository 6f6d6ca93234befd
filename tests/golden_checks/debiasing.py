"""Attention Debiasing: trends, padding masks, and its hosts FastV, PyramidDrop, SparseVLM and HiMAP."""

import numpy as np
import torch

from tokenprune.layers import Event, LayerTokens
from tokenprune.ops.padding import content_cells
from tokenprune.policies.debias import debiased
from tokenprune.policies.layer import LayerPolicy
from tokenprune.policies.trend import Trend

from .common import floats, same

SIDE = 24
HOSTS = {"FastV": "fastv", "PyramidDrop": "pyramiddrop", "SparseVLMs": "sparsevlm", "HiMAP": "himap"}


class Host(LayerPolicy):
    """Keeps the k of the largest score, and remembers what it was shown."""

    def select(self, tokens, k):
        self.shown = tokens
        return super().select(tokens, k)


def ranked(scores, k, *, trend=None, padding=None, threshold=0.5, size=None):
    """Indices that a host keeps by [V] scores of one square picture, and what it was shown."""
    host, v = Host(), len(scores)
    tokens = LayerTokens(
        hidden=torch.zeros(1, v, 1),
        scores=scores[None],
        place=torch.arange(v)[None],
        total=v,
        grid=(1, SIDE, SIDE),
        image_sizes=[size],
        event=Event(drop=2, score=1),
    )
    if trend is None and padding is None:
        return host.select(tokens, k).indices[0], tokens
    policy = debiased(host, trend=trend, padding=padding, threshold=threshold)
    return policy.select(tokens, k).indices[0], policy.inner.shown


def kept(scores, k, **ways):
    return ranked(scores, k, **ways)[0]


class Rounded(Trend):
    def weights(self, place, total):
        return super().weights(place, total).half().float()


def stored(weights):
    """The trend whose weights were stored: the cubic of FastV, or an exponential by its last weight."""
    exponential = Trend(coefficients=(-float(np.log(np.float64(weights[-1]))),))
    candidates = (exponential, Trend.published("fastv"))
    fitting = [one for one in candidates if np.allclose(_weights(one, len(weights)), weights, rtol=1e-6, atol=0)]
    assert fitting, "neither an exponential nor the published cubic"
    return fitting[0]


def _weights(trend, v):
    return trend.weights(torch.arange(v)[None], v)[0].numpy()


def _visual(positions, start, v):
    """Positions of the sequence -> indices of the visual tokens among them."""
    return positions[(positions >= start) & (positions < start + v)] - start


def check_trend_weights(z):
    """The stored vectors, by the name of their file, from the rates in the table."""
    names = {"sqa": "scienceqa", "mmb": "mmbench", "mm-vet": "mmvet"}
    for key in z:
        method, benchmark = key.split("__")
        benchmark = None if method == "FastV" else names.get(benchmark.lower(), benchmark.lower().replace("-", "_"))
        trend = Trend.published(HOSTS.get(method, method.lower()), benchmark)
        np.testing.assert_allclose(_weights(trend, len(z[key])), z[key], rtol=1e-6)


def check_pad_masks(z):
    sizes = list(zip(z["width"].tolist(), z["height"].tolist(), strict=True))
    for i, threshold in enumerate(z["thresholds"].tolist()):
        same(content_cells(sizes, SIDE, "area", threshold), z["generate_pad_mask"][:, i].reshape(len(sizes), -1))
    same(content_cells(sizes, SIDE, "crop", 0.5), z["unpad_mask"].reshape(len(sizes), -1))
    same(content_cells(sizes, SIDE, "bilinear", 0.5), z["sparsevlm_pad_mask"])


def check_fastv(z):
    """As released, k is at most the count of patches that show the picture."""
    start, v = int(z["sys_length"]), int(z["image_token_length"])
    scores = floats(z["attn_last_row"]).mean(0)[start : start + v]
    trend, others = stored(z["trend_weight"]), z["attn_last_row"].shape[1] - v
    for rank in z["ranks"].tolist():
        same(kept(scores, rank), _visual(z[f"keep_paper_rank{rank}"], start, v))
        same(kept(scores, rank, trend=trend), _visual(z[f"keep_after_nopad_rank{rank}"], start, v))
        for i, size in enumerate(map(tuple, z["image_sizes_wh"].tolist())):
            for tag, ways in (("before", {"padding": "crop"}), ("after", {"padding": "area", "trend": trend})):
                expected = z[f"keep_{tag}_img{i}_rank{rank}"]
                content = int(content_cells([size], SIDE, ways["padding"], 0.5).sum())
                assert len(expected) - others == min(rank, content)
                same(kept(scores, min(rank, content), size=size, **ways), _visual(expected, start, v))


def check_pyramiddrop(z):
    """The first stage, by the scores that the untouched host had."""
    v, start = len(z["trend_weight"]), 35
    scores, size = floats(z["score_given_to_topk_paper"]), tuple(z["image_size_wh"].tolist())
    pad = {"padding": "area", "threshold": 0.01, "size": size}
    for tag, ways in {"paper": {}, "pad_only": pad, "after": {**pad, "trend": stored(z["trend_weight"])}}.items():
        expected = _visual(z[f"kept_source_index_{tag}"], start, v)
        indices, shown = ranked(scores, len(expected), **ways)
        same(indices, expected)
        np.testing.assert_allclose(shown.ranking[0], z[f"score_given_to_topk_{tag}"], rtol=1e-4, atol=1e-7)


def check_sparsevlm(z):
    """What recycling ranks by is the score as it was."""
    raters, size = torch.from_numpy(z["rater_index"]), tuple(z["image_size_wh"].tolist())
    scores, trend = floats(z["attn_text_rows_visual"])[:, raters].mean((0, 1)), stored(z["trend_weight"])
    same(content_cells([size], SIDE, "bilinear", 0.5)[0], z["pad_mask"])
    pad = {"padding": "bilinear", "size": size}
    for tag, ways in {
        "pad_only": pad,
        "trend_only": {"trend": trend},
        "pad_and_trend": {**pad, "trend": trend},
    }.items():
        found = [key for key in z if key.startswith(f"keep_visual_index_{tag}_")]
        assert found
        for key in found:
            indices, shown = ranked(scores, len(z[key]), **ways)
            same(indices, np.sort(z[key]))
            np.testing.assert_allclose(shown.scores[0], z["score_visual_returned"], rtol=1e-4, atol=1e-7)


def himap_debiased(z):
    """The debiased first stage of HiMAP, part of the check of `himap*`: its weights were rounded to float16."""
    start, v = int(z["sys_length"]), int(z["image_token_length"])
    scores, size = floats(z["attn_text_rows_visual"]).mean(0).sum(0), tuple(z["image_size_wh"].tolist())
    trend = Rounded(coefficients=stored(z["trend_weight"]).coefficients)
    indices = kept(scores, int(z["txt_rank"]), trend=trend, padding="area", size=size)
    same(indices, _visual(z["keep_stage1_debiased"], start, v))


FAMILIES = {
    "debias_trend_weights": check_trend_weights,
    "debias_pad_masks": check_pad_masks,
    "debias_fastv": check_fastv,
    "debias_pdrop": check_pyramiddrop,
    "debias_sparsevlm": check_sparsevlm,
}
