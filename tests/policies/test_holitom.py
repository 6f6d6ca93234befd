import math

import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError, PolicyError
from tokenprune.ops import density_scores
from tokenprune.policies import HoliTom
from tokenprune.tokens import Tap

D = 8


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def still_and_moving(t, n, moving):
    """[T, N, D], the last positions move; and the attention [1, T N]."""
    x = randn(1, n, D) + 0.05 * randn(t, n, D, seed=1)
    x[:, n - moving :] = randn(t, moving, D, seed=2)
    return x, torch.rand(1, t * n, generator=torch.Generator().manual_seed(3))


def select(x, a, k, keep=None, **fields):
    tokens = visual_tokens(x.flatten(0, 1)[None], grid=(len(x), 1, x.shape[1]))
    return HoliTom(keep=keep or k, attention=lambda _: a, **fields).select(tokens, k)


def test_it_reads_the_attention_of_all_patches():
    assert HoliTom().needs == {"features", Tap("attention", queries="all")}


def test_moving_tokens_stay_by_attention_and_still_ones_merge():
    x, a = still_and_moving(6, 30, 10)
    found = select(x, a, 20)  # of 20 still tokens and 60 moving ones
    places = found.indices[0].tolist()
    assert sum(place % 30 < 20 for place in places) == 5
    for t in range(6):
        moving = [30 * t + i for i in range(20, 30)]
        kept = [place for place in places if place in moving]
        assert kept == sorted(sorted(moving, key=lambda i: -float(a[0, i]))[: len(kept)])
        assert len(kept) in (2, 3)
        assert all(found.source[0, i] == -1 for i in moving if i not in kept)


@pytest.mark.parametrize(("k", "neighbours", "used"), [(3, 7, 3), (9, 7, 7), (9, 2, 2)])
def test_centres_are_density_peaks_of_the_means(k, neighbours, used):
    x, a = still_and_moving(5, 40, 0)
    found = select(x, a, k, neighbours=neighbours)
    best = {n: density_scores(x.mean(0)[None], n)[0].argsort(descending=True)[:k].tolist() for n in (2, 3, 7)}
    assert found.indices[0].tolist() == sorted(best[used])
    assert len({tuple(sorted(one)) for one in best.values()}) == 3


@pytest.mark.parametrize("beta", [0.6, 0.0, 1.0, None])
def test_a_centre_keeps_its_share(beta):
    x, a = still_and_moving(5, 12, 0)
    means = x.mean(0)
    found = select(x, a, 4, beta=beta)
    centres = found.indices[0].tolist()
    assert max(centres) < 12
    for i in range(4):
        joined = [j for j in range(12) if found.source[0, j] == i and j != centres[i]]
        near = [min(range(4), key=lambda c, j=j: float((means[j] - means[centres[c]]).norm())) for j in joined]
        assert near == [i] * len(joined)
        assert found.sizes[0, i] == 5 * (1 + len(joined))
        share = (1 / (1 + len(joined)) if beta is None else beta) if joined else 1.0
        expected = share * means[centres[i]]
        if joined:
            expected = expected + (1 - share) * means[joined].mean(0)
        torch.testing.assert_close(found.features[0, i], expected)


def test_a_single_centre_is_that_nearest_to_the_mean():
    x, a = still_and_moving(5, 12, 0)
    means = x.mean(0)
    assert select(x, a, 1).indices.item() == int((means - means.mean(0)).norm(dim=-1).argmin())


def test_windows_are_cut_where_that_saves_most():
    x = torch.cat([still_and_moving(4, 12, 2)[0], randn(1, 12, D, seed=7), randn(1, 12, D, seed=8).repeat(3, 1, 1)])
    a = torch.rand(1, 96, generator=torch.Generator().manual_seed(3))
    left = 10 + 4 * 2 + 12 + 12
    found = select(x, a, left)
    frames = torch.arange(96) // 12
    sizes = [found.sizes[0, found.indices[0] // 12 == frame].tolist() for frame in range(8)]
    assert sizes[0] == [4.0] * 10 + [1.0] * 2
    assert sizes[1:5] == [[1.0] * 2] * 3 + [[1.0] * 12]
    assert sizes[5:] == [[3.0] * 12, [], []]
    assert (found.source[0] >= 0).all()
    one = select(x, a, left, max_window=1)
    assert one.sizes.tolist() == [[1.0] * left]
    assert (one.source[0, frames == 7] >= 0).sum() in (5, 6)


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.9])
def test_counts_as_released(keep):
    x, a = still_and_moving(6, 30, 10)
    rho = min(keep / ((20 + 60) / 180), 1.0)
    found = select(x, a, 99, keep=keep, strict_paper=True)
    still = (found.indices[0] % 30 < 20).sum()
    assert still == round(20 * rho)
    assert found.indices.shape[1] - still == 6 * math.ceil(10 * rho)


def test_the_order_of_the_paper_is_static_first_frame_by_frame():
    x, a = still_and_moving(6, 30, 10)
    order = select(x, a, 40).order[0].tolist()
    still = [place for place in order if place % 30 < 20]
    assert order == still + sorted(set(order) - set(still))
    assert still == sorted(still)


def test_nothing_left_as_released_is_an_error():
    x = randn(1, 4, D).repeat(8, 1, 1)
    with pytest.raises(PolicyError, match=r"keep=0.01 leaves none of 32 tokens with strict_paper"):
        select(x, torch.ones(1, 32), 1, keep=0.01, strict_paper=True)


def test_a_window_of_no_frames_is_refused():
    with pytest.raises(InvalidArgumentError, match="max_window=0 is not an int of at least 1"):
        HoliTom(max_window=0)
