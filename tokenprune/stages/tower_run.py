"""What one call of a vision tower knows about the tokens that leave it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..blocks import BlockTokens, Grid, Reduction
from ..errors import PolicyError
from ..ops import sum_by_source
from ..policies.vision import VisionPolicy


@dataclass
class Group:
    """G images of one size, whose tokens are as many all the way.

    Attributes:
        total: tokens of each at the input, with the prefix.
        grid: of its patches, None where not known.
        events: block -> tokens left behind it, without the prefix.
        places: [G, n] long, where in the input each token stood.
        source: [G, total] long, which of the tokens carries each of the input, or -1.
        sizes: [G, n] float32.
        lengths: per block, tokens that its attention reads and that its MLP reads.
    """

    total: int
    grid: Grid | None
    events: dict[int, int]
    places: Tensor
    source: Tensor
    sizes: Tensor
    lengths: list[tuple[int, int]] = field(default_factory=list)

    @property
    def n(self) -> int:
        return self.places.shape[1]

    def restored(self, x: Tensor) -> Tensor:
        """[G, total, ...]: for every place of the input a copy of what carries it, zero for the dropped."""
        index = self.source.clamp_min(0)
        rows = x[torch.arange(len(x), device=x.device)[:, None], index]
        gone = self.source < 0
        return rows.masked_fill(gone.view(*gone.shape, *[1] * (x.ndim - 2)), 0)


class Packing:
    """How images lie in hidden states: side by side, [B, N, D], or packed one behind the other, [S, D] or [1, S, D].

    Args:
        x: the tower's input.
        bounds: [images + 1], where each begins, if they are packed.
    """

    def __init__(self, x: Tensor, bounds: Tensor | None):
        self.packed = bounds is not None
        self.images = bounds.diff().tolist() if self.packed else [x.shape[1]] * x.shape[0]
        self.starts = bounds[:-1].tolist() if self.packed else []
        sizes = [size for size in dict.fromkeys(self.images) if size]
        self.members = [[i for i, size in enumerate(self.images) if size == one] for one in sizes]

    def split(self, x: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """[G, n, ...] for every group, whose images are `lengths` long by now."""
        if not self.packed:
            return [x]
        now = [0] * len(self.images)
        for members, length in zip(self.members, lengths, strict=True):
            for i in members:
                now[i] = length
        pieces = x.split(now)
        return [torch.stack([pieces[i] for i in members]) for members in self.members]

    def join(self, groups: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        if not self.packed:
            return groups[0]
        pieces = {
            i: x for members, xs in zip(self.members, groups, strict=True) for i, x in zip(members, xs, strict=True)
        }
        return torch.cat([pieces[i] for i in sorted(pieces)])


class Run:
    """The tokens of one call of a tower, block by block.

    Args:
        x: hidden states that enter a block, [B, N, D], [S, D] or [1, S, D].
        bounds: [images + 1], where each image begins, if they are packed; None if they are not.
        prefix: class, distillation and register tokens in front of every image.
        plan: maps (patches of an image) to the grid of them or None, and to {block: tokens left behind it}.
        first: number of the block that `x` enters.
    """

    def __init__(
        self,
        x: Tensor,
        bounds: Tensor | None,
        prefix: int,
        plan: Callable[[int], tuple[Grid | None, dict[int, int]]],
        *,
        first: int,
    ):
        self.packing = Packing(x, bounds)
        self.prefix, self.bounds = prefix, bounds
        self.groups: list[Group] = []
        for members in self.packing.members:
            total = self.packing.images[members[0]]
            places = torch.arange(total, device=x.device).expand(len(members), total)
            sizes = torch.ones(places.shape, device=x.device)
            lengths = [(total, total)] * first
            self.groups.append(Group(total, *plan(total - prefix), places, places, sizes, lengths))
        self.short: Tensor | None = None  # what the next block reads where this one's output was restored
        self.entered: list[int] = []  # tokens per group that the current block's attention reads
        self.keys: list[Tensor] = []  # of the current block, call by call [.., K, d]
        self.class_attention: Tensor | None = None
        self.heard = False  # the current block's attention was listened to
        self.read = 0  # keys of the current block that have had their bias

    @property
    def lengths(self) -> list[int]:
        return [group.n for group in self.groups]

    @property
    def reduced(self) -> bool:
        return any(group.n < group.total for group in self.groups)

    def enter(self) -> None:
        """A block begins."""
        self.entered, self.keys, self.class_attention, self.read = self.lengths, [], None, 0
        self.heard = False

    def leave(self) -> None:
        """A block is through."""
        for group, before in zip(self.groups, self.entered, strict=True):
            group.lengths.append((before, group.n))

    def event(self, block: int) -> bool:
        """Whether tokens leave in this block."""
        return any(block in group.events for group in self.groups)

    def bias(self, keys: int) -> Tensor | None:
        """[B or 1, 1, 1, keys] float32: log sizes of the next keys that the current block's attention reads."""
        if not self.reduced:
            return None
        start, self.read = self.read, self.read + keys
        if not self.packing.packed:
            return self.groups[0].sizes.log()[:, None, None]
        sizes = self._join([group.sizes for group in self.groups])
        return sizes[start : start + keys].log()[None, None, None]

    def reduce(self, policy: VisionPolicy, x: Tensor, *, event: int, block: int, depth: int, thorough: bool) -> Tensor:
        """Hidden states after the policy, `x` before; and everything about them shortened alike.

        Args:
            x: [.., D].
            event: number of the block among all of the tower's.
            block, depth: its number, and their number, among those where tokens may leave.
            thorough: look at the numbers that the policy answers, too, which asks the device.

        Raises:
            PolicyError: its answer is no reduction.
        """
        lengths = self.lengths
        shown = self.packing.split(x.flatten(0, -2) if self.packing.packed else x, lengths)
        keys = [None] * len(shown)
        if self.keys:
            keys = self.packing.split(torch.cat(self.keys) if self.packing.packed else self.keys[0], lengths)
        left = []
        for group, hidden, key in zip(self.groups, shown, keys, strict=True):
            if event in group.events:
                tokens = BlockTokens(
                    hidden=hidden,
                    keys=key,
                    class_attention=self.class_attention,
                    sizes=group.sizes,
                    places=group.places,
                    prefix=self.prefix,
                    grid=group.grid,
                    total=group.total - self.prefix,
                    block=block,
                    depth=depth,
                )
                hidden = self._reduced(policy, group, tokens, group.events[event], thorough)
            left.append(hidden)
        return self._join(left).view(*x.shape[:-2], -1, x.shape[-1])

    def _reduced(self, policy: VisionPolicy, group: Group, tokens: BlockTokens, k: int, thorough: bool) -> Tensor:
        with torch.autocast(tokens.hidden.device.type, enabled=False):
            answer = policy.reduce(tokens, k)
        g, n, m = *tokens.shape, k + self.prefix
        _check(policy, answer, (g, n), m)
        if thorough:
            _check_numbers(policy, answer, n, self.prefix)
        order, source = answer.order, answer.source
        if source is None:
            place = torch.arange(m, device=order.device).expand(g, m)
            source = order.new_full((g, n), -1).scatter(1, order, place)
            x = tokens.hidden.gather(1, order[..., None].expand(-1, -1, tokens.hidden.shape[-1]))
            sizes = group.sizes.gather(1, order)
        else:
            x = _merged(tokens.hidden, source, m, group.sizes if answer.weights is None else answer.weights, answer)
            sizes = sum_by_source(group.sizes[..., None], source, m)[..., 0]
        places = group.places.gather(1, order)
        if self.packing.packed:  # neighbours stay neighbours: windows and rotary tables are cut by place
            places, rank = places.sort(1)
            x, sizes = x.gather(1, rank[..., None].expand_as(x)), sizes.gather(1, rank)
            source = torch.where(source >= 0, rank.argsort(1).gather(1, source.clamp_min(0)), -1)
        carried = source.gather(1, group.source.clamp_min(0))
        group.source = torch.where(group.source >= 0, carried, -1)
        group.places, group.sizes = places, sizes
        return x

    def restored(self, x: Tensor) -> Tensor:
        """As many rows as the tower's input has, for hidden states [.., D] of the tokens there are now."""
        shown = self.packing.split(x.flatten(0, -2) if self.packing.packed else x, self.lengths)
        whole = [group.restored(part) for group, part in zip(self.groups, shown, strict=True)]
        return self._join(whole).view(*x.shape[:-2], -1, x.shape[-1])

    def of_input(self, table: Tensor, *, patches_only: bool) -> Tensor:
        """Rows of a table over the input's places, [S, c] or of one image [N, c]: [S', c] or [G, n, c]."""
        if self.packing.packed:
            return table[self.rows()]
        places = self.groups[0].places
        return table[places[:, self.prefix :] - self.prefix if patches_only else places]

    def rows(self) -> Tensor:
        """[S'] long, ascending: which rows of a packed input are left."""
        starts = torch.tensor(self.packing.starts, device=self.groups[0].places.device)
        parts = [
            group.places + starts[members][:, None]
            for group, members in zip(self.groups, self.packing.members, strict=True)
        ]
        return self._join(parts)

    def bounds_now(self, bounds: Tensor) -> Tensor:
        """Where images, or windows of them, begin among the rows left; those that lost all their rows are gone."""
        return torch.searchsorted(self.rows(), bounds.to(torch.long)).to(bounds.dtype).unique_consecutive()

    def carriers(self, first: int) -> Tensor:
        """[B, N, 2] or [1, S, 2] float64: a number for every place of the input, and that of the place that carries it,
        -1 for none. Numbers begin with `first`."""
        own, number = [], first
        for group in self.groups:
            ids = torch.arange(group.source.numel(), device=group.source.device).view(group.source.shape) + number
            carrier = ids.gather(1, group.places.gather(1, group.source.clamp_min(0)))
            carrier = torch.where(group.source >= 0, carrier, -1)
            own.append(torch.stack([ids, carrier], -1).double())
            number += ids.numel()
        joined = self._join(own)
        return joined[None] if self.packing.packed else joined

    def _join(self, groups: list[Tensor]) -> Tensor:
        return self.packing.join(groups)


