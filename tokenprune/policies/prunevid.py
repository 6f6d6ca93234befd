"""PruneVid, in front of the language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..ops import (
    density_peaks,
    even_shares,
    join_segments,
    loosen,
    mean_similarity,
    merge_static,
    refine_labels,
    tokens_by_segment,
)
from ..registry import register
from ..tokens import Selection, VisualTokens
from .over_time import Noise, TemporalMerging, carried, merged, share_of, silent
from .video import by_frame

WHOLE = 14  # tokens of a group that the paper's count leaves as they are


@register("prunevid")
@dataclass(kw_only=True)
class PruneVid(TemporalMerging):
    """Merges over time what stays the same between cuts, then clusters what is left in each frame. Reads no text.

    X [T, N, D]. Segments: the mean tokens of the frames [T, D] in max(1, int(gamma T)) density-peak clusters
    (`ops.density_peaks`), whose runs over time are made contiguous (`ops.refine_labels`). A position of a segment of W
    frames is static if the mean cosine of its tokens in any two of them is above tau; it becomes their mean. The static
    tokens of a segment are a group, and the others of each frame; a group of n > 14 is clustered to int(beta n) means.

    Exactly k tokens: groups have clusters between one and these counts, or between these and all of their tokens, in
    proportion. If time leaves fewer than k, the least similar positions are not static after all; if there are more
    groups than k, all positions are static, and where there are even more segments, neighbours join.

    Attributes:
        tau: as above.
        gamma: clusters of frames per frame.
        beta: clusters per token.
        neighbours: of a token, that its density is taken from, itself included.
        at: frame of its segment in which a static token stands, spatially at the centre of its cluster.
        strict_paper: the counts above, whatever number the budget names.

    Source: Huang et al., "PruneVid: Visual Token Pruning for Efficient Video Large Language Models", Findings of ACL
    2025, arXiv 2412.16117. Its other half is `prunevid-inside`.

    Differs from the released code: raster order (the code's, static tokens of a segment first, best cluster first, is
    `Selection.order`); fewer than seven frames or tokens have as many neighbours; a video of one frame has no static
    position; no noise in the density. The paper says similarity of tau is enough, the code and this want more.
    """

    cost: ClassVar = "T N D for cosines, sum of n^2 D over groups; 3 T N D floats, three 16 MiB blocks of distances"
    when: ClassVar = "Footage with shots that stand still, any question; few frames per shot keep what moves."
    limits: ClassVar = "A moving camera leaves nothing static. New positions hide time: try positions='original'."

    gamma: float = 0.25
    beta: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        share_of("gamma", self.gamma)
        share_of("beta", self.beta)

    def select(self, tokens: VisualTokens, k: int) -> Selection:
        x = by_frame(tokens)
        return merged(tokens, [self._merge(one, lengths, k) for one, lengths in zip(x, self._cut(x), strict=True)])

    def _cut(self, x: Tensor, noise: Tensor | None = None) -> list[list[int]]:
        """Frames of every segment of [G, T, N, D]."""
        clusters, frames = max(1, int(x.shape[1] * self.gamma)), x.mean(2, dtype=torch.float32)
        _, labels = density_peaks(frames, clusters, neighbours=self.neighbours, noise=noise)
        return [[n for _, n in refine_labels(row)] for row in labels.tolist()]

    def _merge(self, x: Tensor, lengths: list[int], k: int, noise: Noise = silent) -> Selection:
        """One unit [T, N, D]."""
        strict, similarity = self.strict_paper, mean_similarity(x, lengths)
        static = similarity > self.tau
        if not strict:
            lengths, static = _fitting(static, similarity, lengths, k)
        y, home = merge_static(x, static, lengths, self.at)
        groups = tokens_by_segment(static, lengths, self.at)
        if not strict and len(groups) > k:
            groups = tokens_by_segment(static, lengths, self.at, by_frame=False)
        sizes = [len(places) for places, _ in groups]
        published = [n if n <= WHOLE else max(1, int(n * self.beta)) for n in sizes]
        shares = published if strict else _shares(k, published, sizes)
        parts = []
        for (places, _), n, c in zip(groups, sizes, shares, strict=True):
            centres = cluster = torch.arange(n, device=places.device)
            if n > WHOLE if strict else n > c:
                found = density_peaks(y[places][None], c, neighbours=self.neighbours, noise=noise(n))
                centres, cluster = (one[0] for one in found)
            parts.append((places, centres, cluster))
        return carried(parts, home)


def _fitting(static: Tensor, similarity: Tensor, lengths: list[int], k: int) -> tuple[list[int], Tensor]:
    """Segments and static positions that neither leave fewer than k tokens nor more groups than k."""
    counts, n = static.sum(1).tolist(), static.shape[1]
    if sum((s > 0) + w * (s < n) for s, w in zip(counts, lengths, strict=True)) > k:
        static = torch.ones_like(static)
        if len(lengths) > k:
            return join_segments(lengths, k), static[:k]
    return lengths, loosen(static, similarity, lengths, k)


def _shares(k: int, published: list[int], sizes: list[int]) -> list[int]:
    """Clusters of each group, k in all, 1 <= len(sizes) <= k <= sum(sizes)."""
    least = [1] * len(sizes) if k <= sum(published) else published
    most = published if k <= sum(published) else sizes
    rest = even_shares(k - sum(least), [b - a for a, b in zip(least, most, strict=True)])
    return [a + more for a, more in zip(least, rest, strict=True)]
