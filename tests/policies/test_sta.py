import pytest
import torch

from tests.default_vision_policies import block_tokens
from tokenprune.errors import InvalidArgumentError, UnsupportedPolicyError
from tokenprune.policies import STA


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slowly(x, keys, slots, leaving, backward):
    """One clip, python loops, float64: places that stay. `leaving`: tokens that leave each slot, as visited."""
    n = len(x) // slots
    keys, strength = keys / keys.norm(dim=-1, keepdim=True), x.abs().sum(-1)
    kept, previous, weights = {}, None, None
    for number, slot in enumerate(reversed(range(slots)) if backward else range(slots)):
        here = list(range(slot * n, slot * n + n))
        if number == 0:
            likeness = {i: max(float(keys[i] @ keys[j]) for j in here[1::2]) for i in here[0::2]}
            stay = here[1::2] + sorted(here[0::2], key=likeness.get)
            previous, weights = here, dict.fromkeys(here, 1.0)
            kept[slot] = stay[: n - leaving[number]]
            continue
        g = dict.fromkeys(here, 0.0)
        for j in previous:
            likeness = torch.stack([keys[i] @ keys[j] for i in here]).softmax(0)
            for i, share in zip(here, likeness.tolist(), strict=True):
                g[i] += share * weights[j]
        low, high = min(strength[here]), max(strength[here])
        score = {i: g[i] * (1 - float((strength[i] - low) / (high - low))) for i in here}
        kept[slot] = previous = sorted(here, key=score.get)[: n - leaving[number]]
        whole = sum(g[i] for i in previous)
        weights = {i: g[i] / whole for i in previous}
    return [i for slot in range(slots) for i in kept[slot]]


@pytest.mark.parametrize("frames", [4, 8])
@pytest.mark.parametrize(("block", "backward"), [(0, False), (2, True), (4, False)])
@pytest.mark.parametrize("leaving", [8, 11])
def test_it_equals_a_slow_float64_one(frames, block, backward, leaving):
    slots, n = frames >> (block // 2), 12
    x, keys = randn(2, slots * n, 5), randn(2, slots * n, 4, seed=1)
    tokens = block_tokens(x, keys=keys, grid=(frames, 3, 4), block=block, depth=6)
    each = [leaving // slots + (i < leaving % slots) for i in range(slots)]
    found = STA(r=2).reduce(tokens, slots * n - leaving)
    expected = [slowly(one.double(), key.double(), slots, each, backward) for one, key in zip(x, keys, strict=True)]
    assert found.order.tolist() == expected
    assert (found.source, STA.behind, STA.merges) == (None, True, False)


def test_slots_of_one_norm_are_ranked_by_what_they_repeat():
    keys = torch.eye(4)[[0, 1, 2, 3, 0, 0, 0, 3, 0, 1, 2, 3, 0, 1, 2, 3]][None]
    tokens = block_tokens(torch.ones(1, 16, 2), keys=keys, grid=(4, 2, 2), block=0, depth=3)
    assert STA(r=1).reduce(tokens, 12).order.tolist()[0][3:6] == [4, 5, 6]  # g is largest for 7, alone with its key


@pytest.mark.parametrize(
    ("fields", "depth", "grid", "expected"),
    [
        ({"r": 64}, 12, (8, 14, 14), [1056] * 4 + [800] * 4 + [672] * 4),
        ({"r": 96}, 24, (8, 14, 14), [800] * 8 + [416] * 8 + [224] * 8),
        ({"r": 3}, 6, (8, 4, 4), [104, 104, 92, 92, 86, 86]),
        ({"r": 0}, 3, (8, 4, 4), [128] * 3),
        ({"r": 2}, 3, (4, 2, 2), [8, 4, 2]),
        ({"keep": 672}, 12, (8, 14, 14), [1056] * 4 + [800] * 4 + [672] * 4),
        ({"keep": 671}, 3, (8, 14, 14), [1056, 800, 671]),
        ({"keep": 660}, 3, (8, 14, 14), [1056, 800, 660]),
        ({"keep": 0.5}, 3, (8, 14, 14), [1120, 896, 784]),
        ({"keep": 127}, 3, (8, 4, 4), [128, 128, 127]),
        ({"keep": 21}, 3, (8, 4, 4), [64, 32, 21]),  # of 7 for a slot, 6 1/2 would leave the last stage too much
        ({"keep": 16}, 3, (8, 4, 4), [64, 32, 16]),
        ({"keep": 1.0}, 4, (8, 4, 4), [128] * 4),
    ],
    ids=str,
)
def test_counts(fields, depth, grid, expected):
    frames, rows, columns = grid
    assert STA(**fields).counts(depth, frames * rows * columns, grid) == expected


@pytest.mark.parametrize("frames", [4, 8, 12])
@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 49])
def test_any_budget_that_the_largest_r_reaches_is_met(frames, size):
    """No stage takes more than half of a slot."""
    total = frames * size
    for keep in range(total - 7 * frames * (size // 2) // 4, total):
        counts = STA(keep=keep).counts(3, total, (frames, size, 1))
        before, slots = total, frames
        for count in counts:
            most = -(-(before - count) // slots)
            assert most <= (before // slots + 1) // 2
            before, slots = count, slots // 2
        assert counts[-1] == keep
        assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("fields", [{"r": 9}, {"keep": 15}, {"keep": 1}, {"keep": 0.1}])
def test_more_than_half_of_a_slot_is_refused(fields):
    with pytest.raises(
        InvalidArgumentError, match="of the 16 patches of a slot: give an r of at most 8, which leaves 16"
    ):
        STA(**fields).counts(3, 128, (8, 4, 4))


@pytest.mark.parametrize(
    ("depth", "grid"), [(12, None), (12, (1, 16, 8)), (12, (2, 8, 8)), (12, (6, 8, 8)), (2, (8, 4, 4))]
)
def test_images_and_other_lengths_are_refused(depth, grid):
    with pytest.raises(UnsupportedPolicyError, match="needs a clip of 4, 8, 12 ... temporal slots and three blocks"):
        STA(r=2).counts(depth, 128, grid)


def test_towers_with_a_class_token_are_refused():
    x = randn(1, 17, 3)
    with pytest.raises(UnsupportedPolicyError, match="towers without class token"):
        STA(r=1).reduce(block_tokens(x, keys=x, prefix=1, grid=(4, 2, 2), depth=3), 12)


@pytest.mark.parametrize("r", [-1, 1.5, "3", True, (3, 0.5)])
def test_what_is_no_r_is_refused(r):
    with pytest.raises(InvalidArgumentError, match="r="):
        STA(r=r)


def test_without_r_and_keep_there_is_no_budget():
    assert [STA().budgeted, STA(r=0).budgeted, STA(keep=9).budgeted] == [False, True, True]
    with pytest.raises(InvalidArgumentError, match=r"neither r \(tokens that leave a slot\) nor keep"):
        STA().counts(12, 128, (8, 4, 4))
