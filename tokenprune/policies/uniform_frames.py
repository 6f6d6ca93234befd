"""Uniform frame dropping, the baseline of videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ops import even_points, points_on_grid, sent
from ..registry import register
from ..tokens import Selection, VisualTokens
from .video import VideoPolicy, frame_size


@register("uniform-frames")
@dataclass(kw_only=True)
class UniformFrames(VideoPolicy):
    """Whole frames, evenly spread over the video, as if fewer had been sampled. Looks at nothing.

    Of T frames with N tokens ceil(k / N) are taken; what k leaves of the last of them are evenly spread places.
    `strict_paper` changes nothing.
    """

    needs: ClassVar = frozenset()
    exact: ClassVar = True
    cost: ClassVar = "k integer operations on the CPU"
    when: ClassVar = "As the baseline that every method for videos has to beat: it is what sampling fewer frames does."
    limits: ClassVar = "What happens between the frames is lost; the tower still encodes all of them."

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        n = frame_size(tokens.grid)
        frames, rest = even_points(tokens.grid[0], -(-k // n)), points_on_grid((1, *tokens.grid[1:]), (k - 1) % n + 1)
        places = [frame * n + place for frame in frames[:-1] for place in range(n)]
        places += [frames[-1] * n + place for place in rest]
        return Selection.subset(sent(places, tokens.features.device).expand(tokens.shape[0], k))
