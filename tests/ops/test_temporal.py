import pytest
import torch

from tokenprune.ops import loosen, mean_similarity, merge_static, tokens_by_segment, weakest_step

LENGTHS = [3, 1, 2]
STATIC = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0)) if a.any() and b.any() else 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mean_similarity_is_over_all_pairs_of_frames(dtype):
    x = randn(6, 4, 5).to(dtype)
    x[1, 2] = x[4, 3] = x[5, 3] = 0
    found = mean_similarity(x, LENGTHS)
    assert (found[1] == -torch.inf).all()
    for row, frames in ((0, (0, 1, 2)), (2, (4, 5))):
        for i in range(4):
            pairs = [cosine(x[a, i], x[b, i]) for a in frames for b in frames if a != b]
            assert float(found[row, i]) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_frames_that_do_not_change_have_a_similarity_of_exactly_one():
    assert (mean_similarity(randn(1, 50, 64).expand(7, 50, 64), [7]) == 1.0).all()


def test_the_weakest_step_is_inside_of_the_segment():
    steps = randn(5, 4)
    found = weakest_step(steps, LENGTHS)
    assert torch.equal(found[0], steps[:2].amin(0))
    assert (found[1] == -torch.inf).all()
    assert torch.equal(found[2], steps[4])
    assert weakest_step(steps[:0], [1]).tolist() == [[-torch.inf] * 4]


def tokens_left(static):
    return sum(1 if still else w for row, w in zip(static.tolist(), LENGTHS, strict=True) for still in row)


@pytest.mark.parametrize("ties", [False, True])
def test_the_least_similar_positions_move_first_and_no_more_than_needed(ties):
    similarity = torch.zeros(3, 4) if ties else randn(3, 4)
    order = sorted(STATIC.nonzero().tolist(), key=lambda at: (float(similarity[tuple(at)]), at))
    for k in range(1, 25):
        expected = STATIC.clone()
        for at in order:
            if tokens_left(expected) < k:
                expected[tuple(at)] = False
        assert torch.equal(loosen(STATIC, similarity, LENGTHS, k), expected)
        assert tokens_left(expected) >= k


@pytest.mark.parametrize(("at", "frames"), [("first", [0, 3, 4]), ("middle", [1, 3, 4]), ("last", [2, 3, 5])])
def test_static_positions_are_averaged_into_one_frame(at, frames):
    x = randn(6, 4, 5)
    y, home = merge_static(x, STATIC, LENGTHS, at)
    before, start = x.clone(), 0
    for frame, length, still in zip(frames, LENGTHS, STATIC, strict=True):
        for t in range(start, start + length):
            for i in range(4):
                assert home[4 * t + i] == (4 * frame + i if still[i] else 4 * t + i)
                expected = x[start : start + length, i].mean(0) if still[i] and t == frame else x[t, i]
                torch.testing.assert_close(y[4 * t + i], expected)
        start += length
    assert torch.equal(x, before)
    half, _ = merge_static(x.bfloat16(), STATIC, LENGTHS, at)
    torch.testing.assert_close(half, merge_static(x.bfloat16().float(), STATIC, LENGTHS, at)[0])


def test_groups_are_the_static_tokens_of_a_segment_and_the_others_by_frame():
    def found(**given):
        return [(places.tolist(), still) for places, still in tokens_by_segment(STATIC, LENGTHS, "last", **given)]

    first, single, last = ([8, 10], True), ([12, 13, 14, 15], False), ([20, 21, 22, 23], True)
    assert found() == [first, ([1, 3], False), ([5, 7], False), ([9, 11], False), single, last]
    assert found(by_frame=False) == [first, ([1, 3, 5, 7, 9, 11], False), single, last]


def test_every_token_left_is_in_one_group():
    _, home = merge_static(randn(6, 4, 5), STATIC, LENGTHS, "middle")
    places = torch.cat([places for places, _ in tokens_by_segment(STATIC, LENGTHS, "middle")])
    assert torch.equal(places.sort().values, home.unique())
