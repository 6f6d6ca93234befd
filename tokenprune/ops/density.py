"""Density-peak clustering, and the map of tokens that are recycled into a few cluster means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from .greedy import top_k
from .matching import gather_rows
from .merge import remaining, sizes_by_source

# Distances held at once (16 MiB of float32).
DISTANCES = 2**22
# Tokens up to which all pairs are worked out at once, which needs their places, too.
PAIRS = 512


def density_scores(x: Tensor, neighbours: int, noise: Tensor | None = None) -> Tensor:
    """How good a cluster centre each of M tokens is: dense, and far from denser ones (Rodriguez and Laio, 2014).

    D_ab = ||x_a - x_b|| / sqrt(d); rho_a = exp(-mean of the smallest D_ab^2), that with itself among them;
    delta_a = min D_ab over denser b, for the densest the largest distance of any two. The score is log(rho delta):
    logarithms stay apart where rho itself would be 0. Of two equally dense tokens the first is the denser one.

    Args:
        x: [G, M, d].
        neighbours: how many of the smallest distances; all M where there are fewer.
        noise: [G, M] in [0, 1): rho grows by a millionth of it, as released code breaks ties.

    Returns:
        [G, M] float32; -inf for a token that has a denser twin.

    Cost: M^2 d multiply-adds, twice that above 2048 tokens; memory: M d floats and three blocks of distances.
    """
    return _scores(x.float(), neighbours, noise)[0]


def density_peaks(
    x: Tensor, c: int, *, neighbours: int | None = None, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cluster M tokens: centres are the c of the largest `density_scores`, and every token joins the nearest centre.

    Ties go to the lowest index, of centres to the best.

    Args:
        x: [G, M, d].
        c: clusters, 1 <= c <= M.
        neighbours, noise: as in `density_scores`; as many neighbours as clusters where none are given.

    Returns:
        [G, c] long, the centres, best first; [G, M] long, which of them each token joins.

    Cost: that of `density_scores`, and M c d above 2048 tokens.
    """
    x = x.float()
    scores, whole = _scores(x, neighbours or c, noise)
    centres = top_k(scores, c)
    if whole is None:
        return centres, nearest_centre(x, centres)
    return centres, _joined(centres, [rows.gather(2, centres[:, None].expand(*rows.shape[:2], c)) for rows in whole])


def nearest_centre(x: Tensor, centres: Tensor) -> Tensor:
    """[G, M] long: which of the tokens at `centres` [G, c] each of [G, M, d] is nearest to, the first among equals.

    A centre is its own, whatever twins it has. Cost: M c d multiply-adds; memory: two blocks of distances.
    """
    x = x.float()
    return _joined(centres, (distance for _, distance in _distances(x, gather_rows(x, centres))))


def centre_weights(cluster: Tensor, centres: Tensor, beta: float | None) -> Tensor:
    """[G, M]: weights of tokens in beta centre + (1 - beta) mean(others) of their clusters; 1 for a centre alone.

    All are 1 where beta is None.

    Args:
        cluster: [G, M] long, which of the centres each token belongs to.
        centres: [G, c] long, a token of each cluster.
    """
    others = sizes_by_source(cluster, centres.shape[1]) - 1
    if beta is None:
        return torch.ones_like(cluster, dtype=torch.float32)
    weights = (1 - beta) / others.clamp_min(1).gather(1, cluster)
    return weights.scatter(1, centres, torch.where(others > 0, beta, 1.0))


def _joined(centres: Tensor, distances: Iterable[Tensor]) -> Tensor:
    joined = torch.cat([some.argmin(-1) for some in distances], 1)
    return joined.scatter(1, centres, torch.arange(centres.shape[1], device=joined.device).expand_as(centres))


def _scores(x: Tensor, neighbours: int, noise: Tensor | None) -> tuple[Tensor, list[Tensor] | None]:
    """`density_scores`, and all distances where they are few."""
    g, m, d = x.shape
    whole = list(_distances(x, x)) if g * m * m <= DISTANCES else None  # made twice only where they are many
    density, largest = [], []
    for _, distance in whole or _distances(x, x):
        density.append(-(distance.topk(min(neighbours, m), largest=False).values ** 2).mean(-1) / d)
        largest.append(distance.amax((1, 2)))
    density, largest = torch.cat(density, 1), torch.stack(largest, 1).amax(1)
    if noise is not None:
        density = torch.logaddexp(density, (1e-6 * noise.float()).log())
    order = top_k(density, m)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(m, device=x.device).expand(g, m))
    apart = []
    for some, distance in whole or _distances(x, x):
        denser = rank[:, None] < rank[:, some, None]
        apart.append(distance.masked_fill(~denser, torch.inf).amin(-1).minimum(largest[:, None]))
    return density + (torch.cat(apart, 1) / d**0.5).log(), whole and [distance for _, distance in whole]


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances [G, rows, M] of rows of x to all of y; exact: those by matrix products lose twins."""
    if y is x and x.shape[1] <= PAIRS and x.shape[0] * x.shape[1] ** 2 <= DISTANCES:
        yield slice(None), torch.stack([_all_pairs(one) for one in x])
        return
    block = max(1, DISTANCES // (x.shape[0] * y.shape[1]))
    for start in range(0, x.shape[1], block):
        some = slice(start, start + block)
        yield some, torch.cdist(x[:, some], y, compute_mode="donot_use_mm_for_euclid_dist")


def _all_pairs(x: Tensor) -> Tensor:
    """[M, M]: on a CPU many times faster than `cdist` without matrix products."""
    m = len(x)
    row, column = torch.triu_indices(m, m, 1, device=x.device)
    distance = x.new_zeros(m, m)
    distance[row, column] = F.pdist(x)
    return distance + distance.mT


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
