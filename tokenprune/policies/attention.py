"""What policies share that rank tokens by attention inside the vision tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..errors import InvalidArgumentError
from ..tokens import VisualTokens
from .base import Need, ProjectorPolicy
from .quality import VisionAttention


@dataclass(kw_only=True)
class AttentionPolicy(ProjectorPolicy):
    """A projector policy that ranks tokens by a score, by default attention inside the vision tower.

    Attributes:
        attention: maps `VisualTokens` to a [G, N], higher is better.
    """

    attention: Callable[[VisualTokens], Tensor] = field(default_factory=VisionAttention)

    def __post_init__(self):
        super().__post_init__()
        if not callable(self.attention):
            raise InvalidArgumentError(
                f"attention={self.attention!r} is no function: give VisionAttention(), FeatureNorm() or your own."
            )

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs | getattr(self.attention, "needs", frozenset())
