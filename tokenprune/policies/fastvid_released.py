"""How many tokens the released code of FastVID gives to frames. It rounds down, and has no rule for short videos."""

from __future__ import annotations

from ..errors import PolicyError
from .fastvid_counts import Counts


def parallel_counts(ratio: float, counts: Counts, d: float, p: int) -> Counts:
    """As for LLaVA-OneVision: int(N ratio) tokens a frame, int(d of them) anchors, floored once more."""
    frame = int(counts.n * ratio)
    c = int(frame * d)
    counts.salient = [frame - c] * len(counts.salient)
    for segment in counts.segments:
        frames = segment[::-p]
        each = c if len(segment) == 1 else c * len(segment) // len(frames)
        for f in frames:
            counts.anchors[f] = each
        if each == c:
            counts.alone.update(frames)
    return _defined(counts, ratio)


def sequential_counts(ratio: float, counts: Counts, d: float, p: int, *, ignoring: bool) -> Counts:
    """As for LLaVA-Video and, ignoring frames like the next one, for Qwen2.5-VL, where what does not fit is lost."""
    n, frame = counts.n, int(counts.n * ratio)
    for segment, frames in zip(counts.segments, counts.receivers, strict=True):
        c = max(int(frame * len(segment) * d), int(ignoring))
        capped = ignoring and len(segment) > 1
        for f, count in _even(frames[::-p], c):
            counts.anchors[f] = min(count, n // 2) if capped else count
        for f, count in _even(frames, frame * len(segment) - c):
            counts.salient[f] = min(count, n - counts.anchors[f]) if capped else count
    return _defined(counts, ratio)


def _even(frames: list[int], total: int) -> list[tuple[int, int]]:
    each, more = divmod(total, len(frames))
    return [(f, each + (i < more)) for i, f in enumerate(frames)]


def _defined(counts: Counts, ratio: float) -> Counts:
    """Raises where the code does: a segment without anchors, or too few tokens of a frame to choose its anchors of."""
    missing = any(not any(counts.anchors[f] for f in segment) for segment in counts.segments)
    full = any(q and (s < 0 or counts.n - s < max(4, q)) for s, q in zip(counts.salient, counts.anchors, strict=True))
    if missing or full:
        why = "a segment gets no anchor" if missing else "a frame has too few tokens left for its anchors"
        raise PolicyError(
            f"fastvid with strict_paper has no rule for keep={ratio:.3g} of frames of {counts.n} tokens: {why}; "
            "leave strict_paper out, or change keep or d."
        )
    return counts
