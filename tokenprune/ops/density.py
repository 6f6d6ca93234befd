"""Density-peak clustering, and the map of tokens that are recycled into a few cluster means."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .greedy import top_k
from .matching import gather_rows
from .merge import remaining

# Distances held at once (16 MiB of float32).
DISTANCES = 2**22


def density_peaks(x: Tensor, c: int) -> tuple[Tensor, Tensor]:
    """Cluster M tokens around those that are dense and far from denser ones (Rodriguez and Laio, 2014).

    D_ab = ||x_a - x_b|| / sqrt(d); rho_a = exp(-mean of the c smallest D_ab^2), that with itself among them;
    delta_a = min D_ab over denser b, for the densest the largest distance of any two; centres are the c largest of
    rho delta, and every token joins the nearest centre. Ties go to the lowest index: of two equally dense tokens the
    first is the denser one. Only logarithms of rho are taken, which stay apart where rho itself would be 0.

    Args:
        x: [G, M, d].
        c: clusters, 1 <= c <= M.

    Returns:
        [G, c] long, the centres, best first; [G, M] long, which of them each token joins.

    Cost: M^2 d multiply-adds, twice that above 2048 tokens; memory: M d floats and two blocks of distances.
    """
    x = x.float()
    g, m, d = x.shape
    whole = list(_distances(x, x)) if g * m * m <= DISTANCES else None  # made twice only where they are many
    density, largest = [], []
    for _, distance in whole or _distances(x, x):
        density.append(-(distance.topk(c, largest=False).values ** 2).mean(-1) / d)
        largest.append(distance.amax((1, 2)))
    density, largest = torch.cat(density, 1), torch.stack(largest, 1).amax(1)
    order = top_k(density, m)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(m, device=x.device).expand(g, m))
    apart = []
    for some, distance in whole or _distances(x, x):
        denser = rank[:, None] < rank[:, some, None]
        apart.append(distance.masked_fill_(~denser, torch.inf).amin(-1).minimum(largest[:, None]))
    centres = top_k(density + torch.cat(apart, 1).log(), c)
    joined = torch.cat([distance.argmin(-1) for _, distance in _distances(x, gather_rows(x, centres))], 1)
    return centres, joined.scatter(1, centres, torch.arange(c, device=x.device).expand(g, c))


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances [G, rows, M] of rows of x to all of y; exact: those by matrix products lose twins."""
    block = max(1, DISTANCES // (x.shape[0] * y.shape[1]))
    for start in range(0, x.shape[1], block):
        some = slice(start, start + block)
        yield some, torch.cdist(x[:, some], y, compute_mode="donot_use_mm_for_euclid_dist")


def recycled_map(
    hidden: Tensor, scores: Tensor, kept: Tensor, recycled: int, clusters: int, *, last: bool
) -> tuple[Tensor, Tensor]:
    """The map of A kept tokens and of clusters of the best of the others.

    Args:
        hidden: [G, N, d], what is clustered.
        scores: [G, N], which of the others are best.
        kept: [G, A] long, ascending.
        recycled: how many of the others go into clusters; what else is left is lost.
        clusters: C, 1 <= C <= recycled.
        last: the survivors stand as kept tokens and then clusters, centres in order, on the places of the kept ones
            and the last C others. Otherwise kept tokens stand where they are, and each cluster at its centre.

    Returns:
        [G, A + C] long, indices of the survivors, ascending; [G, N] long, the source map.
    """
    n, a = scores.shape[1], kept.shape[1]
    others = remaining(kept, n)
    members = others.gather(1, top_k(scores.gather(1, others), recycled))
    centres, cluster = density_peaks(gather_rows(hidden, members), clusters)
    slots = torch.cat([kept, others[:, -clusters:] if last else members.gather(1, centres)], 1)
    indices = slots.sort(-1).values
    if last:
        place = torch.arange(a + clusters, device=kept.device).expand_as(indices)
    else:
        place = torch.searchsorted(indices, slots)
    source = kept.new_full((kept.shape[0], n), -1).scatter(1, kept, place[:, :a])
    return indices, source.scatter(1, members, place[:, a:].gather(1, cluster))
