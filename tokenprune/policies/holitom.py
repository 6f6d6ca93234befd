"""HoliTom, in front of the language model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import PolicyError
from ..ops import (
    best_windows,
    centre_weights,
    density_scores,
    even_shares,
    frame_change,
    loosen,
    merge_static,
    nearest_centre,
    tokens_by_segment,
    top_k,
    weakest_step,
)
from ..registry import register
from ..tokens import Selection, VisualTokens
from .over_time import Noise, TemporalMerging, carried, count_of, merged, share_of, silent
from .quality import VisionAttention
from .video import by_frame


@register("holitom")
@dataclass(kw_only=True)
class HoliTom(TemporalMerging):
    """Windows of frames cut so that merging over time saves most; then attention chooses, and what stands still merges.

    X [T, N, D]; z_fi = cosine of token i of frames f and f + 1. Position i is static in a window if z > tau in all its
    steps, and becomes its mean there. The frames are cut into the windows that save most tokens (`ops.best_windows`).
    The static tokens of a window and the others of each frame get shares of k in proportion to their number. Of the
    others those stay that the tower attends to most. Of the static ones the density-peak centres stay
    (`ops.density_scores`; a single one is that nearest to their mean); the rest join the nearest centre by distance,
    which becomes beta c + (1 - beta) mean(joined). If time leaves fewer than k, the positions of the smallest z in
    their window are not static after all.

    Attributes:
        tau: as above; 0.8 is released for 25, 20 and 15 %, 0.65 for 10 %.
        beta: as above; None is the plain mean of a centre and what joined it.
        neighbours: of a token, that its density is taken from, itself included; as many as centres, if those are fewer.
        max_window: most frames of a window.
        at: frame of its window in which a static token stands, spatially at its centre.
        attention: maps `VisualTokens` to a [G, T N].
        strict_paper: rho = `keep` over the share that time leaves, at most 1; round(rho S) of the S static tokens of a
            window stay, ceil(rho Q) of the Q others of each frame.

    Source: Shao et al., "HoliTom: Holistic Token Merging for Fast Video Large Language Models", NeurIPS 2025, arXiv
    2505.21334. Its other half is `holitom-inner`.

    Differs from the released code: exactly k tokens, shares rounded evenly along the video, unless `strict_paper`;
    raster order (`Selection.order`: static tokens of a window first); a single centre is defined; no noise in the
    density; no D_ratio, merging among the other tokens: the code fails with any but 0.
    """

    parts: ClassVar = ("attention",)
    cost: ClassVar = "T N D for cosines, T^2 steps on the CPU, S^2 D per window; 3 T N D floats, three 16 MiB blocks"
    when: ClassVar = "Long shots with little motion, on towers whose attention shows what matters; any question."
    limits: ClassVar = "Attention alone chooses what moves. New positions hide time: try positions='original'."

    beta: float | None = 0.6
    max_window: int = 1024
    attention: Callable[[VisualTokens], Tensor] = field(default_factory=lambda: VisionAttention(queries="all"))

    def __post_init__(self):
        super().__post_init__()
        share_of("beta", 0.0 if self.beta is None else self.beta)
        count_of("max_window", self.max_window)

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        x, a = by_frame(tokens), self.attention(tokens).float()
        counts = [self.ratio(tokens, k) if self.strict_paper else k] * len(x)
        return merged(tokens, [self._merge(*unit) for unit in zip(x, a, counts, strict=True)])

    def _merge(self, x: Tensor, a: Tensor, k: int | float, noise: Noise = silent) -> Selection:
        """One unit [T, N, D] with attention [T N]; k a ratio if strict."""
        t, n = x.shape[:2]
        z = 1.0 - frame_change(x[None], range(t - 1), range(1, t))[0]
        lengths, saved = best_windows(z > self.tau, self.max_window)
        weakest = weakest_step(z, lengths)
        static = weakest > self.tau if self.strict_paper else loosen(weakest > self.tau, weakest, lengths, k)
        y, home = merge_static(x, static, lengths, self.at)
        groups = tokens_by_segment(static, lengths, self.at)
        parts, weights = [], torch.ones_like(a)
        for (places, still), c in zip(groups, self._shares(k, groups, t * n, saved), strict=True):
            if still and c > 0:
                kept = self._centres(y[places], c, noise(len(places)))[None]
                cluster = nearest_centre(y[None, places], kept)
                weights[places] = centre_weights(cluster, kept, self.beta)[0]
            else:
                kept = top_k(a[None, places], c).sort().values
                cluster = torch.full_like(places, -1)[None].scatter(1, kept, torch.arange(c, device=a.device)[None])
            parts.append((places, kept[0], cluster[0]))
        return carried(parts, home, weights)

    def _shares(self, k: int | float, groups: list[tuple[Tensor, bool]], total: int, saved: int) -> list[int]:
        """Tokens of each group."""
        if not self.strict_paper:
            return even_shares(k, [len(places) for places, _ in groups])
        rho = min(k / ((total - saved) / total), 1.0)
        shares = [round(len(places) * rho) if still else math.ceil(len(places) * rho) for places, still in groups]
        if not any(shares):
            raise PolicyError(f"keep={k!r} leaves none of {total} tokens with strict_paper: give a larger one.")
        return shares

    def _centres(self, y: Tensor, c: int, noise: Tensor | None) -> Tensor:
        """[c] long, ascending, of [S, D]."""
        if c == 1:
            return (y - y.mean(0)).square().sum(-1).argmin()[None]
        return top_k(density_scores(y[None], min(self.neighbours, c), noise), c)[0].sort().values
