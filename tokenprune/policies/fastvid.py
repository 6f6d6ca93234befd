"""FastVID."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, PolicyError
from ..ops import best_of_each, frame_change, sent, sizes_by_source
from ..registry import register
from ..tokens import Selection, VisualTokens
from .attention import AttentionPolicy
from .fastvid_counts import Counts, exact_counts, segmented
from .fastvid_merge import centre_scores, merged
from .fastvid_released import parallel_counts, sequential_counts
from .frame_features import FrameMean
from .over_time import count_of, share_of
from .video import VideoPolicy, by_frame, frame_size


@register("fastvid")
@dataclass(kw_only=True)
class FastVID(VideoPolicy, AttentionPolicy):
    """Segments of like frames; in each the most attended tokens stay, and the others are merged into anchors.

    H [T, N, D] tokens, a [T, N] attention in the tower, g [T, D_g] one vector a frame, t_f = cos(g_f, g_(f+1)).
    Segments: a cut behind f where t_f is among the c - 1 smallest, or below tau. A segment of P frames gets its part
    P / T of k, of which d are anchors; each frame keeps equally many tokens of the largest a as they are. Every p-th
    frame, from the last one back, has anchors, equally many: of its other tokens those with the largest rho delta, the
    score of density-peak clustering with 4 neighbours. For each frame with anchors, all tokens of the segment that are
    not salient go to its anchor of the largest cosine, and an anchor h with n > 0 of them becomes
    w h + (1 - w) their mean, w = max(1 / (n + 1), beta).

    A token counts once for every such frame: `Selection.source` names the most similar anchor of all, with its weight
    there. Survivors keep their positions.

    Attributes:
        c, tau: of the cuts; fewer than c frames are one segment each.
        d: share of anchors, int(k d) in all; what does not fit into their frames stays salient.
        p: frames that share one with anchors.
        beta: least weight of an anchor in itself.
        form: "parallel" as for LLaVA-OneVision: anchors are among the tokens that go to anchors, also to themselves.
            "sequential" as for LLaVA-Video and Qwen2.5-VL: only those of other frames are.
        ignore: with form="sequential", only frames with t_f < ignore, and the last of a segment, get tokens. None: all.
        attention: maps `VisualTokens` to a [G, T N].
        frames: maps `VisualTokens` to g [G, T, D_g]: `FrameMean()`, as for Qwen2.5-VL, `FrameClassToken()` or your own.
        strict_paper: as released, r = keep. "parallel": R = int(N r) tokens a frame, C = int(R d) and floor(C P / n_a)
            anchors in each of n_a frames; where that is C, only tokens of the frame itself go to them. "sequential":
            int(R P d) anchors in a segment; with `ignore` at most N / 2 a frame, and what does not fit is lost.

    Defaults: for LLaVA-OneVision. Qwen2.5-VL: form="sequential", tau=0.84, ignore=0.95, r = 0.27.

    Source: Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models", NeurIPS 2025,
    arXiv 2503.11187.

    Differs from the paper: there g and a are those of SigLIP's pooling head, which these models leave out in
    transformers, and for Qwen a is attention from the mean query of a frame; here g is a mean and a the attention
    inside the tower. Differs from the released code: exactly k (the code floors) unless `strict_paper`, no noise in the
    densities, any number of frames.
    """

    parts: ClassVar = ("attention", "frames")
    c: int = 8
    tau: float = 0.9
    d: float = 0.4
    p: int = 4
    beta: float = 0.6
    form: Literal["parallel", "sequential"] = "parallel"
    ignore: float | None = None
    frames: Callable[[VisualTokens], Tensor] = field(default_factory=FrameMean)
    cost: ClassVar = "(N + P q) N D for each frame with q anchors; 2 V D floats, 32 MiB of distances"
    when: ClassVar = "Long quiet scenes at strong pruning: a segment's background is merged into few anchors."
    limits: ClassVar = "Blind to the question. Reads the tower's attention; a moving camera makes many short segments."

    def __post_init__(self):
        super().__post_init__()
        for name in ("c", "p"):
            count_of(name, getattr(self, name))
        for name, least in (("tau", -1.0), ("d", 0.0), ("beta", 0.0), ("ignore", -1.0)):
            if (name, value := getattr(self, name)) != ("ignore", None):
                share_of(name, value, least=least)
        if self.form not in ("parallel", "sequential") or (self.ignore is not None and self.form == "parallel"):
            raise InvalidArgumentError(
                f"form={self.form!r} is not 'parallel' or 'sequential', the latter with ignore: give one of them."
            )

    def select(self, tokens: VisualTokens, k: int, noise: Tensor | None = None) -> Selection:
        """With noise [G, T, M] in [0, 1) for the density of the M tokens of each frame that are not salient."""
        x, a = by_frame(tokens), by_frame(tokens, self.attention(tokens).float())
        counts = [self._counts(tokens, k, similarity) for similarity in self.similarity(tokens)]
        salient = best_of_each(a, sent([one.salient for one in counts], a.device))
        scores = centre_scores(x, salient, counts, noise)
        anchors = best_of_each(scores, sent([one.anchors for one in counts], a.device))
        units = zip(x, salient, anchors, counts, strict=True)
        parts = [merged(*unit, self.beta, themselves=self.form == "parallel") for unit in units]
        names = ("indices", "features", "source", "weights")
        found = {name: torch.stack(part) for name, part in zip(names, zip(*parts, strict=True), strict=True)}
        sizes = sizes_by_source(found["source"], found["indices"].shape[1])
        return Selection(**found, sizes=sizes, scores=a.flatten(1))

    def similarity(self, tokens: VisualTokens) -> Tensor:
        """[G, T - 1] on the CPU: t, of each frame with the next."""
        g = self.frames(tokens)[:, :, None]
        t = g.shape[1]
        return 1.0 - frame_change(g, range(t - 1), range(1, t))[..., 0].cpu()

    def _counts(self, tokens: VisualTokens, k: int, similarity: Tensor) -> Counts:
        counts = segmented(similarity, frame_size(tokens.grid), self.c, self.tau, self.ignore)
        if not self.strict_paper:
            return exact_counts(k, counts, self.d, self.p)
        if (t := len(counts.salient)) < self.c:
            raise PolicyError(f"fastvid with strict_paper cannot cut {t} frames into c={self.c} segments: lower c.")
        ratio = self.ratio(tokens, k)
        if self.form == "parallel":
            return parallel_counts(ratio, counts, self.d, self.p)
        return sequential_counts(ratio, counts, self.d, self.p, ignoring=self.ignore is not None)
