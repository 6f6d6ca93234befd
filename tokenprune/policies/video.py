"""What policies share that work on whole videos, in front of the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..errors import InvalidArgumentError, UnsupportedPolicyError
from ..tokens import VisualTokens
from .base import ProjectorPolicy


@dataclass(kw_only=True)
class VideoPolicy(ProjectorPolicy):
    """A projector policy that compares the frames of a video. Images of the same prompt stay whole.

    Attributes:
        strict_paper: the paper's own count of tokens, which may depend on the content; `keep` is its ratio then.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"video"})
    strict_paper: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.per != "image":
            raise InvalidArgumentError(
                f"per={self.per!r} shows policy {self.name!r} no whole video: leave per='image', which is a video "
                "here, and say of='prompt' for one budget over several."
            )

    @property
    def exact(self) -> bool:
        return not self.strict_paper

    def ratio(self, tokens: VisualTokens, k: int) -> float:
        """The share of tokens that formulas of papers call r or rho."""
        return self.keep if isinstance(self.keep, float) else k / tokens.shape[1]


def frame_size(grid: tuple[int, int, int] | None) -> int:
    """Tokens of one frame.

    Raises:
        UnsupportedPolicyError: the frames of the video are not known.
    """
    if grid is None:
        raise UnsupportedPolicyError(
            "the frames of this video are not known here, or a policy before took tokens out of them: put policies "
            "that compare frames first, or use one that looks at tokens alone."
        )
    return grid[1] * grid[2]


def by_frame(tokens: VisualTokens, values: Tensor | None = None) -> Tensor:
    """[G, T, N, ...]: the features, or other values [G, T N, ...], frame by frame.

    Raises:
        UnsupportedPolicyError: the frames of the videos are not known.
    """
    return (tokens.features if values is None else values).unflatten(1, (-1, frame_size(tokens.grid)))
