"""VidCom2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InvalidArgumentError
from ..ops import best_of_each, quotas, top_k, true_places, unit_norm
from ..registry import register
from ..tokens import Selection, VisualTokens
from .video import VideoPolicy, by_frame

BANDWIDTHS = (1 / 8, 1 / 4, 1 / 2, 1, 2)


@register("vidcom2")
@dataclass(kw_only=True)
class VidCom2(VideoPolicy):
    """Frames unlike the video get more tokens, and in each those stay that are least like the video and the frame.

    X [T, N, D] tokens; of their channels the half with the lowest variance over all T N, then unit length: x. c_v is
    the mean of all x, c_t that of frame t, kappa(x, c) = sum over a in {1/8, 1/4, 1/2, 1, 2} of
    exp(-|x - c|^2 / (2 a)), v_ti = kappa(x_ti, c_v), f_ti = kappa(x_ti, c_t). Frame t has u_t = -mean_i v_ti,
    p = softmax(u / temperature) and gets tokens in proportion to 1 + p_t - mean(p), of which it keeps those with the
    lowest v + f. A frame gets no more than N; what rounding down leaves goes one each to the frames of the largest
    share.

    Attributes:
        temperature: of the softmax over frames; 0.01 gives nearly all of p to one frame, which then gets up to twice
            the tokens of another.
        channel_ratio: share of the channels that are compared.
        strict_paper: as released: n_t = max(1, round(N min(1, rho (1 + p_t - mean(p))))), rho = keep, about rho T N in
            all, and never less than one of each frame.

    Source: Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language
    Models", EMNLP 2025, arXiv 2505.14454, whose default is rho = 0.25.

    Differs from the released code: exactly k unless `strict_paper`. Survivors keep their positions as there on Qwen-VL;
    on LLaVA-OneVision the code renumbers them: say `wrap(..., positions="compact")`. On LLaVA-Video it keeps all
    newline tokens of a frame, behind its tokens; here they stay where they are, or leave with the last token of their
    line by `wrap(..., drop_empty_rows=True)`. That the channels are those of low variance is what the code does, and is
    said nowhere.
    """

    temperature: float = 0.01
    channel_ratio: float = 0.5
    cost: ClassVar = "2 V D operations and a sort of each frame; 2 V D floats"
    when: ClassVar = "One short event in a long quiet video: the frame that shows it gets more tokens."
    limits: ClassVar = "A token is compared with means alone: repeats of a rare thing are all kept."

    def __post_init__(self):
        super().__post_init__()
        for name, most in (("temperature", float("inf")), ("channel_ratio", 1.0)):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0.0 < value <= most or value == float("inf"):
                raise InvalidArgumentError(f"{name}={value!r} is not in (0, {most}]: give such a number.")

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        video, frame = self.likeness(by_frame(tokens))
        (_, t, n), weights = video.shape, self.shares(video)
        if self.strict_paper:
            counts = ((self.ratio(tokens, k) * weights).clamp(max=1.0) * n).round().long().clamp_min(1)
            k = int(counts.sum())
        else:
            counts = quotas(k, torch.full((t,), n), weights)
        scores = -(video + frame)
        kept = best_of_each(scores, counts)
        return Selection(indices=true_places(kept.flatten(1), k), scores=scores.flatten(1))

    def likeness(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[G, T, N] float32 each: v and f of tokens [G, T, N, D]."""
        _, t, n, d = x.shape
        x = x.flatten(1, 2).float()
        channels = top_k(-x.var(1, unbiased=False), max(1, int(d * self.channel_ratio))).sort(-1).values
        x = unit_norm(x.gather(2, channels[:, None].expand(-1, t * n, -1))).unflatten(1, (t, n))
        of_frames = x.mean(2, keepdim=True)
        return _kernel(x, of_frames.mean(1, keepdim=True)), _kernel(x, of_frames)

    def shares(self, video: Tensor) -> Tensor:
        """[G, T] float32: what a frame gets, on average 1, by v."""
        unlike = -video.mean(-1)
        p = ((unlike - unlike.amax(-1, keepdim=True)) / self.temperature).softmax(-1)
        return 1.0 + p - p.mean(-1, keepdim=True)


def _kernel(x: Tensor, centre: Tensor) -> Tensor:
    distance = (x - centre).square().sum(-1)
    return sum(torch.exp(-distance / (2 * a)) for a in BANDWIDTHS)
