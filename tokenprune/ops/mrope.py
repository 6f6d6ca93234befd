"""Positions (time, row, column) in a prompt that holds pruned videos, as vLLM numbers them for EVS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def retained_count(tokens_per_frame: int, frames: int, q: float) -> int:
    """max(N, int(T N (1 - q))): tokens that pruning at rate q in [0, 1) leaves, never fewer than one frame has.

    It depends on nothing else, so placeholders can be laid out before the encoder has run. The product is cut off as
    doubles make it: 10 tokens at q = 0.9 give 0, not 1.
    """
    return max(tokens_per_frame, int(tokens_per_frame * frames * (1.0 - q)))


def media_mrope(
    frames: int, rows: int, columns: int, *, tokens_per_second: float = 1.0, second_per_grid: float = 1.0
) -> Tensor:
    """[T h w, 4] long: (t, y, x, w) of every token of a video, t = int(frame * tokens_per_second * second_per_grid).

    The product is one of float32, as there: where it is meant to be whole, double precision may cut it off elsewhere.

    Args:
        frames, rows, columns: T, h, w of the tokens, behind the patch merger.
        tokens_per_second: of the model's configuration.
        second_per_grid: seconds from one of the T to the next.
    """
    time = (torch.arange(frames, dtype=torch.float32) * (tokens_per_second * second_per_grid)).long()
    axes = torch.meshgrid(time, torch.arange(rows), torch.arange(columns), torch.tensor([columns]), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes], -1)


def sequence_positions(length: int, starts: Sequence[int], media: Sequence[Tensor]) -> Tensor:
    """[3, L] long: positions of a prompt of text and of videos that have lost tokens.

    Text counts up. With base one more than the position before a video, a token of it stands at base + (t, y, x) as
    before it was pruned, and the text behind begins at base + w: the longest axis is not asked, so in a long video this
    is less than the time of its last tokens.

    Args:
        length: L, of the prompt without the tokens that are gone.
        starts: where the tokens of each video begin in it, ascending.
        media: for each video the rows of `media_mrope` that are left, [K, 4].
    """
    positions = torch.zeros(3, length, dtype=torch.long)
    done, base = 0, 0
    for start, tokens in zip(starts, media, strict=True):
        positions[:, done:start] = torch.arange(base, base + start - done)
        base, done = base + start - done, start + len(tokens)
        positions[:, start:done] = base + tokens[:, :3].T
        base += int(tokens[0, 3])
    positions[:, done:] = torch.arange(base, base + length - done)
    return positions


def mrope_delta(positions: Tensor) -> int:
    """What is added to a token's place in the sequence while it is continued: largest position + 1 - L."""
    return int(positions.max()) + 1 - positions.shape[1]
