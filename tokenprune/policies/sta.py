"""STA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..blocks import BlockTokens, Grid, Reduction
from ..errors import InvalidArgumentError, UnsupportedPolicyError
from ..ops import carried_on, gather_rows, min_max, nearest_target, top_k, unit_norm
from ..registry import register
from .vision import VisionPolicy


@register("sta")
@dataclass(kw_only=True)
class STA(VisionPolicy):
    """Semantic-aware temporal accumulation: tokens that repeat what came before and are weak leave a clip.

    Behind blocks 0, L//3 and 2 L//3 of L, where the clip has T, T/2 and T/4 slots of N tokens x [N, D] with keys
    k [N, d], mean over heads, of unit length. Slots are visited in order of time, the second time backward. The first
    loses the r tokens at even places that are most like one at an odd place. Each other has
    g_i = sum over j of g_j softmax over i of (k_i . k_j), j over the tokens kept of the slot visited before, their g
    normalised to sum 1 (over all tokens of the first slot, each with g = 1), and a_i = sum over channels |x_i|; it
    loses the r tokens of the largest g_i (max a - a_i) / (max a - min a).
    Slots stay in order of time, tokens in a slot come by rising score; two neighbours are one slot at the next stage.

    Attributes:
        r: tokens that leave each slot at each stage, so 7 T / 4 r in all; at most half of the patches of a slot at the
            start. Excludes `keep`, which is what is left of the clip: what does not divide leaves at the last stage,
            slots visited earlier losing one more.

    Defaults: none; the paper's r are 16 to 96 of 196, 64 for ViT-L: 672 of 1568 tokens are left.

    Source: Ding et al., "Prune Spatio-temporal Tokens by Semantic-aware Temporal Accumulation", ICCV 2023,
    arXiv 2308.04549.

    Differs from the paper: as released, the semantic term is the L1 norm of a token, and the first slot ignores it.
    Differs from the released code: T is what the clip has, 8 there; a slot of one norm is ranked by g (there: 0 / 0).
    """

    behind: ClassVar = True
    reads: ClassVar = frozenset({"keys"})
    cost: ClassVar = "N^2 d multiply-adds and a sort per slot of N tokens, at three blocks; V D floats for V tokens"
    when: ClassVar = "Clip classifiers (VideoMAE) whose frames repeat each other."
    limits: ClassVar = "Clips of 4, 8, 12 ... temporal slots without a class token; the first slot is halved at most."
    budgeted = property(lambda self: self.keep is not None or self.r is not None)

    r: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.r is not None and self.keep is not None:
            raise InvalidArgumentError(f"keep={self.keep!r} and r={self.r!r} are both given: drop one of them.")
        if self.r is not None and (type(self.r) is not int or self.r < 0):
            raise InvalidArgumentError(f"r={self.r!r} is not an int of at least 0: give such a number.")

    def counts(self, depth: int, total: int, grid: Grid | None = None) -> list[int]:
        if not self.budgeted:
            raise InvalidArgumentError(f"{self.name!r} has neither r (tokens that leave a slot) nor keep: give one.")
        slots = grid[0] if grid else 1
        if slots % 4 or depth < 3:
            raise UnsupportedPolicyError(
                f"policy={self.name!r} needs a clip of 4, 8, 12 ... temporal slots and three blocks, this is one of "
                f"{slots} in {depth} blocks: give other clips, or use another policy."
            )
        half = total // slots // 2
        if self.keep is None:
            r, removed, given = self.r, 7 * slots // 4 * self.r, f"r={self.r}"
        else:
            removed, given = total - self.budget.count(total), f"keep={self.keep!r}"
            r = removed // (7 * slots // 4)
            if 4 * (total - removed) < 2 * total - 3 * slots * r:  # the last stage would lose more than half
                r += 1
        if r > half:
            raise InvalidArgumentError(
                f"{given} would take more than half of the {total // slots} patches of a slot: give an r of at most "
                f"{half}, which leaves {total - 7 * slots * half // 4} tokens, or a keep of at least that."
            )
        left = [max(count, total - removed) for count in (total - slots * r, total - 3 * slots * r // 2, 0)]
        bounds = [*_stages(depth), depth]
        return [count for i, count in enumerate(left) for _ in range(bounds[i], bounds[i + 1])]

    def reduce(self, tokens: BlockTokens, k: int) -> Reduction:
        if tokens.prefix:
            raise UnsupportedPolicyError(
                f"policy={self.name!r} is for towers without class token, which this is not: use 'tome'."
            )
        stage = _stages(tokens.depth).index(tokens.block)
        slots = tokens.grid[0] >> stage
        n, (each, more) = tokens.shape[1] // slots, divmod(tokens.shape[1] - k, slots)
        weakness, keys = -tokens.hidden.float().abs().sum(-1), unit_norm(tokens.keys)
        strength = -min_max(weakness.view(-1, n)).view(weakness.shape)
        visited, kept = (range(slots)[::-1] if stage == 1 else range(slots)), {}
        for number, slot in enumerate(visited):
            part, stay = slice(slot * n, slot * n + n), n - each - (number < more)
            x = keys[:, part]
            if number == 0:
                best, before, weights = _unlike(x)[:, :stay], x, torch.ones_like(x[..., 0])
            else:
                g = carried_on(x, before, weights)
                best = top_k(g * strength[:, part], stay)
                before, weights = gather_rows(x, best), g.gather(1, best)
                weights = weights / weights.sum(-1, keepdim=True)  # changes no rank, but long clips would underflow
            kept[slot] = best + slot * n
        return Reduction(order=torch.cat([kept[slot] for slot in range(slots)], 1))


def _stages(depth: int) -> list[int]:
    return [0, depth // 3, 2 * depth // 3]


def _unlike(x: Tensor) -> Tensor:
    """[G, N]: odd places, then even ones by rising cosine with an odd one; x: [G, N, d] unit vectors."""
    similarity, _ = nearest_target(x[:, 0::2], x[:, 1::2])
    odd = torch.arange(1, x.shape[1], 2, device=x.device).expand(len(x), -1)
    return torch.cat([odd, 2 * top_k(-similarity, similarity.shape[1])], 1)
