"""Nearest tokens by cosine, and thinning by bipartite matching. Similarities are made in blocks, never N x N."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .greedy import top_k
from .plain import BLOCK_ELEMENTS

# Similarities held at once on a CPU (1 MiB of float32): much faster than blocks beyond its cache.
CACHED_ELEMENTS = 2**18
# Added to a cosine to hide it.
HIDDEN = -4.0
# Thinning on a CPU: more tokens than this have lists of those nearest to them, so long; how many of a list are looked
# at first, and how many rounds it serves at least, whatever is missing.
FEW, LIST, FIRST, PATIENCE = 768, 16, 4, 32


def gather_rows(x: Tensor, places: Tensor) -> Tensor:
    """x[g, places[g, c]] for x [G, N, ...] and places [G, C]: [G, C, ...]"""
    g, n = x.shape[:2]
    if g == 1:
        return x[0].index_select(0, places[0])[None]
    # rows of one long list: twice as fast on a CPU as an index for every dimension
    flat = places + n * torch.arange(g, device=places.device)[:, None]
    return x.flatten(0, 1).index_select(0, flat.flatten()).view(*places.shape, *x.shape[2:])


def _rows_of(similarities: int, x: Tensor) -> int:
    """Rows of one block, of so many similarities a row. On accelerators large ones: every block is a few launches."""
    return max(1, (CACHED_ELEMENTS if x.device.type == "cpu" else BLOCK_ELEMENTS) // max(1, similarities))


def _similarities(x: Tensor, targets: Tensor) -> Iterator[Tensor]:
    """[G, rows, T] cosines of [G, M, D] tokens with [G, T, D] targets, block by block."""
    block = _rows_of(x.shape[0] * targets.shape[1], x)
    for start in range(0, max(x.shape[1], 1), block):
        yield x[:, start : start + block] @ targets.mT


def nearest_target(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Largest cosine of every token with any target, and that target: two [G, M], the lowest target among equals.

    Args:
        x: [G, M, D] unit vectors, float32.
        targets: [G, T, D] unit vectors, float32, T >= 1.

    Cost: M T D multiply-adds per unit; memory: one block of similarities.
    """
    best = [similarity.max(-1) for similarity in _similarities(x, targets)]
    if len(best) == 1:
        return best[0].values, best[0].indices
    return torch.cat([b.values for b in best], 1), torch.cat([b.indices for b in best], 1)


def nearest_neighbours(x: Tensor, places: Tensor, m: int) -> Tensor:
    """[G, C, m] the m other tokens nearest to those at `places` [G, C], nearest first, the lowest among equals.

    Args:
        x: [G, N, D] unit vectors, float32.
        m: 0 <= m < N.

    Cost: C N D multiply-adds per unit, and for every place a pass over N, or a sort of N where two of its nearest are
    equal, and on other devices than the CPU. Memory: one block of similarities and its order, C m integers.
    """
    g, n, _ = x.shape
    block = _rows_of(g * n, x)
    found = [places.new_zeros(g, 0, m)]
    for start in range(0, places.shape[1], block):
        part = places[:, start : start + block]
        similarity = (gather_rows(x, part) @ x.mT).scatter_(2, part[..., None], -torch.inf)
        found.append(_first(similarity.flatten(0, 1), m).view(g, part.shape[1], m))
    return torch.cat(found, 1)


def _first(scores: Tensor, m: int) -> Tensor:
    """`top_k` of [R, N] for m < N, without sorting all of them on a CPU."""
    if scores.device.type != "cpu":  # which could not tell, without waiting, whether two are equal
        return top_k(scores, m).clone()
    best = scores.topk(m + 1)
    # `topk` leaves open which of several equal ones it takes, and in which order
    tied = (best.values[:, 1:] == best.values[:, :-1]).any(1).nonzero().squeeze(1)
    return best.indices[:, :m].index_copy(0, tied, top_k(scores.index_select(0, tied), m))