def _merged(x: Tensor, source: Tensor, m: int, weights: Tensor, answer: Reduction) -> Tensor:
    """[G, m, D] weighted means (or sums) of the tokens that share a survivor, in the dtype of `x`."""
    sums = sum_by_source(x, source, m, weights)
    if answer.average:
        sums = sums / sum_by_source(weights[..., None], source, m)
    return sums.to(x.dtype)


def _check(policy: VisionPolicy, answer: Reduction, shape: tuple[int, int], m: int) -> None:
    name = policy.name or type(policy).__name__
    if not isinstance(answer, Reduction) or answer.order.shape != (shape[0], m) or answer.order.dtype != torch.long:
        order = getattr(answer, "order", None)
        found = type(answer).__name__ if order is None else f"order {tuple(order.shape)} of {order.dtype}"
        raise PolicyError(
            f"policy {name!r} answered {found} where {m} of {shape[1]} tokens in {shape[0]} images go on: return a "
            f"Reduction with a long order [{shape[0]}, {m}], the prefix first."
        )
    for part in ("source", "weights"):
        value = getattr(answer, part)
        if value is not None and value.shape != shape:
            raise PolicyError(
                f"policy {name!r} answered {part} of shape {tuple(value.shape)}: return {list(shape)}, one per token."
            )


def _check_numbers(policy: VisionPolicy, answer: Reduction, n: int, prefix: int) -> None:
    name, order, source = policy.name or type(policy).__name__, answer.order, answer.source
    rising, m = order.sort(1).values, order.shape[1]
    distinct = (rising[:, 1:] > rising[:, :-1]).all() & (rising[:, 0] >= 0).all() & (rising[:, -1] < n).all()
    first = (order[:, :prefix] == torch.arange(prefix, device=order.device)).all()
    if not bool(distinct & first):
        raise PolicyError(
            f"policy {name!r} answered an order that is not distinct, inside 0..{n - 1}, and the prefix of {prefix} "
            "first as it is: return each token that goes on once."
        )
    if source is None:
        return
    inside = (source >= -1).all() & (source < m).all()
    if not bool(inside) or not torch.equal(
        source.gather(1, order), torch.arange(m, device=order.device).expand_as(order)
    ):
        raise PolicyError(
            f"policy {name!r} answered a source outside -1..{m - 1}, or one where a token that goes on is carried by "
            "another: the source of order[:, i] is i."
        )
