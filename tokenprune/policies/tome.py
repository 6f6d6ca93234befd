"""ToMe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..blocks import BlockTokens, Grid, Reduction
from ..errors import InvalidArgumentError
from ..ops import bipartite_match
from ..registry import register
from .vision import VisionPolicy


@register("tome")
@dataclass(kw_only=True)
class ToMe(VisionPolicy):
    """Token merging: in every block the r tokens that are most like another one are averaged with it.

    Between attention and MLP of a block with n tokens X [n, D], sizes s [n] and keys K [n, d], mean over heads: tokens
    at odd places are destinations B, those at even places sources A. v_a = max over b of cos(K_a, K_b), at b = p_a. The
    r sources of the largest v are merged: x_b <- sum s_i x_i / sum s_i over b and all such i with p_i = b, and
    s_b <- sum s_i. Class, distillation and register tokens count as places, but are never merged. Attention scores of
    all later blocks get log(s_j) added at key j.

    Attributes:
        r: tokens merged in each block: an int; a list, one entry for each block, zeros behind it; or a tuple
            (r, inflect) with inflect in [-1, 1], from r (1 - inflect) in the first block to r (1 + inflect) in the
            last, in a line. No block merges more than half of its patches. Excludes `keep`, the patches left in the
            end, which spreads the merges evenly, earlier blocks one more where this does not divide.
        proportional: add log(s_j).
        stride: every stride-th place is a destination instead of every second, so a block can merge all but
            n / stride: much at once, in few blocks.

    Defaults: proportional, as for models trained with a class token and supervision; switch it off for MAE models that
    were not trained with it. The paper's r: 8 for ViT-L and 13 or 16 for ViT-B at 224, 65 for ViT-L on clips.

    Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461.

    Differs from the released code: a key of zeros is like nothing (there: NaN); register tokens are protected, too; a
    list longer than the tower is an error. `keep` and `stride` with a limited r are additions: the code's k-th matching
    merges all sources, and drops the places behind the last destination, which are merged here.
    """

    merges: ClassVar = True
    reads: ClassVar = frozenset({"keys"})
    cost: ClassVar = "n^2 d / 4 multiply-adds and two sorts per block of n tokens, for keys of width d; n d floats"
    when: ClassVar = "Towers and classifiers as they are, without training: nothing is dropped, repeats are averaged."
    limits: ClassVar = "Compares all tokens with all, so places far apart are joined; fine detail drowns at large r."
    budgeted = property(lambda self: self.keep is not None or self.r is not None)

    r: int | list[int] | tuple[int, float] | None = None
    proportional: bool = True
    stride: int = 2

    def __post_init__(self):
        super().__post_init__()
        r = self.r
        if r is not None and self.keep is not None:
            raise InvalidArgumentError(f"keep={self.keep!r} and r={r!r} are both given: drop one of them.")
        if isinstance(r, tuple):
            if len(r) != 2 or not _count(r[0]) or type(r[1]) not in (int, float) or not -1 <= r[1] <= 1:
                raise InvalidArgumentError(
                    f"r={r!r} is no tuple (r, inflect) with inflect in [-1, 1]: give that, or a list for every block."
                )
        elif r is not None and not all(map(_count, r if isinstance(r, list) else [r])):
            raise InvalidArgumentError(f"r={r!r} is no int of at least 0: give one, a list of such, or (r, inflect).")
        if type(self.stride) is not int or self.stride < 2:
            raise InvalidArgumentError(f"stride={self.stride!r} is not an int of at least 2: give such a number.")

    def schedule(self, depth: int) -> list[int]:
        """What `r` asks of each of `depth` blocks."""
        if isinstance(self.r, tuple):
            r, inflect = self.r
            first = int(r * (1 - inflect))
            return [int(first + 2 * (r - first) / max(1, depth - 1) * block) for block in range(depth)]
        each = self.r if isinstance(self.r, list) else [self.r] * depth
        if len(each) > depth:
            raise InvalidArgumentError(
                f"r={each!r} has {len(each)} entries, where {depth} blocks are read: give no more than these."
            )
        return each + [0] * (depth - len(each))

    def counts(self, depth: int, total: int, grid: Grid | None = None) -> list[int]:
        if not self.budgeted:
            raise InvalidArgumentError(
                f"{self.name!r} has neither r nor keep: give r (tokens merged in each block) or keep (patches left)."
            )
        asked = self.schedule(depth) if self.keep is None else None
        keep = self.budget.count(total) if asked is None else 0
        left, result = total, []
        for block in range(depth):
            if asked is not None:
                wanted = left - asked[block]
            else:  # evenly, unless the blocks ahead, at their most, could not merge the rest
                ahead = depth - 1 - block
                wanted = min(left + (keep - left) // (ahead + 1), keep * self.stride**ahead)
            left = max(wanted, -(-left // self.stride))
            result.append(left)
        if left > keep > 0:
            raise InvalidArgumentError(
                f"keep={self.keep!r} is {keep} of {total} patches, where {depth} blocks that merge all they can leave "
                f"{left}: give at least as many, or a larger stride."
            )
        return result

    def reduce(self, tokens: BlockTokens, k: int) -> Reduction:
        r = tokens.shape[1] - tokens.prefix - k
        order, source = bipartite_match(tokens.keys, r, prefix=tokens.prefix, stride=self.stride)
        return Reduction(order=order, source=source)


def _count(r: object) -> bool:
    return type(r) is int and r >= 0
