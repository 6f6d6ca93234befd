"""The rows of the table about clips: every registered policy that compares frames, and what it has to beat.

Nothing here is tuned on the held-out clips. Variants: the paper's own count (`strict_paper`), the other kind of
position ids, and, where a default is a number of segments for 32 frames, that number for the 8 frames of these clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from .. import DecoderShape, FrameFusion, LayerPolicy, Policy, ProjectorPolicy, at_mean
from .accuracy import configuration
from .asking import Pruned, Stacked, Way
from .inside import Inside
from .training_free import training_free

KEEPS = (0.5, 0.25, 0.1)
DENSE, RANDOM, FRAMES = "dense", "random", "uniform-frames"
CONTROL = "random-layers"
BASELINES = ("uniform", "pool", RANDOM, FRAMES)
IMAGES = ("divprune", "fastervlm")  # policies for images that run on pooled frames, of two kinds
INSIDE = ("fastv", "prunevid-inside", "holitom-inner", CONTROL)
STACKS = {"prunevid": "prunevid-inside", "holitom": "holitom-inner"}
FRACTION = {"fastvid": {"c": 2}}  # 8 segments of 32 frames
LEAST = {"dycoke": 0.25}  # of the paper's own count
ONE = {"prunevid": 0.25}  # whose own count has no budget, written at this one
DROPS = (1,)
GROUPS = {
    "exact": "exactly that share of the tokens",
    "strict": "the paper's own count",
    "positions": "the other kind of positions",
    "inside": "inside the language model",
    "stacked": "in front and inside",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one row measures.

    Attributes:
        policies: without a budget, several where the mean over seeds counts.
        group: of the tables.
        keeps: its budgets.
        positions: of the tokens left, None for those of the paper.
        against: name of a difference -> row it is to.
    """

    policies: Sequence[Policy | Inside]
    group: str = "exact"
    keeps: tuple[float, ...] = KEEPS
    positions: str | None = None
    against: dict[str, str] = field(default_factory=lambda: {"over_random": RANDOM, "over_frames": FRAMES})

    @property
    def name(self) -> str:
        return self.policies[0].name

    @property
    def text(self) -> str:
        return configuration(list(self.policies)) + (f", {self.positions} positions" if self.positions else "")

    def ways(self, model, processor) -> list[Way]:
        if isinstance(self.policies[0], Inside):
            return [Stacked(model, processor, one) for one in self.policies]
        return [Pruned(model, processor, one, self.positions) for one in self.policies]


@dataclass(frozen=True, kw_only=True)
class Inner(Inside):
    """Inside the decoder as in the rows for images; what it is compared with, its `Row` says."""

    @property
    def against(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True, kw_only=True)
class MeanShare(Inner):
    """A policy with a schedule of its own, at the `keep` that leaves the budget on average over the layers.

    With `strict_paper` that mean is the policy's own budget, and its content decides how it is met.
    """

    def policies(self, keep: float, shape: DecoderShape, total: int) -> list[ProjectorPolicy | LayerPolicy]:
        if self.policy.strict_paper:
            return [replace(self.policy, target_cost=keep)]
        return [at_mean(self.policy, keep, depth=shape.layers, total=total)]

    def counts(self, keep: float, shape: DecoderShape, total: int) -> tuple[int, ...]:
        (policy,) = self.policies(keep, shape, total)
        if policy.strict_paper:
            return ()
        return total, *(policy.count(event, total) for event in policy.events(shape.layers))


def video_rows(seeds: int) -> dict[str, Row]:
    """Row -> what is measured."""
    ours = training_free()
    on_videos = [name for name, cls in ours.items() if cls.stage == "projector" and "image" not in cls.kinds]
    several = {RANDOM: [ours[RANDOM](seed=seed) for seed in range(seeds)]}
    rows = {
        name: Row(policies=several.get(name, [ours[name]()]))
        for name in dict.fromkeys((*BASELINES, *IMAGES, *on_videos))
    }
    rows |= {_named(name, settings): Row(policies=[ours[name](**settings)]) for name, settings in FRACTION.items()}
    for name in on_videos:
        if any(one.name == "strict_paper" for one in fields(ours[name])) and name != FRAMES:
            keeps = (ONE[name],) if name in ONE else tuple(keep for keep in KEEPS if keep >= LEAST.get(name, 0))
            rows[f"{name}, strict"] = Row(policies=[ours[name](strict_paper=True)], group="strict", keeps=keeps)
    rows |= _inside(ours, seeds)
    for name in ("uniform", *on_videos):
        other = "original" if ours[name].positions == "compact" else "compact"
        against = {"over_random": RANDOM, "over_own": name}
        row = Row(policies=[ours[name]()], group="positions", positions=other, against=against)
        rows[f"{name}, {other}"] = row
    return rows


def _named(name: str, settings: dict) -> str:
    return ", ".join((name, *(f"{key}={value}" for key, value in settings.items())))


def _inside(ours: dict[str, type[Policy]], seeds: int) -> dict[str, Row]:
    """Those inside the language model: alone, then behind the policy that its paper puts in front."""

    def of(name: str, front: str | None = None) -> list[Inside]:
        made = [ours[name](seed=seed) for seed in range(seeds)] if name == CONTROL else [ours[name]()]
        return [Inner(policy=one, drops=DROPS, row=name, front=ours[front]() if front else None) for one in made]

    rows = {}
    for name in INSIDE:
        against = {"over_frames": FRAMES} | ({} if name == CONTROL else {"over_random": CONTROL})
        rows[name] = Row(policies=of(name), group="inside", keeps=(0.5,), against=against)
    for name, policy in {"framefusion": FrameFusion(), "framefusion, strict": FrameFusion(strict_paper=True)}.items():
        rows[name] = Row(policies=[MeanShare(policy=policy, drops=(0, 1), row=name)], group="inside")
    for front, inner in STACKS.items():
        for name in (inner, CONTROL):
            against = {"over_front": front} | ({} if name == CONTROL else {"over_random": f"{front} + {CONTROL}"})
            rows[f"{front} + {name}"] = Row(policies=of(name, front), group="stacked", keeps=KEEPS[1:], against=against)
    return rows
