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

    Cost: N^2 d (stride - 1) / stride^2 multiply-adds and two sorts; memory: n d floats and one block of similarities.
    14 operations on the device with stride 2, if the similarities are one block.
    """
    g, n, _ = metric.shape
    stride, place = min(stride, n - prefix), torch.arange(n, device=metric.device)
    to = slice(prefix + (-1 - prefix) % stride, None, stride)
    b, x = place[to], unit_norm(metric)
    if stride == 2:  # all others are a view as well
        others = slice(prefix + prefix % 2, None, 2)
        a, given = place[others], x[:, others]
    else:
        a = remaining(torch.cat([place[:prefix], b])[None], n)[0]
        given = x[:, a]
    similarity, partner = nearest_target(given, x[:, to])
    ranked = top_k(similarity, a.shape[0])
    merged, rest = a[ranked].split([r, a.shape[0] - r], 1)
    rest = rest.sort(-1).values if prefix else rest
    order = torch.cat([place[:prefix].expand(g, -1), rest, b.expand(g, -1)], 1)
    source = order.new_empty(g, n).scatter_(1, order, place[: n - r].expand(g, -1))
    return order, source.scatter_(1, merged, partner.gather(1, ranked[:, :r]) + (n - r - b.shape[0]))
