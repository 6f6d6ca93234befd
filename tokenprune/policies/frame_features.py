"""One vector for each frame of a video: parts that a policy is given, not policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..tokens import Tap, VisualTokens
from .video import by_frame


@dataclass(kw_only=True)
class FrameMean:
    """The mean of a frame's tokens."""

    needs: ClassVar = frozenset({"features"})

    def __call__(self, tokens: VisualTokens) -> Tensor:
        """[G, T, D] float32"""
        return by_frame(tokens).float().mean(2)


@dataclass(kw_only=True)
class FrameClassToken:
    """The vision tower's output at the class token of a frame, for towers with one: CLIP, not SigLIP or Qwen."""

    tap: ClassVar = Tap("class_token")
    needs: ClassVar = frozenset({tap})

    def __call__(self, tokens: VisualTokens) -> Tensor:
        """[G, T, d_v] float32"""
        return by_frame(tokens, tokens.tower[self.tap])[:, :, 0, 0].float()
