"""Exact lazy greedy on the CPU: of most tokens an old value is enough to know that they are not the best.

What a token would add only falls while others are chosen, so an old value bounds it from above. `_greedy` brings the
tokens of the highest bounds up to date, and then works on a panel: the few tokens at the top, with all that they
mean to each other. It takes the best of the panel, updates the panel only, and goes on while no bound outside is as
high. Where bounds are loose, panels shrink to a few tokens and all tokens are updated in one matrix product, which
costs about what the plain loop costs. Units are done one after the other, so that a unit stays in the cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .plain import RESIDUAL_FLOOR, prepared

# Numbers in a panel's tokens at first: wider ones last longer, and each step in them takes longer.
PANEL = 10**5
# Tokens in a panel at first, and in any, at least and at most; it may be GROW times as wide as the last one had tokens
# chosen.
LEAST, MOST, GROW = 32, 512, 4
# Tokens brought up to date at once, at first, and at least; each further round takes twice as many.
LOOK = 128
# Numbers per token from which on all similarities within a panel are made at once.
WIDE = 1024
# Tokens brought up to date one by one, as a share of all, before all are.
SHARE = 0.25
# Rows of similarities made at once in search of the token farthest from its nearest neighbour.
ROWS = 32
# Two matrix products round a cosine apart by less than this.
SLACK = 2e-6


class _Objective(ABC):
    """What tokens of one unit would add to those chosen.

    Attributes:
        bound: [N] float32, a value at least as high as the token's now; -inf for those chosen and those worth nothing.
        seen: [N] long, of how many chosen tokens the bound knows.
        depth: numbers per token that a step reads.
        value: [B] values of the tokens of the open panel now.
    """

    bound: Tensor
    seen: Tensor
    depth: int
    value: Tensor

    @abstractmethod
    def renew(self, some: Tensor | None, t: int) -> None:
        """Bring the bounds of some tokens, None for all, up to date with the t tokens chosen."""

    @abstractmethod
    def open(self, panel: Tensor, t: int, most: int) -> None:
        """Set `value` for these tokens, which are up to date, and make ready to take up to `most` of them."""

    @abstractmethod
    def take(self, j: int, value: float) -> bool:
        """Choose token j of the panel, whose value this is: its value becomes -inf. False if it is worth nothing."""

    def close(self, panel: Tensor, taken: Tensor, t: int) -> None:  # noqa: B027 most have nothing to do
        """Note what the places `taken` of the panel, chosen after t others, mean to tokens outside."""


class _Upkeep:
    """Renews what is asked for, and everything at once when single tokens have cost as much as a share of that."""

    def __init__(self, objective: _Objective, t: int):
        self.objective, self.spent, self.last = objective, 0, t

    def __call__(self, some: Tensor, t: int) -> None:
        seen, n = self.objective.seen, len(self.objective.seen)
        known = seen[some]
        stale = some[known < t]
        if not len(stale):
            return
        self.spent += len(stale) * (t - int(known.min()))
        if self.spent > SHARE * n * (t - self.last):
            self.objective.renew(None, t)
            self.spent, self.last = 0, t
        else:
            self.objective.renew(stale, t)


def _top(bound: Tensor, width: int) -> tuple[Tensor, int, float]:
    """The tokens of the `width` highest bounds, lowest first among equals, in ascending order, and who is next.

    That is the highest bound of all others, and the lowest of those who have it; -1 where no token of the panel has it.
    """
    n = len(bound)
    if width >= n:
        return torch.arange(n), n, -torch.inf
    values, rank = bound.topk(width + 1)
    outside = -1
    if values[-2] == values[-1]:  # topk answers any of several equals
        rank = bound.sort(descending=True, stable=True).indices[: width + 1]
        outside = int(rank[-1])
    return rank[:-1].sort().values, outside, float(values[-1])


def _greedy(objective: _Objective, k: int, *order: int) -> list[int]:
    """`order`, and up to k tokens, each of the highest value when chosen, the lowest among equals.

    Fewer if no more are worth it.
    """
    bound, seen, n = objective.bound, objective.seen, len(objective.bound)
    width = narrow = min(MOST, max(LEAST, PANEL // objective.depth))
    least = look = max(LOOK, 2 * narrow)
    order, renew = [*order], _Upkeep(objective, len(order))
    while len(order) < k:
        t = len(order)
        rounds = 0
        while int(seen[(rank := bound.topk(min(look, n)).indices)[0]]) < t:
            renew(rank, t)
            rounds, look = rounds + 1, 2 * look
        look = max(least, look // 4 if rounds < 2 else look // 2)
        panel, outside, limit = _top(bound, width)
        renew(panel, t)
        objective.open(panel, t, min(k - t, len(panel)))
        names, taken = panel.tolist(), []
        while t + len(taken) < k:
            best, j = objective.value.max(0)
            best, j = float(best), int(j)
            if best < limit or best == -torch.inf or (best == limit and names[j] > outside):
                break
            if objective.take(j, best):
                taken.append(j)
        if taken:
            objective.close(panel, torch.tensor(taken), t)
            order += [names[j] for j in taken]
        elif best == limit == -torch.inf:
            break
        bound[panel] = objective.value
        seen[panel] = len(order)
        width = min(MOST, GROW * narrow, max(narrow, GROW * len(taken)))
    return order


class _Vectors:
    """Tokens as vectors x [N, D], compared by (x_i . x_j)(a_i . a_j), and those chosen, side by side."""

    def __init__(self, x: Tensor, a: Tensor, k: int):
        self.x, self.a = x, a
        self.chosen, self.chosen_a = x.new_empty(k, x.shape[1]), a.new_empty(k, a.shape[1])

    def with_chosen(self, some: Tensor | None, start: int, end: int) -> Tensor:
        """[b, end - start] similarities of some tokens with the chosen ones from start to end."""
        x, a = (self.x, self.a) if some is None else (self.x.index_select(0, some), self.a.index_select(0, some))
        return (self.chosen[start:end] @ x.mT).mul_(self.chosen_a[start:end] @ a.mT).mT

    def panel(self, tokens: Tensor) -> _Panel:
        x, a = self.x.index_select(0, tokens), self.a.index_select(0, tokens)
        return _Panel(x.mul_(a) if a.shape[1] == 1 else (a[..., None] * x[:, None]).flatten(1))

    def append(self, tokens: Tensor, t: int) -> None:
        """Have these tokens chosen after t others."""
        end = t + len(tokens)
        torch.index_select(self.x, 0, tokens, out=self.chosen[t:end])
        torch.index_select(self.a, 0, tokens, out=self.chosen_a[t:end])


class _Panel:
    """The tokens of a panel as y [B, A D], products of x_i and each a_i: their similarities are plain products."""

    def __init__(self, y: Tensor):
        self.y, self.every = y, y @ y.mT if y.shape[1] >= WIDE else None

    def row(self, j: int) -> Tensor:
        """[B] similarities of all with token j. Not to be written to."""
        return self.y @ self.y[j] if self.every is None else self.every[j]


class _Determinant(_Objective):
    """Residuals d2_i = L_ii - |c_i|^2, with c_i [k] the token's row of the Cholesky factor.

    With y_i [A D] the products of x_i and each a_i, so that L_ij = y_i . y_j, c_it is y_i . q_t for q_t = (y_j - sum_s
    c_js q_s) / sqrt(d2_j + eps), j the t-th choice: bringing tokens up to date is one product with `basis`, the q.
    """

    def __init__(self, x: Tensor, a: Tensor, diagonal: Tensor, k: int, eps: float):
        self.vectors, self.depth, self.eps = _Vectors(x, a, 0), x.shape[1], eps
        self.floor = RESIDUAL_FLOOR * diagonal
        self.bound = torch.where(diagonal > self.floor, diagonal, -torch.inf)
        self.seen = torch.zeros(len(x), dtype=torch.long)
        self.factor, self.basis = x.new_empty(len(x), k), x.new_empty(a.shape[1], k, x.shape[1])

    def renew(self, some: Tensor | None, t: int) -> None:
        every = slice(None) if some is None else some
        seen, x, a = self.seen[every], self.vectors.x, self.vectors.a
        x, a = (x, a) if some is None else (x.index_select(0, some), a.index_select(0, some))
        start = int(seen.min())
        # in this order: thin matrices times wide ones are up to half as slow again
        new = sum((q[start:t] @ x.mT).mul_(one) for q, one in zip(self.basis, a.unbind(1), strict=True)).mT
        self.factor[every, start:t] = new
        new.square_()
        if int(seen.max()) > start:
            new *= torch.arange(start, t) >= seen[:, None]
        residual = self.bound[every] - new.sum(-1)
        self.bound[every] = torch.where(residual > self.floor[every], residual, -torch.inf)
        self.seen[every] = t

    def open(self, panel: Tensor, t: int, most: int) -> None:
        self.panel, self.start, self.roots = self.vectors.panel(panel), t, []
        self.known = self.factor[:, : t + most].index_select(0, panel)
        self.value, self.floors = self.bound[panel], self.floor[panel].tolist()

    def take(self, j: int, value: float) -> bool:
        if worth := value > self.floors[j]:
            t, root = self.start + len(self.roots), (value + self.eps) ** 0.5
            e = torch.addmv(self.panel.row(j), self.known[:, :t], self.known[j, :t], alpha=-1).div_(root)
            self.known[:, t] = e
            self.value.addcmul_(e, e, value=-1)
            self.roots.append(root)
        self.value[j] = -torch.inf
        return worth

    def close(self, panel: Tensor, taken: Tensor, t: int) -> None:
        end, y = t + len(taken), self.panel.y[taken].view(len(taken), len(self.basis), -1)
        self.factor[panel, t:end] = self.known[:, t:end]
        mixed = self.known[taken, t:end]
        mixed.diagonal().copy_(torch.tensor(self.roots))
        inverse = torch.linalg.solve_triangular(mixed, torch.eye(len(taken)), upper=False)  # of few: fast to apply
        for q, own in zip(self.basis, y.unbind(1), strict=True):
            rest = torch.addmm(own, self.known[taken, :t], q[:t], alpha=-1)
            torch.mm(inverse, rest, out=q[t:end])


class _Distance(_Objective):
    """Smallest distance to a chosen token, times quality."""

    def __init__(self, vectors: _Vectors, quality: Tensor | None, first: int):
        n = len(vectors.x)
        self.vectors, self.depth, self.quality = vectors, vectors.x.shape[1], quality
        self.rank = torch.zeros(n)  # -1 behind all others, -inf chosen
        if quality is not None:
            self.rank -= (quality <= 0).float()
        self.distance, self.bound = torch.full((n,), torch.inf), torch.empty(n)
        self.seen = torch.zeros(n, dtype=torch.long)
        self.rank[first] = -torch.inf
        vectors.append(torch.tensor([first]), 0)
        self.renew(None, 1)

    def renew(self, some: Tensor | None, t: int) -> None:
        every = slice(None) if some is None else some
        near = self.vectors.with_chosen(some, int(self.seen[every].min()), t).amax(-1)
        self.distance[every] = torch.minimum(self.distance[every], 1.0 - near)
        quality = None if self.quality is None else self.quality[every]
        self.bound[every] = _score(self.distance[every], quality, self.rank[every])
        self.seen[every] = t

    def open(self, panel: Tensor, t: int, most: int) -> None:
        self.panel = self.vectors.panel(panel)
        self.near, self.places, self.value = self.distance[panel], self.rank[panel], self.bound[panel]
        self.weights = None if self.quality is None else self.quality[panel]

    def take(self, j: int, value: float) -> bool:
        self.places[j] = -torch.inf
        torch.minimum(self.near, torch.rsub(self.panel.row(j), 1.0), out=self.near)
        _score(self.near, self.weights, self.places, self.value)
        return True

    def close(self, panel: Tensor, taken: Tensor, t: int) -> None:
        self.distance[panel], self.rank[panel] = self.near, self.places
        self.vectors.append(panel[taken], t)


def _score(distance: Tensor, quality: Tensor | None, rank: Tensor, out: Tensor | None = None) -> Tensor:
    """quality * distance of at least 0, lowered by rank."""
    out = torch.clamp_min(distance, 0.0, out=out)
    if quality is not None:
        out.mul_(quality)
    return out.add_(rank)


def _farthest(vectors: _Vectors) -> int:
    """The token of the smallest cosine with its nearest other one, the lowest among equals.

    A token's largest cosine with some of the others is a lower bound of the one with all, so that most tokens are ruled
    out by the rows of a few.
    """
    x, a = vectors.x, vectors.a
    nearest, partner = torch.full((len(x),), -torch.inf), torch.zeros(len(x), dtype=torch.long)
    known = torch.zeros(len(x), dtype=torch.bool)
    while True:
        limit = float(nearest.masked_fill(~known, torch.inf).amin()) + SLACK
        some = nearest.masked_fill(known, torch.inf).sort(stable=True).indices[:ROWS]
        some = some[~known[some] & (nearest[some] <= limit)]
        if not len(some):
            break
        row = (x.index_select(0, some) @ x.mT).mul_(a.index_select(0, some) @ a.mT)
        row[torch.arange(len(some)), some] = -torch.inf
        torch.maximum(nearest, row.amax(0).masked_fill_(known, -torch.inf), out=nearest)
        nearest[some], partner[some] = row.max(1)
        known[some] = True
    # two tokens that are each other's nearest have to tie, which matrix products do not hold to
    ends = (known & (nearest <= limit)).nonzero()[:, 0]
    others = partner[ends]
    exact = (x[ends] * x[others]).sum(-1) * (a[ends] * a[others]).sum(-1)
    return int(ends[exact.argmin()])


class _Uncovered(_Objective):
    """What columns [N, R] add to the coverage of R rows, times weight."""

    def __init__(self, columns: Tensor, weight: Tensor):
        self.columns, self.weight, self.depth = columns, weight, 4 * columns.shape[1]  # several passes, not a product
        self.covered, self.spare = columns.new_zeros(columns.shape[1]), columns.new_empty(MOST, columns.shape[1])
        self.rank, self.bound = torch.zeros(len(columns)), torch.empty(len(columns))  # rank: -inf for those chosen
        self.seen = torch.zeros(len(columns), dtype=torch.long)
        self.renew(None, 0)

    def _gain(self, columns: Tensor, spare: Tensor, out: Tensor) -> Tensor:
        return torch.sum(torch.sub(columns, self.covered, out=spare).clamp_min_(0.0), -1, out=out)

    def renew(self, some: Tensor | None, t: int) -> None:
        every = slice(None) if some is None else some
        columns = self.columns if some is None else self.columns.index_select(0, some)
        gain = columns.new_empty(len(columns))
        for part, out in zip(columns.split(MOST), gain.split(MOST), strict=True):  # parts stay in the cache
            self._gain(part, self.spare[: len(part)], out)
        self.bound[every] = gain.mul_(self.weight[every]).add_(self.rank[every])
        self.seen[every] = t

    def open(self, panel: Tensor, t: int, most: int) -> None:
        self.near, self.weights, self.places = self.columns.index_select(0, panel), self.weight[panel], self.rank[panel]
        self.value, self.room = self.bound[panel], self.spare[: len(panel)]

    def take(self, j: int, value: float) -> bool:
        self.places[j] = -torch.inf
        torch.maximum(self.covered, self.near[j], out=self.covered)
        self._gain(self.near, self.room, self.value).mul_(self.weights).add_(self.places)
        return True

    def close(self, panel: Tensor, taken: Tensor, t: int) -> None:
        self.rank[panel] = self.places


def max_min(
    x: Tensor, k: int, *, first: Tensor | None = None, quality: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """`ops.greedy.greedy_max_min`. Memory: N + k D floats, and N D if x is not float32; one unit at a time."""
    x, a, _ = prepared(x, None, 1.0, scale)
    if first is None and quality is not None:
        first = quality.argmax(-1)
    orders = []
    for i in range(len(x)):
        vectors, weights = _Vectors(x[i], a[i], k), None if quality is None else quality[i]
        start = _farthest(vectors) if first is None else int(first[i])
        orders.append(_greedy(_Distance(vectors, weights, start), k, start))
    return torch.tensor(orders)


def dpp(
    x: Tensor,
    k: int,
    *,
    quality: Tensor | None = None,
    weight: float = 1.0,
    scale: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """`ops.greedy.greedy_dpp`. Memory: N k + k D floats, and N D if x is not float32; one unit at a time."""
    orders = []
    for x_i, a, diagonal in zip(*prepared(x, quality, weight, scale), strict=True):
        order = _greedy(_Determinant(x_i, a, diagonal, k, eps), k)
        if len(order) < k:  # the rank is exhausted
            left = diagonal.clone()
            left[order] = -torch.inf
            order += left.sort(descending=True, stable=True).indices[: k - len(order)].tolist()
        orders.append(order)
    return torch.tensor(orders)


def coverage(dense: Tensor, weight: Tensor, k: int) -> Tensor:
    """`ops.coverage.greedy_coverage` of columns at hand, [G, N, R]. Memory: MOST of them."""
    return torch.tensor([_greedy(_Uncovered(*unit), k) for unit in zip(dense, weight, strict=True)])
