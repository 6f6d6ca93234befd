"""DyCoke."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..errors import InvalidArgumentError, PolicyError
from ..ops import even_points, frame_change, points_on_grid, top_k
from ..registry import register
from ..tokens import Selection, VisualTokens
from .video import VideoPolicy, by_frame


@register("dycoke")
@dataclass(kw_only=True)
class DyCoke(VideoPolicy):
    """The first of every four frames whole, of the others the tokens least like an earlier frame of the four.

    X [T, N, D] tokens. In a group of four, frames 1 and 2 are compared with frame 0 and frame 3 with frame 2, place by
    place; the tokens of the lowest cosine stay. Though the paper's name for it is temporal token merging, nothing is
    merged. Of k tokens the whole frames take theirs, and the other frames share the rest equally. Where k is too small
    for every fourth frame, groups are larger; frame j of one is compared with the frame whose number is j without its
    lowest binary digit that is 1. With fewer tokens than one frame has, they are spread evenly over the video.

    Attributes:
        group: frames that share a whole one.
        merging_ratio: of `strict_paper`, the share of a compared frame's tokens that go, in the paper k = 0.3, 0.5 or
            0.7. None follows from keep = (1 + 3 (1 - merging_ratio)) / 4, what is left of a multiple of four frames.
        strict_paper: as released: compared frames keep int((1 - merging_ratio) N), frame 2 of the last group stays
            whole, and a last frame without a partner is dropped. Needs five frames and a quarter of the tokens.

    Source: Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", CVPR 2025,
    arXiv 2411.15024.

    Differs from the released code: exactly k and no frame treated differently, unless `strict_paper`. The code puts the
    tokens of a compared frame in the order of their similarity; that is `Selection.order`, and they stand in raster
    order here. Positions are renumbered, as there. Its choice of keys anew at every decode step is not here, since it
    takes nothing out of the cache: `ops.reselected` is the rule.
    """

    positions: ClassVar = "compact"
    group: int = 4
    merging_ratio: float | None = None
    cost: ClassVar = "V D multiply-adds and a sort of each frame; blocks of 16 MiB"
    when: ClassVar = "Slow scenes at mild ratios: a quarter of the frames stays whole, with all that is small in it."
    limits: ClassVar = "Whole frames alone at a quarter and below. New positions hide time: try positions='original'."

    def __post_init__(self):
        super().__post_init__()
        least = 4 if self.strict_paper else 2
        if type(self.group) is not int or self.group < least or (self.strict_paper and self.group != 4):
            raise InvalidArgumentError(
                f"group={self.group!r} is not an int of at least 2, and 4 with strict_paper: give such a number."
            )
        ratio = self.merging_ratio
        if ratio is not None and not (self.strict_paper and isinstance(ratio, float) and 0.0 <= ratio <= 1.0):
            raise InvalidArgumentError(
                f"merging_ratio={ratio!r} is neither None nor, with strict_paper=True, a float in [0, 1]: give keep."
            )

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        x = by_frame(tokens)
        g, t, n, _ = x.shape
        if k < n and not self.strict_paper:
            spread = torch.tensor(points_on_grid(tokens.grid, k), device=x.device)
            return Selection(indices=spread.expand(g, k))
        group, counts = (4, self._released(t, n, self.ratio(tokens, k))) if self.strict_paper else self._shared(t, n, k)
        compared = [f for f in range(t) if 0 < counts[f] < n]
        earlier = [f - f % group + (f % group & (f % group - 1)) for f in compared]
        change = dict(zip(compared, frame_change(x, compared, earlier).unbind(1), strict=True))
        whole = torch.arange(n, device=x.device).expand(g, n)
        order = [f * n + (top_k(change[f], counts[f]) if f in change else whole[:, : counts[f]]) for f in range(t)]
        return Selection.subset(torch.cat(order, 1))

    def _shared(self, t: int, n: int, k: int) -> tuple[int, list[int]]:
        """Frames of a group, and tokens of every frame, k in all, for k >= n."""
        group = max(self.group, -(-t // (k // n)))
        others = [f for f in range(t) if f % group]
        each, rest = divmod(k - n * (t - len(others)), max(1, len(others)))
        more = {others[i] for i in even_points(len(others), rest)}
        return group, [n if f % group == 0 else each + (f in more) for f in range(t)]

    def _released(self, t: int, n: int, keep: float) -> list[int]:
        """Tokens of every frame."""
        ratio = self.merging_ratio if self.merging_ratio is not None else 1.0 - (4.0 * keep - 1.0) / 3.0
        if t <= 4 or ratio > 1.0:
            raise PolicyError(
                f"dycoke with strict_paper was asked for keep={keep:.3g} of {t} frames, and its rule needs more than 4 "
                "frames and keep >= 0.25: leave strict_paper out, or keep more of a longer video."
            )
        left = int((1.0 - ratio) * n)
        counts = [left if f % 2 or (f % 4 == 2 and f < t - 2) else n for f in range(t)]
        return [0 if t % 2 and f == t - 1 else counts[f] for f in range(t)]
