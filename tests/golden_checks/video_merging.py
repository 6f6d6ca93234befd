"""PruneVid and HoliTom, both halves of each."""

from dataclasses import replace

import numpy as np
import torch

from tests.default_layer_policies import given_attention, spans
from tokenprune.ops import best_windows, density_peaks, density_scores, frame_change, refine_labels
from tokenprune.policies import HoliTom, HoliTomInner, PruneVid, PruneVidInside
from tokenprune.policies.over_time import merged

from .common import floats, same
from .in_decoder import scored
from .video_pruning import EXACT, parameters, video, with_newlines


class Draws:
    """The noise of the file, as many numbers as are asked for."""

    def __init__(self, z):
        self.left = floats(z["noise"]).flatten()

    def __call__(self, n):
        drawn, self.left = self.left[None, :n], self.left[n:]
        return drawn


def in_order(selection) -> torch.Tensor:
    """Rows of one unit in the order of the paper."""
    return selection.features[0, torch.searchsorted(selection.indices, selection.order)[0]]


def check_density(z):
    p, x, noise = parameters(z), floats(z["x"]), floats(z["noise"])
    centres, cluster = density_peaks(x, p["cluster_num"], neighbours=p["k"], noise=noise)
    same(centres, z["centers"])
    same(cluster, z["idx_cluster"])
    scores = density_scores(x, p["k"], noise).exp()
    np.testing.assert_allclose(scores.numpy(), z["density"] * z["delta"], **EXACT)


def check_refined(z):
    for labels, refined, lengths in zip(z["labels"], z["refined"], z["segment_lengths"], strict=True):
        segments = refine_labels(labels.tolist())
        assert [label for label, n in segments for _ in range(n)] == refined.tolist()
        assert [n for _, n in segments] == lengths[lengths > 0].tolist()


