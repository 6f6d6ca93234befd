import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import PruneVid

D = 8


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scenes(*frames, n=20, noise=0.1):
    """[T, N, D]: shots of so many frames each, unlike each other; the last four positions move."""
    shots = [randn(1, n, D, seed=i) + noise * randn(f, n, D, seed=10 + i) for i, f in enumerate(frames)]
    x = torch.cat(shots)
    x[:, -4:] = randn(len(x), 4, D, seed=99)
    return x


def select(x, k, **fields):
    """The answer about one unit, cut shot by shot; and its places, rows and sizes in the order of the paper."""
    tokens = visual_tokens(x.flatten(0, 1)[None], grid=(len(x), 1, x.shape[1]))
    found = PruneVid(keep=k, **({"gamma": 0.17, "neighbours": 3} | fields)).select(tokens, k)
    rank = torch.searchsorted(found.indices, found.order)[0]
    return found, found.order[0], found.features[0, rank], found.sizes[0, rank]


def test_shots_are_segments_and_what_stays_is_averaged_over_them():
    x = scenes(5, 7)
    _, order, rows, sizes = select(x, 2 * 16 + 12 * 4, beta=1.0)
    static = [*range(16), *range(100, 116)]
    moving = [20 * t + i for t in range(12) for i in range(16, 20)]
    assert sorted(order.tolist()) == sorted(static + moving)
    assert order[16:36].tolist() == moving[:20]
    assert order[36:52].tolist() == list(range(100, 116))
    assert sizes.tolist() == [5.0] * 16 + [1.0] * 20 + [7.0] * 16 + [1.0] * 28
    torch.testing.assert_close(rows[36:52], x[5:, :16].mean(0))
    torch.testing.assert_close(rows[52:], x[5:, 16:].flatten(0, 1))


def test_static_is_above_tau_only():
    """Two frames with a cosine of exactly 0.5 at every position."""
    x = torch.zeros(2, 20, D)
    x[:, :, 0] = 1.0
    x[1, :, 1] = 3**0.5
    cosine = float(torch.nn.functional.cosine_similarity(x[0, 0], x[1, 0], dim=0))
    assert select(x, 30, strict_paper=True, beta=1.0, tau=cosine - 1e-3)[1].shape == (20,)
    assert select(x, 30, strict_paper=True, beta=1.0, tau=cosine + 1e-3)[1].shape == (40,)
    assert select(x[:1].expand(2, 20, D), 30, strict_paper=True, beta=1.0, tau=1.0)[1].shape == (40,)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_the_published_count(beta):
    """16 static tokens of two segments in int(16 beta) clusters, at least one; 4 moving ones of a frame stay."""
    assert select(scenes(5, 7), 1, strict_paper=True, beta=beta)[1].shape == (2 * max(1, int(16 * beta)) + 48,)


@pytest.mark.parametrize(("n", "left"), [(18, 14), (19, 7)])
def test_groups_of_up_to_fourteen_are_published_whole(n, left):
    assert select(scenes(5, 7, n=n), 1, strict_paper=True)[1].shape == (2 * left + 48,)


@pytest.mark.parametrize("n", [14, 15, 40])
def test_as_many_tokens_as_published_are_those_published(n):
    for x in (scenes(5, 7, n=n), randn(6, n, D), scenes(6, 6, n=n, noise=0.7)):
        strict = select(x, 1, strict_paper=True)
        found = select(x, len(strict[1]))
        for a, b in zip(strict[1:], found[1:], strict=True):
            assert torch.equal(a, b)


def test_counts_go_from_one_of_a_group_to_the_published_and_to_all():
    x = scenes(5, 7)
    groups = [(16, 5)] + [(4, 1)] * 5 + [(16, 7)] + [(4, 1)] * 7
    for k, expected in (
        (14, [1] * 14),
        (14 + 7 + 18, None),
        (64, [8, *[4] * 5, 8, *[4] * 7]),
        (72, [12, *[4] * 5, 12, *[4] * 7]),
        (80, [16, *[4] * 5, 16, *[4] * 7]),
    ):
        _, order, _, sizes = select(x, k)
        found, done = [], 0
        for n, frames in groups:
            start, total = done, 0
            while total < n * frames:
                total += int(sizes[done])
                done += 1
            assert total == n * frames
            found.append(done - start)
        assert done == len(order)
        assert found == expected or (expected is None and min(found) >= 1 and max(found) <= 8)


def test_fewer_tokens_than_groups_make_everything_static():
    x = scenes(5, 7)
    found, order, _, sizes = select(x, 13)
    assert {int(place) // 20 for place in order} == {0, 5}
    assert sizes[:6].sum() == 100 or sizes[:7].sum() == 100
    frames = torch.arange(240) // 20 >= 5
    assert not set(found.source[0, frames].tolist()) & set(found.source[0, ~frames].tolist())
    one = select(x, 1)
    assert one[1].tolist() == [int(one[1])]
    assert int(one[1]) < 20
    torch.testing.assert_close(one[2][0], x.mean((0, 1)))


def test_fewer_tokens_than_segments_join_them():
    x = scenes(4, 4, 4, 4)
    _, order, rows, _ = select(x, 4, gamma=0.25)
    assert [int(place) // 20 for place in order] == [0, 4, 8, 12]
    torch.testing.assert_close(rows, x.unflatten(0, (4, 4)).mean((1, 2)))
    _, order, rows, _ = select(x, 2, gamma=0.25)
    assert [int(place) // 20 for place in order] == [0, 8]
    torch.testing.assert_close(rows, x.unflatten(0, (2, 8)).mean((1, 2)))


@pytest.mark.parametrize(("fields", "says"), [({"gamma": 1.2}, "gamma=1.2"), ({"beta": None}, "beta=None")], ids=str)
def test_what_is_no_share_is_refused(fields, says):
    with pytest.raises(InvalidArgumentError, match=says):
        PruneVid(**fields)
