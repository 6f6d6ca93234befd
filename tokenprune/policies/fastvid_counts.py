"""How FastVID shares tokens out over segments and frames: small numbers, on the host."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from ..ops import even_shares, similarity_cuts


@dataclass
class Counts:
    """Of one video of frames with n tokens.

    Attributes:
        segments: its frames.
        receivers: the frames of each segment that get tokens.
        salient, anchors: tokens of every frame that stay as they are, and that others are merged into.
        alone: frames whose anchors take tokens of the same frame only.
    """

    n: int
    segments: list[range]
    receivers: list[list[int]]
    salient: list[int]
    anchors: list[int]
    alone: set[int]

    @property
    def total(self) -> int:
        return sum(self.salient) + sum(self.anchors)


def segmented(similarity: Tensor, n: int, c: int, tau: float, ignore: float | None) -> Counts:
    """A video whose frames have these similarities [T - 1] with the next, and no tokens yet.

    Args:
        ignore: frames with at least this similarity get none, but for the last of a segment; None lets all have some.
    """
    t, like = len(similarity) + 1, similarity.tolist()
    cuts = similarity_cuts(similarity[None], c, tau)[0].nonzero()[:, 0].tolist()
    segments = [range(*ends) for ends in pairwise([0, *(f + 1 for f in cuts), t])]
    receivers = [[f for f in one if ignore is None or f == one[-1] or like[f] < ignore] for one in segments]
    return Counts(n, segments, receivers, salient=[0] * t, anchors=[0] * t, alone=set())


def exact_counts(k: int, counts: Counts, d: float, p: int) -> Counts:
    """k tokens: segments share them by length, and int(k d) anchors by their tokens; frames of a segment share equally.

    Every p-th receiver from the last one back has anchors. What does not fit there stays salient, in other receivers
    and then in any frame of the segment.
    """
    tokens = even_shares(k, [len(segment) * counts.n for segment in counts.segments])
    anchors = even_shares(int(k * d), tokens)
    for segment, frames, total, c in zip(counts.segments, counts.receivers, tokens, anchors, strict=True):
        over = _fill(counts, counts.salient, frames, total - c)
        over += _fill(counts, counts.anchors, frames[::-p], c)
        _fill(counts, counts.salient, segment, _fill(counts, counts.salient, frames, over))
    return counts


def _fill(counts: Counts, of: list[int], frames: list[int] | range, total: int) -> int:
    """Give frames equal numbers of tokens, earlier ones one more, as far as they have room; what is left over."""
    while total and (open_frames := [f for f in frames if counts.salient[f] + counts.anchors[f] < counts.n]):
        each, more = divmod(total, len(open_frames))
        for i, f in enumerate(open_frames):
            given = min(each + (i < more), counts.n - counts.salient[f] - counts.anchors[f])
            of[f] += given
            total -= given
    return total
