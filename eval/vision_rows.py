"""The rows of the tables about vision transformers: what tokens leave by, at equal FLOPs in every column.

Columns of the image classifier are ToMe's r, those of the clip classifier STA's. All else in a column is the mildest
setting that takes no more FLOPs, by the estimate of `Report.cost`; no setting is chosen by its accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .. import STA, EViT, RandomBlocks, ToMe, VisionPolicy
from ..report import TowerReport
from .accuracy import configuration
from .vision_control import RandomSlots
from .vision_costs import falling, mildest, share, spread

MERGES = (4, 8, 16, 24, 32, 48, 64, 96)  # r of ToMe for 256 patches in 8 blocks
LEAVE = (4, 8, 12, 16, 20, 24, 28, 32)  # r of STA for slots of 64 tokens
FINE = 1000  # keep rates of EViT
CONTROL = "random-blocks"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one row measures.

    Attributes:
        policies: column -> policy, several where the mean over seeds counts.
        against: name of a difference -> row it is to.
    """

    policies: dict[int, Sequence[VisionPolicy]]
    against: dict[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[int, ...]:
        return tuple(self.policies)

    @property
    def text(self) -> str:
        return configuration([one for several in self.policies.values() for one in several])


def image_rows(tower: TowerReport, seeds: int) -> dict[str, Row]:
    """Of a classifier with a class token."""
    tome, depth = {r: ToMe(r=r) for r in MERGES}, len(tower.blocks)
    equal = _equal(tome, tower)
    evit = equal(lambda n: EViT(keep_rate=_rate(n)), FINE - 1)
    steps = depth * max(MERGES)
    found = {
        "tome": tome,
        "tome, plain": {r: ToMe(r=r, proportional=False) for r in MERGES},
        "tome, falling r": equal(lambda n: ToMe(r=spread(falling(depth), n)), steps),
        "tome, rising r": equal(lambda n: ToMe(r=spread(falling(depth)[::-1], n)), steps),
        "evit": evit,
        "evit, not fused": equal(lambda n: EViT(keep_rate=_rate(n), fuse=False), FINE - 1),
    }
    like_tome, like_evit = CONTROL, f"{CONTROL}, as evit"
    rows = {
        name: Row(policies=_single(ours), against={"over_random": like_evit if "evit" in name else like_tome})
        for name, ours in found.items()
    }
    rows[like_tome] = Row(policies={r: [RandomBlocks(r=r, seed=seed) for seed in range(seeds)] for r in MERGES})
    rows[like_evit] = Row(
        policies={
            r: [RandomBlocks(blocks=one.blocks, keep_rate=one.keep_rate, seed=seed) for seed in range(seeds)]
            for r, one in evit.items()
        }
    )
    return rows


def clip_rows(tower: TowerReport, seeds: int) -> dict[str, Row]:
    """Of a classifier of clips without a class token."""
    sta, depth = {r: STA(r=r) for r in LEAVE}, len(tower.blocks)
    equal, even = _equal(sta, tower), [1.0] * depth
    tome = equal(lambda n: ToMe(r=spread(even, n)), depth * tower.total)
    plain = {r: ToMe(r=one.r, proportional=False) for r, one in tome.items()}
    like_tome, like_sta = CONTROL, f"{CONTROL}, as sta"
    return {
        "sta": Row(policies=_single(sta), against={"over_random": like_sta, "over_tome": "tome"}),
        "tome": Row(policies=_single(tome), against={"over_random": like_tome}),
        "tome, plain": Row(policies=_single(plain), against={"over_random": like_tome}),
        like_tome: Row(
            policies={r: [RandomBlocks(r=one.r, seed=seed) for seed in range(seeds)] for r, one in tome.items()}
        ),
        like_sta: Row(policies={r: [RandomSlots(r=r, seed=seed) for seed in range(seeds)] for r in LEAVE}),
    }


def _rate(n: int) -> float:
    return round(1 - n / FINE, 3)


def _equal(
    models: dict[int, VisionPolicy], tower: TowerReport
) -> Callable[[Callable[[int], VisionPolicy], int], dict[int, VisionPolicy]]:
    """What fits each column's FLOPs, and is left out where nothing does."""
    most = {r: share(one, tower) for r, one in models.items()}

    def equal(make: Callable[[int], VisionPolicy], strengths: int) -> dict[int, VisionPolicy]:
        found = {r: mildest(make, strengths, flops, tower) for r, flops in most.items()}
        return {r: one for r, one in found.items() if one is not None}

    return equal


def _single(policies: dict[int, VisionPolicy]) -> dict[int, list[VisionPolicy]]:
    return {r: [one] for r, one in policies.items()}
