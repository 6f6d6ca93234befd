"""FastVID's anchors: which tokens they are, and what they take up."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import density_scores, nearest_target, sent, true_places, unit_norm
from ..ops.density import DISTANCES
from .fastvid_counts import Counts

NEIGHBOURS = 4  # of a token's density


def centre_scores(x: Tensor, salient: Tensor, counts: list[Counts], noise: Tensor | None) -> Tensor:
    """[G, T, N]: how good an anchor each token is among those of its frame that are not salient; -inf elsewhere.

    Args:
        x: [G, T, N, D].
        salient: [G, T, N] bool.
        noise: [G, T, M], of the M tokens of each frame that are not salient.
    """
    scores = torch.full(salient.shape, -torch.inf, device=x.device)
    frames: dict[int, list[tuple[int, int]]] = {}
    for g, one in enumerate(counts):
        for t, (s, q) in enumerate(zip(one.salient, one.anchors, strict=True)):
            if q:
                frames.setdefault(one.n - s, []).append((g, t))
    for m, places in frames.items():
        block = max(1, DISTANCES // (m * m))
        for start in range(0, len(places), block):
            g, t = sent(places[start : start + block], x.device).T
            rest = true_places(~salient[g, t], m)
            found = density_scores(
                x[g[:, None], t[:, None], rest], NEIGHBOURS, None if noise is None else noise[g, t, :m]
            )
            scores[g[:, None], t[:, None], rest] = found.clamp_min(torch.finfo(torch.float32).min)
    return scores


def merged(
    x: Tensor, salient: Tensor, anchors: Tensor, counts: Counts, beta: float, *, themselves: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The salient tokens and the anchors of one video, each anchor with what it takes up.

    Args:
        x: [T, N, D].
        salient, anchors: [T, N] bool.
        themselves: anchors are among the tokens that go to the most similar anchor of their frame.

    Returns:
        indices, features, source and weights of a `Selection`, without G.
    """
    n, flat, salient = counts.n, x.flatten(0, 1), salient.flatten()
    kept = salient | anchors.flatten()
    indices = true_places(kept[None], counts.total)[0]
    wide, unit, features = flat.float(), unit_norm(flat), flat[indices]
    best = torch.full(kept.shape, -torch.inf, device=x.device)  # cosine with the anchor that is said to carry a token
    carrier, weights, of_itself = torch.full_like(best, -1).long(), torch.ones_like(best), torch.ones_like(best)
    for frame, segment in ((f, one) for one in counts.segments for f in one if counts.anchors[f]):
        q = counts.anchors[frame]
        frames = range(frame, frame + 1) if frame in counts.alone else segment
        pool = slice(frames.start * n, frames.stop * n)
        own = frame * n + true_places(anchors[frame, None], q)[0]
        inside = own - pool.start
        cosine, to = (one[0] for one in nearest_target(unit[None, pool], unit[None, own]))
        goes = ~salient[pool] if themselves else (~salient[pool]).index_fill(0, inside, False)
        to = torch.where(goes, to, q)  # what goes nowhere lands in one extra row
        size = torch.zeros(q + 1, device=x.device).index_add_(0, to, goes.float())
        mean = wide.new_zeros(q + 1, x.shape[2]).index_add_(0, to, wide[pool]) / size.clamp_min(1.0)[:, None]
        w = (1.0 / (size + 1.0)).clamp_min(beta)
        new = w[:q, None] * wide[own] + (1.0 - w[:q, None]) * mean[:q]
        features[torch.searchsorted(indices, own)] = new.to(x.dtype)
        share = (1.0 - w) / size.clamp_min(1.0)
        nearer = goes & (cosine > best[pool])
        best[pool] = torch.where(nearer, cosine, best[pool])
        carrier[pool] = torch.where(nearer, own[to.clamp_max(q - 1)], carrier[pool])
        weights[pool] = torch.where(nearer, share[to], weights[pool])
        of_itself[own] = w[:q] + share[:q] * (to[inside] == torch.arange(q, device=x.device))
    carrier = torch.where(kept, torch.arange(len(kept), device=x.device), carrier)
    source = torch.where(carrier >= 0, torch.searchsorted(indices, carrier), -1)
    return indices, features, source, torch.where(kept, of_itself, weights)
