from itertools import groupby, pairwise, product

import pytest
import torch

from tokenprune.ops import best_share, best_windows, even_shares, join_segments, refine_labels


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("labels", "segments"),
    [
        ("a", [("0", 1)]),  # no run of two anywhere
        ("ab", [("0", 2)]),
        ("aabb", [("a", 2), ("b", 2)]),
        ("aabaa", [("a", 5)]),  # both runs of a are its longest
        ("aaabaa", [("a", 6)]),  # the gap of three takes the label on its left
        ("abbbcc", [("b", 4), ("c", 2)]),
        ("bbcaaa", [("b", 2), ("a", 4)]),  # the longer neighbour
        ("bbcaa", [("b", 3), ("a", 2)]),  # the left one of equals
        ("bbcdaaaca", [("b", 2), ("a", 7)]),
        ("aaabacccbccc", [("a", 5), ("c", 7)]),  # left of the second gap the run is three long again
        ("aabcaaa", [("a", 7)]),
    ],
)
def test_labels_become_segments(labels, segments):
    found = refine_labels([{"0": 0}.get(label, ord(label)) for label in labels])
    assert [(chr(label) if label else "0", n) for label, n in found] == segments


def test_segments_cover_all_frames_and_neighbours_differ():
    for labels in product(range(3), repeat=7):
        segments = refine_labels(list(labels))
        assert sum(n for _, n in segments) == 7
        assert all(n >= 2 for _, n in segments)
        assert all(a != b for (a, _), (b, _) in pairwise(segments))
        runs = [len(list(run)) for _, run in groupby(labels)]
        if min(runs) >= 2 and len(runs) == len(set(labels)):
            assert [n for _, n in segments] == runs


def gain(static, start, end):
    """Tokens that frames start to end save as one window."""
    return int(static[start:end].all(0).sum()) * (end - start) if end > start else 0


def partitions(frames, longest):
    if frames == 0:
        yield []
    for last in range(1, min(frames, longest) + 1):
        yield from ([*rest, last] for rest in partitions(frames - last, longest))


def windows_of(lengths):
    end = 0
    for n in lengths:
        yield end, end + n - 1
        end += n


@pytest.mark.parametrize("longest", [1, 2, 3, 1024])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_windows_save_most_of_all_cuts(longest, share):
    for frames, seed in product((1, 2, 5, 7), range(3)):
        static = torch.rand(frames - 1, 5, generator=torch.Generator().manual_seed(seed)) < share
        lengths, saved = best_windows(static, longest)
        assert sum(lengths) == frames
        assert max(lengths) <= longest
        cuts = [sum(gain(static, *window) for window in windows_of(cut)) for cut in partitions(frames, longest)]
        assert saved == max(cuts) == sum(gain(static, *window) for window in windows_of(lengths))


def test_windows_that_save_the_same_are_the_shortest_at_the_end():
    assert best_windows(torch.zeros(3, 2, dtype=torch.bool), 9) == ([1, 1, 1, 1], 0)
    assert best_windows(torch.tensor([[True], [False], [True]]), 9) == ([2, 2], 2)
    static = torch.tensor([[True, False], [False, True]])  # either pair saves one
    assert best_windows(static, 9) == ([2, 1], 1)


def test_segments_join():
    assert join_segments([1, 2, 3, 4], 4) == [1, 2, 3, 4]
    assert join_segments([1, 2, 3, 4], 2) == [3, 7]
    assert join_segments([1, 2, 3, 4], 3) == [1, 2, 7]
    assert join_segments([1, 2, 3, 4], 1) == [10]


def test_shares_are_even_along_the_sequence():
    assert even_shares(3, [10] * 6) == [1, 0, 1, 0, 1, 0]
    assert even_shares(0, [0, 0]) == [0, 0]
    assert even_shares(7, [0, 7, 0]) == [0, 7, 0]
    draws = torch.Generator().manual_seed(0)
    for _ in range(50):
        sizes = torch.randint(0, 9, (6,), generator=draws).tolist()
        for k in range(sum(sizes) + 1):
            shares = even_shares(k, sizes)
            assert sum(shares) == k
            exact = [k * size / max(1, sum(sizes)) for size in sizes]
            for share, size, fair in zip(shares, sizes, exact, strict=True):
                assert 0 <= share <= size
                assert abs(share - fair) < 1 + 1e-9


def test_the_best_share_of_every_group():
    scores, group = randn(30).round(decimals=1), torch.arange(30) * 7 % 30 % 4
    for share in (0.0, 0.1, 0.4, 0.99, 1.0):
        expected = []
        for one in range(4):
            members = [i for i in range(30) if group[i] == one]
            members.sort(key=lambda i: (-float(scores[i]), i))
            expected += members[: int(len(members) * share)]
        assert best_share(scores, group, share).tolist() == sorted(expected)
