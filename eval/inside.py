"""Rows of the accuracy table that prune inside the language model, alone or behind a policy in front of it.

Budgets are those of policies in front. Alone, a policy may leave that share of the tokens on average over the layers.
Behind another one, which keeps twice the budget, it drops so many more that the prefill takes as many FLOPs as with the
one in front alone at that budget. All policies that drop equally often have the same layers and counts, so that only
scores and positions differ; `random-layers` has them, too, with either kind of positions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from .. import (
    AdaptInfer,
    Debiased,
    DecoderShape,
    FastV,
    HiMAP,
    LayerPolicy,
    ProjectorPolicy,
    PyramidDrop,
    RandomLayers,
    SparseVLM,
    Trend,
    Uniform,
    ZooPrune,
)
from ..budget import Budget
from .control import RandomCompact

TRENDS = Path(__file__).parent / "results" / "trends.json"
ALONE = (0.5,)  # budgets that a policy reaches which sees all tokens in the first of four layers
BEHIND = (0.25, 0.11, 0.05)
EASY = 2400  # questions of easy-VQA that these rows are asked
SEEDS = 3
TEXT = 8  # words and marks of a prompt, about, where counts are chosen
FRONTS = {"uniform": Uniform(), "zooprune, norm": ZooPrune(estimator="norm")}  # the best two on both sets
# What is left after each drop, as shares of what came in, for a strength t in (0, 1)
SCHEDULES: dict[tuple[int, ...], Callable[[float], tuple[float, ...]]] = {
    (1,): lambda t: (t,),
    (1, 2): lambda t: (t, t * 90 / 115),  # the stages of HiMAP
    (1, 2, 3): lambda t: (t, t**2, t**3),  # those of PyramidDrop
}
CONTROLS: dict[tuple[tuple[int, ...], str], tuple[str, type[RandomLayers]]] = {  # by schedule and positions
    ((1,), "original"): ("random-layers, 1 drop", RandomLayers),
    ((1, 2), "original"): ("random-layers, 2 drops", RandomLayers),
    ((1, 2, 3), "original"): ("random-layers, 3 drops", RandomLayers),
    ((1, 2, 3), "compact"): ("random-layers, 3 drops, compact", RandomCompact),
}


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What is measured in such a row.

    Attributes:
        policy: inside, with any schedule.
        drops: layers that the tokens leave.
        front: in front, or None.
        row: its name without the one in front.
    """

    stage: ClassVar[str] = "layer"

    policy: LayerPolicy
    drops: tuple[int, ...]
    front: ProjectorPolicy | None = None
    row: str

    @property
    def name(self) -> str:
        return self.policy.name

    @property
    def against(self) -> dict[str, str]:
        """Rows that this one is compared with: the control, and a policy in front alone."""
        front = next(iter(FRONTS)) if self.front is None else _front_name(self.front)
        control, _ = CONTROLS[self.drops, self.policy.positions]
        row = control if self.front is None else f"{front} + {control}"
        return {"over_front": front} | ({} if self.row == control else {"over_random": row})

    def keeps(self, keeps: tuple[float, ...]) -> tuple[float, ...]:
        """The budgets among `keeps` that it has."""
        return tuple(keep for keep in keeps if keep in (ALONE if self.front is None else BEHIND))

    def counts(self, keep: float, shape: DecoderShape, total: int) -> tuple[int, ...]:
        """Visual tokens in front, and after every drop."""
        alone = Budget(keep).count(total)
        if self.front is None:
            return strongest(total, self.drops, lambda stretches: sum(n * m for n, m in stretches), alone, shape.layers)
        target = shape.flops(alone + TEXT)

        def cost(stretches: list[tuple[int, int]]) -> int:
            return sum(shape.flops(n + TEXT, layers) for n, layers in stretches)

        return strongest(2 * alone, self.drops, cost, target / shape.layers, shape.layers)

    def policies(self, keep: float, shape: DecoderShape, total: int) -> list[ProjectorPolicy | LayerPolicy]:
        first, *left = self.counts(keep, shape, total)
        front = [] if self.front is None else [replace(self.front, keep=first)]
        return [*front, with_schedule(self.policy, self.drops, tuple(left))]


def strongest(
    first: int,
    drops: tuple[int, ...],
    cost: Callable[[list[tuple[int, int]]], float],
    per_layer: float,
    layers: int,
) -> tuple[int, ...]:
    """The mildest schedule that costs no more than `per_layer` a layer: tokens in front, and after every drop.

    Args:
        first: tokens in front.
        cost: of stretches of (tokens, layers that read so many).
    """

    def counts(t: float) -> tuple[int, ...]:
        return (first, *(max(1, round(first * share)) for share in SCHEDULES[drops](t)))

    low, high, ends = 0.0, 1.0, (*drops, layers)
    for _ in range(40):
        middle = (low + high) / 2
        lasts = [end - start for start, end in zip((0, *drops), ends, strict=True)]
        fits = cost(list(zip(counts(middle), lasts, strict=True))) <= per_layer * layers
        low, high = (middle, high) if fits else (low, middle)
    return counts(low)


def with_schedule(policy: LayerPolicy, drops: tuple[int, ...], counts: tuple[int, ...]) -> LayerPolicy:
    """The policy with tokens leaving these layers down to these counts."""
    if isinstance(policy, Debiased):
        return replace(policy, inner=with_schedule(policy.inner, drops, counts))
    if isinstance(policy, FastV):
        return replace(policy, layer=drops[0], keep=counts[0])
    return replace(policy, layers=tuple(drop - policy.offset for drop in drops), keeps=counts)


def inside_rows(seeds: int) -> dict[str, list[Inside]]:
    """Row -> what is measured, several where the mean over seeds counts: alone, then behind each policy in front."""
    found = {}
    for front in (None, *FRONTS):
        for row, (drops, policies) in _members(min(seeds, SEEDS)).items():
            name = row if front is None else f"{front} + {row}"
            found[name] = [Inside(policy=one, drops=drops, front=FRONTS.get(front), row=row) for one in policies]
    return found


def _members(seeds: int) -> dict[str, tuple[tuple[int, ...], list[LayerPolicy]]]:
    one, two, three = SCHEDULES
    trend = Trend(**json.loads(TRENDS.read_text())["fastv, layer 0"])
    return {
        "fastv": (one, [FastV()]),
        "debiased(fastv)": (one, [Debiased(inner=FastV(), trend=trend)]),
        "himap": (two, [HiMAP()]),
        "pyramiddrop": (three, [PyramidDrop()]),
        "sparsevlm": (three, [SparseVLM()]),
        "sparsevlm, plus": (three, [SparseVLM(version="plus")]),
        "adaptinfer": (three, [AdaptInfer()]),
    } | {row: (drops, [cls(seed=seed) for seed in range(seeds)]) for (drops, _), (row, cls) in CONTROLS.items()}


def _front_name(front: ProjectorPolicy) -> str:
    return next(name for name, one in FRONTS.items() if one == front)
