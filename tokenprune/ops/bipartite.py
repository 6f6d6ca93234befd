"""Bipartite matching: which tokens are merged, and into which."""

from __future__ import annotations

import torch
from torch import Tensor

from .greedy import top_k
from .matching import nearest_target
from .merge import remaining
from .normalise import unit_norm


def bipartite_match(metric: Tensor, r: int, *, prefix: int = 0, stride: int = 2) -> tuple[Tensor, Tensor]:
    """Merge r tokens into destinations at fixed places, those that are most like one of them.

    Every stride-th place of the n is a destination: stride - 1, 2 stride - 1, ... All others are sources, each with the
    destination of its largest cosine; the r sources of the largest cosines are merged, several into one destination
    where they agree. The first `prefix` places are neither, but count. Among fewer than `stride` tokens behind them one
    is a destination.

    Args:
        metric: [G, n, d]. A zero vector has cosine 0 with anything.
        r: at most N - ceil(N / stride) for N = n - prefix >= 1; with stride 2 half of them, rounded down.

    Returns:
        [G, n - r] long, the places that stay: prefix, sources that are not merged, destinations. The sources ascend if
        there is a prefix, and come by falling cosine if there is none. [G, n] long, the source map: for every token
        where in that list the one stands that carries it on.

    Cost: N^2 d (stride - 1) / stride^2 multiply-adds and a sort; memory: n d floats and one block of similarities.
    """
    g, n, _ = metric.shape
    stride, place = min(stride, n - prefix), torch.arange(n, device=metric.device)
    b = place[prefix + (-1 - prefix) % stride :: stride]
    a = remaining(torch.cat([place[:prefix], b])[None], n)[0]
    x = unit_norm(metric)
    similarity, partner = nearest_target(x[:, a], x[:, b])
    merged, rest = top_k(similarity, len(a)).split([r, len(a) - r], 1)
    rest = rest.sort(-1).values if prefix else rest
    order = torch.cat([place[:prefix].expand(g, -1), a[rest], b.expand(g, -1)], 1)
    source = torch.empty_like(place).repeat(g, 1).scatter_(1, order, place[: n - r].expand(g, -1))
    return order, source.scatter_(1, a[merged], n - r - len(b) + partner.gather(1, merged))
