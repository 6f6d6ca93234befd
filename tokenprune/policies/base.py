"""What every policy is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..budget import Budget, Rounding, Unit
from ..tokens import Selection, VisualTokens

Need = Literal["features", "encoder", "text", "instruction"]


@dataclass(kw_only=True)
class Policy:
    """Decides which visual tokens survive. Subclasses are dataclasses; their fields are the paper's hyper-parameters.

    Attributes:
        keep: budget, an int (tokens) or a float in (0, 1] (share); may be left to `wrap(..., keep=...)`.
        per: unit the budget is counted over.
        rounding: how a share becomes a count.
    """

    name: ClassVar[str] = ""
    stage: ClassVar[str] = ""
    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    cost: ClassVar[str] = ""  # one line for `tokenprune show`: operations and memory per unit

    keep: int | float | None = None
    per: Unit = "image"
    rounding: Rounding = "half_even"

    def __post_init__(self):
        Budget(1.0 if self.keep is None else self.keep, self.per, self.rounding)

    @property
    def budget(self) -> Budget:
        return Budget(self.keep, self.per, self.rounding)


@dataclass(kw_only=True)
class ProjectorPolicy(Policy):
    """Works on projected tokens, after the projector and before the language model."""

    stage: ClassVar[str] = "projector"

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        """Choose or merge down to k of the N tokens of each unit. The runtime calls it with 1 <= k < N only."""
        raise NotImplementedError
