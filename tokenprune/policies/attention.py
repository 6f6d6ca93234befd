"""What policies share that rank tokens by attention inside the vision tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..tokens import VisualTokens
from .base import ProjectorPolicy
from .quality import VisionAttention


@dataclass(kw_only=True)
class AttentionPolicy(ProjectorPolicy):
    """A projector policy that ranks tokens by a score, by default attention inside the vision tower.

    Attributes:
        attention: maps `VisualTokens` to a [G, N], higher is better.
    """

    parts: ClassVar = ("attention",)
    attention: Callable[[VisualTokens], Tensor] = field(default_factory=VisionAttention)