@torch.no_grad()
def thin_by_matching(x: Tensor, k: int, *, step: int) -> Tensor:
    """Drop tokens that have a near twin until k are left: [G, k] places in the order the last round left them in.

    A round splits the current order by parity into a (even places) and b (odd), takes for every a its largest cosine
    with any b, sorts a by it, descending, drops the first q = min(step, tokens left - k, |a|) and goes on with
    (the rest of a as sorted, b).

    Args:
        x: [G, N, D] unit vectors, float32, in the order of the first split.
        k: 0 <= k <= N.

    Cost: about (N - k) / step sequential rounds, each with a sort of M / 2, M tokens left. On a CPU one or two times
    N^2 D multiply-adds; memory: 400 N bytes and one block of similarities. Elsewhere N^2 D multiply-adds and N M / 2
    reads a round, in 96 MiB. M^2 D / 4 multiply-adds a round in N D floats and one block for up to 768 tokens on a CPU,
    and above 4,096 elsewhere.
    """
    g, n, _ = x.shape
    cpu = x.device.type == "cpu"
    if n <= FEW if cpu else n * n > BLOCK_ELEMENTS:
        return _thin_by_blocks(x, k, step)
    if cpu:
        return torch.cat([_thin_by_lists(unit, k, step)[None] for unit in x])
    together = max(1, BLOCK_ELEMENTS // max(1, n * n))
    return torch.cat([_thin_by_mask(x[start : start + together], k, step) for start in range(0, g, together)])


def _largest(x: Tensor, targets: Tensor) -> Tensor:
    """[G, M]: the largest cosine of each of [G, M, D] tokens with any of [G, T, D] targets."""
    return torch.cat([rows.amax(-1) for rows in _similarities(x, targets)], 1)


def _next_round(left: Tensor, largest: Tensor, k: int, step: int) -> Tensor:
    """[G, M - q] places left, from [G, M] and the largest cosines of those at even places."""
    a, b = left[:, 0::2], left[:, 1::2]
    q = min(step, left.shape[1] - k, a.shape[1])
    return torch.cat([a.gather(1, top_k(largest, a.shape[1])[:, q:]), b], 1)


def _all_places(x: Tensor, k: int) -> Tensor:
    """[G, N] places to start from, none where none shall be left."""
    return torch.arange(x.shape[1] if k else 0, device=x.device).expand(x.shape[0], -1)


def _thin_by_blocks(x: Tensor, k: int, step: int) -> Tensor:
    """Every round makes its similarities."""
    left = _all_places(x, k)
    while left.shape[1] > k:
        left = _next_round(left, _largest(gather_rows(x, left[:, 0::2]), gather_rows(x, left[:, 1::2])), k, step)
    return left


def _thin_by_mask(x: Tensor, k: int, step: int) -> Tensor:
    """All similarities are made once, and every round masks them. Nothing here has a size that the device knows."""
    left, similarity = _all_places(x, k), x @ x.mT
    while left.shape[1] > k:
        others = torch.full(x.shape[:2], HIDDEN, device=x.device).scatter_(1, left[:, 1::2], 0.0)
        rows = gather_rows(similarity, left[:, 0::2]).add_(others[:, None])
        left = _next_round(left, rows.amax(-1), k, step)
    return left


def _thin_by_lists(x: Tensor, k: int, step: int) -> Tensor:
    """[k] places left of one unit [N, D].

    Every token has a list of the tokens nearest to it: its largest cosine with any of b is the first on the list that
    is in b now. Only for a token that has none there similarities are made. Once those were more than lists of what is
    left would cost, there are new lists.
    """
    places = _all_places(x[None], k)[0]
    while len(places) > k:
        near, cosine = _nearest_lists(x, min(LIST, len(x) - 1))
        # most find theirs among the first few, for which memory has to lie the other way round to be fast
        first, first_cosine = near[:, :FIRST].T.reshape(-1), cosine[:, :FIRST].T.contiguous()
        left, hidden, made, rounds = torch.arange(len(x)), x.new_empty(len(x)), 0, 0
        while len(left) > k and (rounds < PATIENCE or made < 1.5 * len(left) ** 2):
            a, b = left[0::2], left[1::2]
            hidden.fill_(HIDDEN).index_fill_(0, b, 0.0)
            best = hidden.index_select(0, first).view_as(first_cosine).add_(first_cosine).amax(0).index_select(0, a)
            best, unlisted = _look_further(best, a, near, cosine, hidden)
            if len(unlisted) > 0:
                rows = x.index_select(0, a.index_select(0, unlisted))
                best.index_copy_(0, unlisted, _largest(rows[None], x.index_select(0, b)[None])[0])
            made, rounds = made + len(unlisted) * len(x), rounds + 1
            left = _next_round(left[None], best[None], k, step)[0]
        places, x = places.index_select(0, left), x.index_select(0, left)
    return places


def _look_further(best: Tensor, a: Tensor, near: Tensor, cosine: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The whole lists of those of a that found nothing at their beginning, and which of them found nothing at all."""
    unlisted = (best < HIDDEN / 2).nonzero().squeeze(1)
    places = a.index_select(0, unlisted)
    lists = near.index_select(0, places)
    found = hidden.index_select(0, lists.flatten()).view_as(lists).add_(cosine.index_select(0, places)).amax(1)
    return best.index_copy_(0, unlisted, found), unlisted[found < HIDDEN / 2]


def _nearest_lists(x: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """The m other tokens nearest to each of [N, D], in any order among equals, and their cosines: two [N, m]."""
    near, cosine = torch.empty(len(x), m, dtype=torch.long), torch.empty(len(x), m)
    start = 0
    for (rows,) in _similarities(x[None], x[None]):
        rows.diagonal(offset=start).fill_(HIDDEN)
        some = slice(start, start + len(rows))
        torch.topk(rows, m, out=(cosine[some], near[some]))
        start += len(rows)
    return near, cosine
