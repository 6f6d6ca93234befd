"""A figure beside its goal: met or missed, never left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """At least or at most so much of a figure of a row, named by its key; of [median, lowest, highest], the median."""

    key: str
    sign: str  # "<=" or ">="
    limit: float
    unit: str = ""
    percent: bool = False  # the figure is a share

    @property
    def text(self) -> str:
        return (
            f"{self.sign} {100 * self.limit:g} %{self.unit}"
            if self.percent
            else f"{self.sign} {self.limit:g}{self.unit}"
        )

    def of(self, row: dict[str, Any]) -> dict[str, Any]:
        """For JSON: the goal, and whether the row meets it."""
        value = row[self.key]
        value = value[0] if isinstance(value, list) else value
        return {"goal": self.text, "met": value <= self.limit if self.sign == "<=" else value >= self.limit}


def verdicts(goals: list[dict[str, Any]]) -> str:
    """`<= 0.25 ms: missed; >= 10x: met`."""
    return "; ".join(f"{one['goal']}: {'met' if one['met'] else 'missed'}" for one in goals)
