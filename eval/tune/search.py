"""The race for the fastest configuration within an allowed loss.

Times are measured before the race; what is unknown is the loss, and documents are what it costs to know it. The answer
is the fastest candidate whose loss is allowed. To know that, every faster candidate has to be refused, and no slower
one has to be looked at. So:

1. The dense model answers all N calibration documents, and the M held-out ones. Candidates no faster than it leave.
2. Survey: every other candidate answers the first eighth of the N documents, and leaves if it loses *clearly* too
   much: the lower bound of its mean loss, document against document with the dense model, is above what is allowed.
3. Race: of those left, from the fastest on, each goes through the first quarter, half, and all of the documents, and
   leaves where it loses clearly too much. One that is through all N is *within* or not, see below. Nobody leaves for
   being slow before a faster one is chosen. Times are compared to two digits; among equals, who lost less in the survey
   is first.
4. The first to be within is held to the same rule on the M held-out documents, which nothing so far has seen. If it
   fails, the race goes on to the next one within; at most three are checked, since with each more it gets likelier
   that one passes by luck.

Halving a field of contestants by their score, as in successive halving, would spend documents on the most accurate,
which is not asked for; halving it by time would give up the slow and safe before any fast one is known to be good. The
ascending race keeps the part that saves: few documents for whoever is clearly out.

What is promised. Without `confidence`, "within" speaks of the documents asked: the mean loss over all N is at most the
allowed one, and so is that over the M. It is an estimate; its interval is told. With confidence C, the upper bound of
the loss has to be allowed: at C on the calibration documents, and at 1 - (1 - C) / 3 on the held-out ones, so that,
over up to three checks, a configuration that loses more than is allowed is told with probability 1 - C at most (as far
as documents are independent, drawn as those of later use, and the bounds, which are approximate, hold).
The early refusals of 2 and 3 are wrong for a candidate that is allowed with probability RISK at most; a wrong one makes
the answer slower, never less accurate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ...errors import InputError
from .loss import MaxDrop, bounds, scale

DENSE = "none"
RUNGS = (1 / 8, 1 / 4, 1 / 2, 1.0)
RISK = 0.05  # of refusing early what is allowed, over all rungs
CHECKS = 3  # on held-out documents
TOLD = 0.975  # of each side of the intervals that are told: 95 % between them

# Values of the metric [tasks, documents], higher is better, of a candidate on the first `count` documents from
# `offset` on; raises Refused
Evaluate = Callable[[str, int, int], np.ndarray]


class Refused(Exception):
    """A candidate that the model cannot serve, and why."""


@dataclass(frozen=True)
class Plan:
    """samples: N; heldout: M; confidence: see the module, None for estimates."""

    samples: int
    heldout: int
    drop: MaxDrop
    confidence: float | None = None

    @property
    def rungs(self) -> list[int]:
        """Documents of each rung."""
        return sorted({max(1, math.ceil(share * self.samples)) for share in RUNGS})


@dataclass(frozen=True)
class Loss:
    """Mean loss over `count` documents of each task, its 95 % interval, and what is allowed there.

    Attributes:
        bound: what has to be allowed: the mean, or its upper bound where a confidence is asked for.
    """

    count: int
    mean: float
    low: float
    high: float
    bound: float
    allowed: float

    @property
    def within(self) -> bool:
        return self.bound <= self.allowed + 1e-12  # 0.01 * 1.0 of rounded sums


@dataclass
class Row:
    """A candidate: its time as a multiple of the dense model's, its losses, and what became of it."""

    text: str
    time: float
    loss: Loss | None = None
    heldout: Loss | None = None
    decision: str = ""


@dataclass
class Outcome:
    """rows: from the fastest on; dense, dense_heldout: its mean scores; spent, exhaustive: documents that candidates
    answered, and that answering all N would have taken; checks: rows checked on held-out documents, in order."""

    rows: list[Row]
    dense: float
    dense_heldout: float
    chosen: Row | None = None
    checks: list[Row] = field(default_factory=list)
    spent: int = 0
    exhaustive: int = 0

    @property
    def front(self) -> list[Row]:
        """Of those whose loss was measured, whom none of them beats in both time and loss, each as far as it came."""
        best, found = math.inf, []
        for row in sorted((row for row in self.rows if row.loss), key=lambda row: (row.time, row.loss.mean)):
            if row.loss.mean < best:
                best = row.loss.mean
                found.append(row)
        return found

    @property
    def closest(self) -> Row | None:
        """The one that lost least, of those whose loss was measured."""
        return min((row for row in self.rows if row.loss), key=lambda row: (row.loss.mean, row.time), default=None)