def check_prunevid(z):
    """As released, with the noise that was drawn; and k tokens where k is the released count."""
    p, tokens, draws = parameters(z), video(z), Draws(z)
    names = {"tau": "tau", "gamma": "temporal_segment_ratio", "beta": "cluster_ratio", "neighbours": "k"}
    policy = PruneVid(strict_paper=True, **{field: p[name] for field, name in names.items()})
    x = floats(z["frames"])
    (lengths,) = policy._cut(x[None], draws(len(x)))
    same(torch.tensor(lengths), z["window_sizes"])
    selection = merged(tokens, [policy._merge(x, lengths, 1, draws)])
    assert len(draws.left) == 0
    np.testing.assert_allclose(in_order(selection).numpy(), z["merged"], **EXACT)
    segment = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[selection.indices[0] // x.shape[1]]
    same(segment.bincount(minlength=len(lengths)), z["static_sizes"] + z["dynamic_sizes"])
    if p["noise_mode"] == "zero":
        for one in (policy, replace(policy, strict_paper=False)):
            again = one.select(tokens, len(z["merged"]))
            assert torch.equal(again.source, selection.source)
            assert torch.equal(again.features, selection.features)


def check_prunevid_inside(z):
    """Static tokens of a segment and the others of each of its frames as frames of a grid that is large enough."""
    p, rows = parameters(z), floats(z["text_to_video"])
    per_segment = zip(*(z[f"{name}_sizes"].tolist() for name in ("static", "dynamic", "window")), strict=True)
    sizes = [n for static, moving, frames in per_segment for n in (static, *[moving // frames] * frames)]
    heads, words, n = rows.shape
    visual, text = spans(p["pre_tokens"], n, words)
    probabilities = torch.zeros(1, heads, words, visual.shape[1])
    probabilities[..., visual[0]] = rows
    policy = PruneVidInside(keep=p["alpha"], strict_paper=True)
    tokens = scored(policy, given_attention(probabilities, text.nonzero()[None, :, 1], visual, text))
    np.testing.assert_allclose(tokens.scores[0].numpy(), rows.amax((0, 1)).numpy())
    frame = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    tokens = replace(tokens, place=(frame * n + torch.arange(n))[None], grid=(len(sizes), 1, n))
    left = policy.select(tokens, n).indices[0]
    before, behind = torch.arange(p["pre_tokens"]), p["pre_tokens"] + n + torch.arange(words)
    same(torch.cat([before, p["pre_tokens"] + left, behind]), z["keep"])
    assert (policy.positions, [(e.score, e.drop) for e in policy.events(32)]) == ("original", [(10, 11)])


def check_windows(z):
    for similarity, (tau, longest), windows, total in zip(
        floats(z["similarity"]), z["tau_maxwindow"], z["windows"], z["total_reduced"], strict=True
    ):
        lengths, saved = best_windows(similarity > tau, int(longest))
        assert saved == total
        same(first_and_last(lengths), windows[windows[:, 0] >= 0])


def first_and_last(lengths) -> torch.Tensor:
    end = torch.tensor(lengths).cumsum(0)
    return torch.stack([end - torch.tensor(lengths), end - 1], 1)


def check_holitom(z):
    p, tokens, x = parameters(z), video(z), floats(z["frames"])
    similarity = 1.0 - frame_change(x[None], range(len(x) - 1), range(1, len(x)))[0]
    np.testing.assert_allclose(similarity.numpy(), z["similarity"], **EXACT)
    lengths, saved = best_windows(similarity > p["tau"], p["max_window_size"])
    assert saved == z["total_reduced"]
    same(first_and_last(lengths), z["windows"])
    policy = HoliTom(
        keep=p["retain_ratio"],
        tau=p["tau"],
        beta=None if str(p["NO_BETA"]) == "1" else p["Beta"],
        neighbours=p["K"],
        max_window=p["max_window_size"],
        attention=lambda _: floats(z["attn"]).flatten()[None],
        strict_paper=True,
    )
    draws = Draws(z)
    selection = merged(tokens, [policy._merge(x, floats(z["attn"]).flatten(), p["retain_ratio"], draws)])
    assert len(draws.left) == 0
    rows, places, frame_size = in_order(selection), selection.indices[0], x.shape[1]
    if p["mm_newline_position"] == "grid":
        rows, places = with_newlines(z, selection.features[0], places)
        frame_size += p["grid"]
    np.testing.assert_allclose(rows.numpy(), z["tokens"], **EXACT)
    window = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[places // frame_size]
    same(window.bincount(minlength=len(lengths)), z["segment_token_counts"])
    if p["noise_mode"] == "zero":
        again = policy.select(tokens, policy.budget.count(tokens.shape[1]))
        assert torch.equal(again.source, selection.source)
        assert torch.equal(again.features, selection.features)


def check_holitom_inner(z):
    p, hidden, rows = parameters(z), floats(z["hidden"]), floats(z["last_query_attention"])
    before, n = p["pre_tokens"], p["video_tokens"]
    visual, text = spans(before, n, p["post_tokens"])
    policy = HoliTomInner(keep=1.0 - p["r"])
    attention = given_attention(rows[:, :, None], torch.tensor([[hidden.shape[1] - 1]]), visual, text)
    tokens = replace(scored(policy, attention), hidden=hidden[:, before : before + n])
    selection = policy.select(tokens, policy.count(tokens.event, n))
    behind = torch.arange(before + n, hidden.shape[1])
    same(torch.cat([torch.arange(before), before + selection.indices[0], behind]), z["keep"])
    out = torch.cat([hidden[:, :before], selection.features, hidden[:, before + n :]], 1)
    np.testing.assert_allclose(out.numpy(), z["hidden_out"], **EXACT)
    assert (policy.positions, [(e.score, e.drop) for e in policy.events(28)]) == ("original", [(17, 18)])


FAMILIES = {
    "holitom": check_holitom,
    "holitom_inner": check_holitom_inner,
    "holitom_windows": check_windows,
    "prunevid_dpcknn": check_density,
    "prunevid_llm_select": check_prunevid_inside,
    "prunevid_merge": check_prunevid,
    "prunevid_refine": check_refined,
}
