import pytest
import torch
from torch.nn import functional as F

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError, PolicyError
from tokenprune.ops import points_on_grid
from tokenprune.policies import DyCoke

N, D = 6, 5


def video(t, seed=0):
    x = torch.randn(1, t * N, D, generator=torch.Generator().manual_seed(seed))
    return visual_tokens(x, grid=(t, 2, 3))


def counted(selection, t):
    return torch.bincount(selection.indices[0] // N, minlength=t).tolist()


def least_like(tokens, frame, earlier, count):
    """Places in the video of the `count` tokens of a frame that are least like those of an earlier frame."""
    x = tokens.features[0].unflatten(0, (-1, N)).double()
    return [frame * N + i for i in F.cosine_similarity(x[frame], x[earlier], dim=-1).argsort()[:count].tolist()]


def test_the_first_of_four_frames_is_whole_and_the_others_share_the_rest():
    tokens = video(9)
    selection = DyCoke().select(tokens, 3 * N + 15)  # 6 frames share 15: the spare ones are spread
    counts = counted(selection, 9)
    assert counts == [6, 2, 3, 2, 6, 3, 2, 3, 6]
    order = selection.order[0].tolist()
    for frame, earlier in ((1, 0), (2, 0), (3, 2), (5, 4), (6, 4), (7, 6)):
        assert [i for i in order if i // N == frame] == least_like(tokens, frame, earlier, counts[frame])
    for frame in (0, 4, 8):
        assert [i for i in order if i // N == frame] == list(range(frame * N, frame * N + N))
    assert [i // N for i in order] == sorted(i // N for i in order)


@pytest.mark.parametrize(
    ("k", "whole"), [(23, [0, 4, 8]), (18, [0, 4, 8]), (17, [0, 5]), (12, [0, 5]), (11, [0]), (6, [0])]
)
def test_groups_grow_where_k_is_small(k, whole):
    counts = counted(DyCoke().select(video(10), k), 10)
    assert sum(counts) == k
    assert [f for f in range(10) if counts[f] == N] == whole
    others = [counts[f] for f in range(10) if f not in whole]
    assert max(others) - min(others) <= 1


def test_a_larger_group_compares_with_the_number_without_its_lowest_bit():
    tokens = video(8)
    selection = DyCoke(group=8).select(tokens, 5 * N)
    counts = counted(selection, 8)
    assert counts == [6, 3, 4, 3, 4, 3, 4, 3]
    for frame, earlier in ((1, 0), (2, 0), (3, 2), (4, 0), (5, 4), (6, 4), (7, 6)):
        kept = [i for i in selection.order[0].tolist() if i // N == frame]
        assert kept == least_like(tokens, frame, earlier, counts[frame])


def test_fewer_tokens_than_a_frame_are_spread_over_the_video():
    for k in range(1, N):
        assert DyCoke().select(video(5), k).indices[0].tolist() == points_on_grid((5, 2, 3), k)


def test_of_a_still_video_the_lowest_places_stay():
    tokens = visual_tokens(torch.ones(1, 4 * N, D), grid=(4, 2, 3))
    assert DyCoke().select(tokens, 15).indices[0].tolist() == [*range(6), *range(6, 9), *range(12, 15), *range(18, 21)]


@pytest.mark.parametrize(
    ("t", "counts"),
    [
        (5, [6, 3, 3, 3, 0]),
        (6, [6, 3, 3, 3, 6, 3]),
        (7, [6, 3, 3, 3, 6, 3, 0]),
        (8, [6, 3, 3, 3, 6, 3, 6, 3]),
        (9, [6, 3, 3, 3, 6, 3, 3, 3, 0]),
        (12, [6, 3, 3, 3, 6, 3, 3, 3, 6, 3, 6, 3]),
    ],
)
def test_strict_keeps_what_the_released_loops_keep(t, counts):
    """Pairs of frames; then frames 2, 6, ... up to the fifth from the end."""
    expected = DyCoke(merging_ratio=0.5, strict_paper=True).select(video(t), N)
    assert counted(expected, t) == counts
    assert torch.equal(DyCoke(keep=0.625, strict_paper=True).select(video(t), N).order, expected.order)


def test_strict_counts_are_cut_off_and_at_a_quarter_nothing_is_left_between_whole_frames():
    assert counted(DyCoke(merging_ratio=0.7, strict_paper=True).select(video(8), N), 8)[:4] == [6, 1, 1, 1]
    assert counted(DyCoke(keep=0.25, strict_paper=True).select(video(8), N), 8) == [6, 0, 0, 0, 6, 0, 6, 0]
    assert not DyCoke(strict_paper=True).exact


@pytest.mark.parametrize(("t", "keep"), [(4, 0.5), (8, 0.2), (8, 3)])
def test_strict_refuses_what_the_released_code_cannot_do(t, keep):
    policy = DyCoke(keep=keep, strict_paper=True)
    with pytest.raises(PolicyError, match="leave strict_paper out"):
        policy.select(video(t), policy.budget.count(t * N))


@pytest.mark.parametrize(
    "fields",
    [
        {"group": 1},
        {"group": 8, "strict_paper": True},
        {"merging_ratio": 0.5},
        {"merging_ratio": 1.5, "strict_paper": True},
        {"merging_ratio": 1, "strict_paper": True},
    ],
)
def test_fields_are_checked(fields):
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(fields))}="):
        DyCoke(**fields)
