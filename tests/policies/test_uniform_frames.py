"""The baseline of videos: which frames, and what of the last one."""

import pytest
import torch

from tokenprune import UniformFrames, VisualTokens

TOKENS = VisualTokens(features=torch.zeros(2, 40, 3), grid=(5, 2, 4))


@pytest.mark.parametrize(
    ("k", "frames", "rest"),
    [(8, [2], 8), (16, [1, 3], 8), (20, [0, 2, 4], 4), (7, [2], 7), (39, [0, 1, 2, 3, 4], 7)],
)
def test_whole_frames_evenly_spread_and_part_of_the_last(k, frames, rest):
    chosen = UniformFrames().select(TOKENS, k).indices
    assert chosen.shape == (2, k)
    assert (chosen[0] // 8).unique().tolist() == frames
    assert (chosen[0] // 8).bincount()[frames].tolist() == [8] * (len(frames) - 1) + [rest]


def test_the_last_frame_keeps_places_of_its_grid():
    assert UniformFrames().select(TOKENS, 12).indices[0, 8:].tolist() == [28, 29, 30, 31]