def search(
    times: Mapping[str, float], evaluate: Evaluate, plan: Plan, told: Callable[[Outcome], None] = lambda _: None
) -> Outcome:
    """Runs the race.

    Args:
        times: candidate -> time as a multiple of the dense model's.
        told: called after every decision.

    Raises:
        InputError: there are fewer documents than the plan needs.
    """
    return _Race(times, evaluate, plan, told).run()


class _Race:
    def __init__(
        self, times: Mapping[str, float], evaluate: Evaluate, plan: Plan, told: Callable[[Outcome], None]
    ) -> None:
        self.evaluate, self.plan, self.told = evaluate, plan, told
        self.heldout = self._answers(DENSE, plan.samples, plan.heldout)  # first: it is here that documents lack
        self.dense = self._answers(DENSE, 0, plan.samples)
        rows = [Row(text, times[text]) for text in sorted(times, key=lambda text: (times[text], text))]
        self.outcome = Outcome(rows, float(self.dense.mean()), float(self.heldout.mean()))
        self.outcome.exhaustive = len(rows) * self.dense.size

    def _answers(self, text: str, offset: int, count: int) -> np.ndarray:
        values = self.evaluate(text, offset, count)
        if values.shape[1] < count:
            needed = self.plan.samples + self.plan.heldout
            raise InputError(
                f"tasks have fewer than {needed} documents, which samples={self.plan.samples} and "
                f"heldout={self.plan.heldout} take: lower them."
            )
        return values

    def run(self) -> Outcome:
        rungs, outcome = self.plan.rungs, self.outcome
        for row in outcome.rows:
            if row.time >= 1:
                self._decide(row, "not faster than the dense model")
            else:
                self._climb(row, rungs[:1])
        left = [row for row in outcome.rows if not row.decision]
        for row in sorted(left, key=lambda row: (round(row.time, 2), row.loss.mean, row.time, row.text)):
            if outcome.chosen is not None:
                self._decide(row, "not needed: a faster one is chosen")
            elif len(outcome.checks) == CHECKS:
                self._decide(row, f"not looked at: {CHECKS} failed on held-out documents")
            elif self._climb(row, rungs[1:]):
                self._check(row)
        return outcome

    def _climb(self, row: Row, rungs: list[int]) -> bool:
        """Whether it is through these rungs; and within, if the last of them is all documents."""
        for count in rungs:
            before = row.loss.count if row.loss else 0
            try:
                values = self._answers(row.text, 0, count)
            except Refused as refused:
                self._decide(row, f"refused: {refused}")
                return False
            self.outcome.spent += values.size - before * len(values)
            row.loss = self._loss(self.dense, values, self.plan.confidence)
            losses = self.dense[:, :count] - values
            sure = 1 - RISK / max(1, len(self.plan.rungs) - 1)
            if count < self.plan.samples:
                if bounds(losses.ravel(), scale(self.dense, values), sure)[0] > row.loss.allowed:
                    self._decide(row, "loses clearly too much")
                    return False
            elif not row.loss.within:
                self._decide(row, "loses too much" if row.loss.mean > row.loss.allowed else "not shown to be within")
                return False
        return True

    def _check(self, row: Row) -> None:
        """On held-out documents."""
        sure = self.plan.confidence and 1 - (1 - self.plan.confidence) / CHECKS
        try:
            row.heldout = self._loss(self.heldout, self._answers(row.text, self.plan.samples, self.plan.heldout), sure)
        except Refused as refused:
            return self._decide(row, f"refused: {refused}")
        self.outcome.checks.append(row)
        if row.heldout.within:
            self.outcome.chosen = row
            return self._decide(row, "chosen")
        return self._decide(row, "within, but not on held-out documents")

    def _loss(self, dense: np.ndarray, values: np.ndarray, confidence: float | None) -> Loss:
        """Of values [tasks, count], against the dense model's first ones."""
        count = values.shape[1]
        losses, most = (dense[:, :count] - values).ravel(), scale(dense, values)
        mean = float(losses.mean())
        bound = mean if confidence is None else bounds(losses, most, confidence)[1]
        allowed = self.plan.drop.of(float(dense.mean()))
        return Loss(count, mean, *bounds(losses, most, TOLD), bound=bound, allowed=allowed)

    def _decide(self, row: Row, decision: str) -> None:
        row.decision = decision
        self.told(self.outcome)
