import pytest
import torch

from tokenprune.ops import media_mrope, mrope_delta, retained_count, sequence_positions


@pytest.mark.parametrize(
    ("n", "t", "q", "count"),
    [(10, 1, 0.9, 10), (10, 10, 0.0, 100), (10, 10, 0.5, 50), (1, 10, 0.9, 1), (1, 30, 0.9, 2), (10, 10, 0.99, 10)],
)
def test_the_first_frame_is_the_least_that_stays(n, t, q, count):
    """30 tokens at q = 0.9 would be 3, and are 2 in doubles: 30 * (1 - 0.9) = 2.9999999999999996."""
    assert retained_count(n, t, q) == count


def test_every_token_has_time_row_column_and_the_width_of_its_grid():
    rows = media_mrope(3, 2, 2, tokens_per_second=2, second_per_grid=0.75)
    assert rows.dtype == torch.long
    assert rows[:, 0].tolist() == [0] * 4 + [1] * 4 + [3] * 4
    assert rows[:5, 1:].tolist() == [[0, 0, 2], [0, 1, 2], [1, 0, 2], [1, 1, 2], [0, 0, 2]]


def test_time_is_rounded_as_float32_does():
    """0.1 * 41 is 4.1 in either; 4.35 * 100 is 434.99... in doubles and 435 in float32."""
    assert media_mrope(101, 1, 1, tokens_per_second=4.35)[100, 0] == 435


def test_text_goes_on_behind_the_width_of_a_video():
    media = media_mrope(9, 2, 3)
    kept = media[[0, 4, 53]]
    positions = sequence_positions(8, [2], [kept])
    assert positions.tolist() == [[0, 1, 2, 2, 10, 5, 6, 7], [0, 1, 2, 3, 3, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert mrope_delta(positions) == 3  # 10 + 1 - 8: a token of the video is the last in time


def test_several_videos_and_none():
    one, other = media_mrope(1, 1, 2), media_mrope(2, 1, 1)
    positions = sequence_positions(8, [1, 3, 6], [one, other, one])
    assert positions[0].tolist() == [0, 1, 1, 3, 4, 4, 5, 5]
    assert positions[2].tolist() == [0, 1, 2, 3, 3, 4, 5, 6]
    text = sequence_positions(4, [], [])
    assert text.tolist() == [[0, 1, 2, 3]] * 3
    assert mrope_delta(text) == 0
