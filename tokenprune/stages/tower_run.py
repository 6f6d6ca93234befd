"""What one call of a vision tower knows about the tokens that leave it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from ..blocks import BlockTokens, Grid
from ..ops import gather_rows, sizes_by_source, sum_by_source
from ..policies.vision import VisionPolicy
from .reduction_checks import Doubt, check_shapes, doubt, settle

Look = Literal["now", "later", "never"]


@dataclass
class Group:
    """G images of one size, whose tokens are as many all the way.

    Attributes:
        total: tokens of each at the input, with the prefix.
        grid: of its patches, None where not known.
        events: block -> tokens left behind it, without the prefix.
        places: [G, n] long, where in the input each token stood.
        sizes: [G, n] float32.
        lengths: per block, tokens that its attention reads and that its MLP reads.
        whole: every token of the input is carried by one.
    """

    total: int
    grid: Grid | None
    events: dict[int, int]
    places: Tensor
    sizes: Tensor
    lengths: list[tuple[int, int]] = field(default_factory=list)
    whole: bool = True
    _carried: Tensor | None = None  # the source map as of the events in front of `_sources`; None: none was merged
    _sources: list[Tensor] = field(default_factory=list)  # of later events, joined when they are asked for

    @property
    def n(self) -> int:
        return self.places.shape[1]

    @property
    def source(self) -> Tensor:
        """[G, total] long, which of the tokens carries each of the input, or -1."""
        if self._carried is None:
            return _inverse(self.places, self.total)
        for source in self._sources:
            self._carried = _joined(self._carried, source, self.whole)
        self._sources = []
        return self._carried

    def follow(self, order: Tensor, source: Tensor | None, sizes: Tensor, *, whole: bool) -> None:
        """Take over what became of the tokens: `source` [G, n] is None where those not in `order` were dropped."""
        if source is not None or self._carried is not None:
            self._carried = self.source if self._carried is None else self._carried
            self._sources.append(_inverse(order, self.n) if source is None else source)
        self.places, self.sizes, self.whole = self.places.gather(1, order), sizes, self.whole and whole

    def restored(self, x: Tensor) -> Tensor:
        """[G, total, ...]: for every place of the input a copy of what carries it, zero for the dropped."""
        source = self.source
        if self.whole:
            return gather_rows(x, source)
        gone = source < 0
        rows = gather_rows(x, source.clamp_min(0))
        return rows.masked_fill(gone.view(*gone.shape, *[1] * (x.ndim - 2)), 0)


def _inverse(order: Tensor, n: int) -> Tensor:
    """[G, n] long: where in `order` [G, m] each of the n is, or -1."""
    (g, m), place = order.shape, torch.arange(order.shape[1], device=order.device)
    found = order.new_empty(g, n) if m == n else order.new_full((g, n), -1)
    return found.scatter_(1, order, place.expand(g, m))


def _joined(first: Tensor, then: Tensor, whole: bool) -> Tensor:
    """The map of two events, one behind the other. whole: neither has a -1."""
    if whole:
        return then.gather(1, first)
    return torch.where(first >= 0, then.gather(1, first.clamp_min(0)), -1)


class Packing:
    """How images lie in hidden states: side by side, [B, N, D], or packed one behind the other, [S, D] or [1, S, D].

    Args:
        x: the tower's input.
        bounds: [images + 1], where each begins, if they are packed.
    """

    def __init__(self, x: Tensor, bounds: Tensor | None):
        self.packed = bounds is not None
        at = bounds.tolist() if self.packed else []
        self.images = [end - start for start, end in pairwise(at)] if self.packed else [x.shape[1]] * x.shape[0]
        sizes = [size for size in dict.fromkeys(self.images) if size]
        self.members = [[i for i, size in enumerate(self.images) if size == one] for one in sizes]
        starts = [[at[i] for i in members] for members in self.members] if self.packed else []
        # [G, 1] long of every group, where its images begin
        self.starts = [torch.tensor(one).to(x.device, non_blocking=True)[:, None] for one in starts]

    def split(self, x: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """[G, n, ...] for every group, whose images are `lengths` long by now."""
        if not self.packed:
            return [x]
        if len(self.members) == 1:  # no copy
            return [x.unflatten(0, (-1, lengths[0]))]
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
        if len(groups) == 1:
            return groups[0].flatten(0, 1)
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
            self.groups.append(Group(total, *plan(total - prefix), places, sizes, lengths))
        self.reduced = False  # some group has fewer tokens than at the input
        self.short: Tensor | None = None  # what the next block reads where this one's output was restored
        self.entered: list[int] = []  # tokens per group that the current block's attention reads
        self.keys: list[Tensor] = []  # of the current block, call by call [.., K, d]
        self.class_attention: Tensor | None = None
        self.heard = False  # the current block's attention was listened to
        self.read = 0  # keys of the current block that have had their bias
        self.doubts: list[Doubt] = []
        self._zeros: Tensor | None = None
        self._made: dict[Any, tuple] = {}  # for the tokens there are now

    @property
    def lengths(self) -> list[int]:
        return [group.n for group in self.groups]

    def enter(self) -> None:
        """A block begins."""
        self.entered, self.keys, self.class_attention, self.read = self.lengths, [], None, 0
        self.heard = False

    def leave(self) -> None:
        """A block is through."""
        for group, before in zip(self.groups, self.entered, strict=True):
            group.lengths.append((before, group.n))

    def finish(self) -> None:
        """The last block is through: what only blocks need goes, since reports keep the rest."""
        self.keys, self.class_attention, self.short, self._made = [], None, None, {}

    def event(self, block: int) -> bool:
        """Whether tokens leave in this block."""
        return any(block in group.events for group in self.groups)

    def _once(self, name: str, given: Any, make: Callable[[], Any]) -> Any:
        """What `make` answers, kept until tokens leave, for a tensor `given` that is the same one in many blocks."""
        key = name, id(given)
        if key not in self._made:
            self._made[key] = given, make()  # held, so that its id stays its own
        return self._made[key][1]

    def bias(self, keys: int) -> Tensor | None:
        """[B or 1, 1, 1, keys] float32: log sizes of the next keys that the current block's attention reads."""
        if not self.reduced:
            return None
        start, self.read = self.read, self.read + keys
        if not self.packing.packed:
            return self.groups[0].sizes.log()[:, None, None]
        sizes = self._join([group.sizes for group in self.groups])
        return sizes[start : start + keys].log()[None, None, None]

    def reduce(self, policy: VisionPolicy, x: Tensor, *, event: int, block: int, depth: int, look: Look) -> Tensor:
        """Hidden states after the policy, `x` before; and everything about them shortened alike.

        Args:
            x: [.., D].
            event: number of the block among all of the tower's.
            block, depth: its number, and their number, among those where tokens may leave.
            look: at the numbers that the policy answers, too: "now", which waits for the device, "later", when its
                `doubts` are settled, or "never".

        Raises:
            PolicyError: its answer is no reduction.
        """
        lengths = self.lengths
        shown = self.packing.split(x.flatten(0, -2) if self.packing.packed else x, lengths)
        keys = [None] * len(shown)
        if self.keys:
            keys = self.packing.split(self.keys[0] if len(self.keys) == 1 else torch.cat(self.keys), lengths)
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
                hidden = self._reduced(policy, group, tokens, group.events[event], (event, *lengths), look)
            left.append(hidden)
        self.reduced, self._made = True, {}
        return self._join(left).view(*x.shape[:-2], -1, x.shape[-1])

    def _reduced(
        self, policy: VisionPolicy, group: Group, tokens: BlockTokens, k: int, key: tuple[int, ...], look: Look
    ) -> Tensor:
        with torch.autocast(tokens.hidden.device.type, enabled=False):
            answer = policy.reduce(tokens, k)
        (g, n), m = tokens.shape, k + self.prefix
        lowest = 0 if policy.merges else -1
        check_shapes(policy, answer, (g, n), m)
        if look != "never":
            self.doubts.append(doubt(key, answer, n, self.prefix, lowest=lowest))
        if look == "now":  # a device dies of an index out of bounds
            settle(policy, self.doubts[-1:], self.prefix)
        order, source = answer.order, answer.source
        if look == "later":
            order = order.clamp(0, n - 1)
            source = None if source is None else source.clamp(lowest, m - 1)
        whole = policy.merges and source is not None
        if self.packing.packed:  # neighbours stay neighbours: windows and rotary tables are cut by place
            order, rank = order.sort(1)
            source = None if source is None else _joined(source, _inverse(rank, m), whole)
        if source is None:
            x, sizes = gather_rows(tokens.hidden, order), group.sizes.gather(1, order)
        else:
            sizes = sizes_by_source(source, m, group.sizes, whole=whole)
            weights = group.sizes if answer.weights is None else answer.weights
            x = sum_by_source(tokens.hidden, source, m, weights, whole=whole)
            if answer.average:
                total = sizes if answer.weights is None else sizes_by_source(source, m, weights, whole=whole)
                x = x / total[..., None]
            x = x.to(tokens.hidden.dtype)
        group.follow(order, source, sizes, whole=whole)
        return x

    def zeros(self, x: Tensor) -> Tensor:
        """[1, .., 1, D], of the dtype of x [.., D]; the same for all blocks."""
        if self._zeros is None or (self._zeros.dtype, self._zeros.ndim) != (x.dtype, x.ndim):
            self._zeros = x.new_zeros(*[1] * (x.ndim - 1), x.shape[-1])
        return self._zeros

    def restored(self, x: Tensor) -> Tensor:
        """As many rows as the tower's input has, for hidden states [.., D] of the tokens there are now."""
        shown = self.packing.split(x.flatten(0, -2) if self.packing.packed else x, self.lengths)
        whole = [group.restored(part) for group, part in zip(self.groups, shown, strict=True)]
        return self._join(whole).view(*x.shape[:-2], -1, x.shape[-1])

    def of_input(self, table: Tensor, *, patches_only: bool) -> Tensor:
        """Rows of a table over the input's places, [S, c] or of one image [N, c]: [S', c] or [G, n, c]."""
        if self.packing.packed:
            return self._once("table", table, lambda: table.index_select(0, self.rows()))
        places = self.groups[0].places
        return self._once(
            "table", table, lambda: table[places[:, self.prefix :] - self.prefix if patches_only else places]
        )

    def rows(self) -> Tensor:
        """[S'] long, ascending: which rows of a packed input are left."""
        starts = self.packing.starts
        return self._once(
            "rows", None, lambda: self._join([group.places + at for group, at in zip(self.groups, starts, strict=True)])
        )

    def bounds_now(self, bounds: Tensor) -> Tensor:
        """Where images, or windows of them, begin among the rows left; those that lost all their rows are gone."""
        return self._once("bounds", bounds, lambda: self._bounds_now(bounds))

    def _bounds_now(self, bounds: Tensor) -> Tensor:
        if bounds is self.bounds and all(self.packing.images):  # none of them is gone: no need to ask the device
            if len(self.groups) == 1:
                n = self.groups[0].n
                return torch.arange(0, n * len(bounds), n, dtype=bounds.dtype, device=bounds.device)
            return torch.searchsorted(self.rows(), bounds.to(torch.long)).to(bounds.dtype)
        return torch.searchsorted(self.rows(), bounds.to(torch.long)).to(bounds.dtype).unique_consecutive()

    def carriers(self, first: int) -> Tensor:
        """[B, N, 2] or [1, S, 2] float64: a number for every place of the input, and that of the place that carries it,
        -1 for none. Numbers begin with `first`."""
        own, number = [], first
        for group in self.groups:
            source = group.source
            ids = torch.arange(source.numel(), device=source.device).view(source.shape) + number
            carrier = ids.gather(1, group.places.gather(1, source.clamp_min(0)))
            carrier = torch.where(source >= 0, carrier, -1)
            own.append(torch.stack([ids, carrier], -1).double())
            number += ids.numel()
        joined = self._join(own)
        return joined[None] if self.packing.packed else joined

    def _join(self, groups: list[Tensor]) -> Tensor:
        return self.packing.join(groups)
