"""The rows of the table about several stages at once: plans that spend no more than a share of the dense FLOPs.

FLOPs are those of tower, prefill and a few steps of decoding, as `Report.cost` estimates them; the projector's are left
out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from .. import (
    DecoderShape,
    FastV,
    LayerPolicy,
    ProjectorPolicy,
    RandomBlocks,
    Report,
    SparseVLM,
    ToMe,
    Uniform,
    VisionPolicy,
)
from ..report import TowerReport
from .accuracy import configuration
from .inside import TEXT, strongest, with_schedule
from .vision_costs import share, spread

CONTROL = "random-blocks"
STEPS = 4  # of decoding
MERGES = (8, 16, 24, 32, 40, 48)  # r of ToMe that is tried where another stage takes the rest
FRONTS = (0.75, 0.5, 0.35, 0.25)  # shares of what the tower leaves: tried in front where a policy inside takes the rest


@dataclass(frozen=True)
class Costs:
    """FLOPs of one sample of a model.

    Attributes:
        shape: of its decoder.
        tower: a report of it.
        towers: how often a sample goes through it.
        visual: tokens that the decoder reads, dense.
    """

    shape: DecoderShape
    tower: TowerReport
    towers: int
    visual: int

    def inside(self, policy: VisionPolicy | None) -> float:
        """Of the tower."""
        dense = self.towers * self.tower.flops()[0]
        return dense if policy is None else dense * share(policy, self.tower)

    def behind(self, stretches: list[tuple[int, int]]) -> float:
        """Of the decoder, from (visual tokens, layers that read so many)."""
        known = [(n + TEXT, layers) for n, layers in stretches]
        prefill = sum(self.shape.flops(n, layers) for n, layers in known)
        return prefill + self._decoding(1, sum(n * layers for n, layers in known))

    def _decoding(self, samples: int, cached: int) -> float:
        """Of STEPS tokens of each sample, whose layers hold so many tokens together."""
        return STEPS * (samples * self.shape.flops(1) + 4 * self.shape.query * cached)

    @property
    def dense(self) -> float:
        return self.inside(None) + self.behind([(self.visual, self.shape.layers)])

    def of(self, report: Report) -> tuple[float, float]:
        """Of the samples of a report, dense and as they were."""
        cost, samples = report.cost(), len(report.lengths)
        found = []
        for how in ("dense", "pruned"):
            tower = cost.get(f"tower_flops_{how}", samples * self.inside(None))
            cached = cost[f"kv_bytes_{how}"] // (2 * self.shape.key_value * self.shape.dtype_bytes)
            found.append(tower + cost[f"prefill_flops_{how}"] + self._decoding(samples, cached))
        return found[0], found[1]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What runs in one cell: the policies, and whether the decoder reads as many tokens as ever of the tower."""

    policies: tuple[VisionPolicy | ProjectorPolicy | LayerPolicy, ...]
    restore: bool | None = None

    def __str__(self) -> str:
        said = []
        for one in self.policies:
            if isinstance(one, VisionPolicy):
                said.append(f"r={one.r}")
            elif isinstance(one, LayerPolicy):
                said.append(f"{getattr(one, 'keeps', None) or one.keep} inside".replace("(", "").replace(")", ""))
            else:
                said.append(f"{one.keep} in front")
        return ", ".join(said)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one row measures.

    Attributes:
        tower: policy inside the tower, in which `r` is set.
        restore: as of `wrap`.
        front: policy in front of the language model.
        inside: layers that tokens leave, and the policy inside.
    """

    tower: VisionPolicy | None = None
    restore: bool | None = None
    front: ProjectorPolicy | None = None
    inside: tuple[tuple[int, ...], LayerPolicy] | None = None

    @property
    def several(self) -> bool:
        return sum(part is not None for part in (self.tower, self.front, self.inside)) > 1

    def text(self) -> str:
        parts = [self.tower, self.front, self.inside and self.inside[1]]
        return " + ".join(configuration([one]) for one in parts if one is not None) + f", restore={self.restore}"

    def plans(self, most: float, costs: Costs, *, handed_on: bool) -> Iterator[Plan]:
        """Every way to spend no more than that share of the dense FLOPs that is tried; the last stage takes the rest.

        Args:
            handed_on: without `restore`, the decoder reads the tokens left only.
        """
        budget, depth, layers = most * costs.dense, len(costs.tower.blocks), costs.shape.layers
        for tower in self._towers(depth):
            first, spent = costs.visual, costs.inside(tower)
            if tower is not None and handed_on and not self.restore:
                first = tower.counts(depth, costs.tower.total, costs.tower.grid)[-1]
            before = () if tower is None else (tower,)
            fits = spent + costs.behind([(first, layers)]) <= budget
            if not self.front and not self.inside:
                if fits:
                    yield Plan(policies=before, restore=self.restore)
                    return
                continue
            if fits:  # and the stages behind would have nothing to do
                continue
            for n in self._fronts(first):
                front = () if self.front is None else (replace(self.front, keep=n),)
                if self.inside is None:
                    if spent + costs.behind([(n, layers)]) <= budget:
                        yield Plan(policies=(*before, *front), restore=self.restore)
                        break
                    continue
                drops, policy = self.inside
                ends = (*drops, layers)
                counts = strongest(n, drops, lambda s, spent=spent: spent + costs.behind(s), budget / layers, layers)
                stretches = [(k, end - start) for k, (start, end) in zip(counts, pairwise((0, *ends)), strict=True)]
                if spent + costs.behind(stretches) <= budget and counts[-1] < n:
                    last = with_schedule(policy, drops, counts[1:])
                    yield Plan(policies=(*before, *front, last), restore=self.restore)

    def _towers(self, depth: int) -> Iterator[VisionPolicy | None]:
        if self.tower is None:
            yield None
        elif self.several:
            yield from (replace(self.tower, r=r) for r in MERGES)
        else:
            yield from (replace(self.tower, r=spread([1.0] * depth, n)) for n in range(1, depth * max(MERGES) * 4))

    def _fronts(self, first: int) -> list[int]:
        if self.front is None:
            return [first]
        if self.inside is None:
            return list(range(first - 1, 0, -1))
        return [round(part * first) for part in FRONTS]


def composed_rows(seeds: int, *, handed_on: bool) -> dict[str, list[Row]]:
    """Row -> what is measured, several where the mean over seeds counts.

    Where nothing is handed on shortened, all rows that merge are restored, and nothing can be dropped in the tower.
    """
    tome, front, fastv = ToMe(r=1), Uniform(), ((1,), FastV())
    rows = {
        "tome": [Row(tower=tome)],
        "tome, restored": [Row(tower=tome, restore=True)],
        CONTROL: [Row(tower=RandomBlocks(r=1, seed=seed)) for seed in range(seeds)],
        "uniform": [Row(front=front)],
        "fastv": [Row(inside=fastv)],
        "sparsevlm, plus": [Row(inside=((1, 2, 3), SparseVLM(version="plus")))],
        "uniform + fastv": [Row(front=front, inside=fastv)],
        "tome + uniform": [Row(tower=tome, front=front)],
        "tome, restored + uniform": [Row(tower=tome, restore=True, front=front)],
        "tome + fastv": [Row(tower=tome, inside=fastv)],
        "tome + uniform + fastv": [Row(tower=tome, front=front, inside=fastv)],
        "tome, restored + uniform + fastv": [Row(tower=tome, restore=True, front=front, inside=fastv)],
    }
    if handed_on:  # asked for, since towers that merge are restored by default
        merging = lambda one: one.tower is not None and one.tower.merges  # noqa: E731
        return {
            name: [replace(one, restore=bool(one.restore)) if merging(one) else one for one in several]
            for name, several in rows.items()
        }
    return {name: own for name, own in rows.items() if not own[0].restore and name != CONTROL}
