import torch

from tokenprune.policies.fastvid_counts import exact_counts, segmented


def segments_of(lengths, n, like=1.0, ignore=None):
    """Segments of these lengths, frames of one like each other so much."""
    similarity = torch.full((sum(lengths) - 1,), like)
    for end in torch.tensor(lengths).cumsum(0)[:-1].tolist():
        similarity[end - 1] = 0.0
    return segmented(similarity, n, 1, 0.5, ignore)


def test_segments_and_the_frames_that_get_tokens():
    similarity = torch.tensor([0.9, 0.3, 0.7, 0.95, 0.2])
    counts = segmented(similarity, 4, 1, 0.5, 0.8)
    assert [list(one) for one in counts.segments] == [[0, 1], [2, 3, 4], [5]]
    assert counts.receivers == [[1], [2, 4], [5]]
    assert segmented(similarity, 4, 4, 0.1, None).receivers == [[0, 1], [2], [3, 4], [5]]
    assert segmented(torch.zeros(0), 4, 8, 0.9, None).segments == [range(1)]


def test_segments_share_by_length_and_frames_equally():
    counts = exact_counts(56, segments_of([5, 2, 1], 20), 0.4, 4)
    assert counts.salient == [5, 4, 4, 4, 4, 5, 4, 4]  # of 35, 14 and 7 tokens
    assert counts.anchors == [7, 0, 0, 0, 7, 0, 5, 3]  # 22, shared as 13.75, 5.5 and 2.75
    assert counts.total == 56
    counts = exact_counts(29, segments_of([5], 20), 0.4, 4)
    assert counts.salient == [4, 4, 4, 3, 3]  # the first ones one more
    assert counts.anchors == [5, 0, 0, 0, 6]  # the last one; 11.6 in all, rounded down


def test_what_does_not_divide():
    """13 tokens, int(5.2) anchors: 6.5, 5.2 and 1.3 by segment, of which 2.5, 2 and 0.5 are anchors."""
    counts = exact_counts(13, segments_of([5, 4, 1], 20), 0.4, 4)
    assert sum(counts.anchors) == 5
    assert counts.total == 13
    by_segment = [sum(counts.salient[f] + counts.anchors[f] for f in one) for one in counts.segments]
    assert by_segment == [7, 5, 1]
    for one in counts.segments:
        salient = [counts.salient[f] for f in one]
        assert salient == sorted(salient, reverse=True)
        assert salient[0] - salient[-1] <= 1
    assert [f for f in range(10) if counts.anchors[f]] in ([0, 4, 8], [0, 4, 8, 9])


def test_anchors_that_do_not_fit_stay_salient_in_other_frames():
    counts = exact_counts(30, segments_of([4], 10), 0.5, 4)
    assert counts.anchors == [0, 0, 0, 7]  # beside 3 of the 15 salient ones; 8 of 15 anchors are salient elsewhere
    assert counts.salient == [7, 7, 6, 3]
    assert counts.total == 30


def test_frames_that_get_none_are_filled_last():
    counts = exact_counts(13, segments_of([4], 5, like=0.9, ignore=0.6), 0.4, 4)
    assert counts.receivers == [[3]]
    assert counts.salient[3] + counts.anchors[3] == 5
    assert sum(counts.salient[:3]) == 8
    similarity = torch.tensor([0.9, 0.6, 0.9])
    counts = exact_counts(9, segmented(similarity, 5, 1, 0.5, 0.8), 0.4, 4)
    assert [a + b for a, b in zip(counts.salient, counts.anchors, strict=True)] == [0, 4, 0, 5]
