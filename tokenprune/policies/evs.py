"""EVS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..ops import frame_change, points_on_grid, retained_count, top_k
from ..registry import register
from ..tokens import Selection, VisualTokens
from .video import VideoPolicy, by_frame


@register("evs")
@dataclass(kw_only=True)
class EVS(VideoPolicy):
    """Efficient video sampling: the first frame, and the tokens that changed most since the frame before.

    X [T, N, D] tokens; s_0i = 255 and s_ti = 1 - cos(X_ti, X_(t-1)i). The k largest s of all T N stay, earlier ones
    among equals: one budget over the whole video, so a frame in which nothing happens keeps nothing. The pruning rate
    q of the paper is 1 - k / (T N). With fewer tokens than one frame has, all are of the first frame, evenly spread
    over it.

    Attributes:
        strict_paper: as in vLLM: q = 1 - keep and K = max(N, int(T N (1 - q))), never less than the first frame.

    Source: Bagrov et al., "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference",
    2025, arXiv 2510.14624.

    Differs from the paper, and is what vLLM does: the paper compares pixels (the L1 difference of a patch in RGB) with
    a percentile of all differences, and no policy sees pixels; here embeddings are compared and the count is exact.
    Position ids are preserved in both. vLLM lets the text behind a video begin at the width of its grid, which
    `tokenprune.ops.sequence_positions` computes for servers that lay out prompts themselves; here the text keeps the
    positions that the model gave it.
    """

    cost: ClassVar = "2 V D multiply-adds and a sort of V; blocks of 16 MiB"
    when: ClassVar = (
        "A camera that stands still; servers, whose prompts must have their length before the encoder runs."
    )
    limits: ClassVar = "Any movement of the camera looks like change; what changes a little in every frame comes last."

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        x = by_frame(tokens)
        g, t, n, _ = x.shape
        if self.strict_paper:
            k = retained_count(n, t, 1.0 - self.keep) if isinstance(self.keep, float) else max(n, k)
        change = frame_change(x, range(1, t), range(t - 1))
        scores = torch.cat([torch.full_like(x[:, 0, :, 0], 255.0, dtype=torch.float32), change.flatten(1)], 1)
        if k < n:
            first = points_on_grid((1, *tokens.grid[1:]), k)
            return Selection(indices=torch.tensor(first, device=x.device).expand(g, k), scores=scores)
        return Selection.subset(top_k(scores, k), scores=scores)
