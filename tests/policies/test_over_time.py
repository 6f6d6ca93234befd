"""What PruneVid and HoliTom have in common."""

from functools import partial

import pytest
import torch

from tests.default_policies import unit, visual_tokens
from tokenprune.errors import InvalidArgumentError, UnsupportedPolicyError
from tokenprune.ops import sum_by_source
from tokenprune.policies import HoliTom, PruneVid

POLICIES = {"prunevid": PruneVid, "holitom": HoliTom, "holitom-plain": partial(HoliTom, beta=None, tau=0.5)}
every_policy = pytest.mark.parametrize("name", POLICIES)
every_at = pytest.mark.parametrize("at", ["first", "middle", "last"])
D = 6


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clip(kind, t, n, seed=0):
    """[T, N, D]"""
    if kind == "random":
        return randn(t, n, D, seed=seed)
    if kind == "static":
        return randn(1, n, D, seed=seed).repeat(t, 1, 1)
    if kind == "equal":
        return randn(1, 1, D, seed=seed).repeat(t, n, 1)
    if kind == "two frames in turn":
        return randn(2, n, D, seed=seed)[torch.arange(t) % 2]
    x = randn(1, n, D, seed=seed) + 0.2 * randn(t, n, D, seed=seed + 1)  # a cut halfway; some of it moves
    x[t // 2 :] += 2 * randn(1, n, D, seed=seed + 2)
    moving = torch.rand(t, n, generator=torch.Generator().manual_seed(seed + 3)) < 0.2
    return torch.where(moving[..., None], randn(t, n, D, seed=seed + 4), x)


def clips(kind, t, n, units=2, **fields):
    x = torch.stack([clip(kind, t, n, seed) for seed in range(units)])
    return visual_tokens(x.flatten(1, 2), grid=(t, 1, n), **fields)


@every_policy
@pytest.mark.parametrize("kind", ["random", "static", "equal", "two frames in turn", "scenes"])
@pytest.mark.parametrize(
    ("t", "n"), [(1, 5), (2, 1), (2, 4), (3, 2), (7, 1), (7, 3), (16, 1), (16, 2), (16, 5)], ids=str
)
def test_exactly_k_and_features_are_what_the_map_says(name, kind, t, n):
    tokens = clips(kind, t, n)
    total = t * n
    for k in range(1, total):
        found = POLICIES[name](keep=k).select(tokens, k)
        assert found.indices.shape == (2, k)
        assert torch.equal(found.order.sort(-1).values, found.indices)
        assert torch.equal(found.source.gather(1, found.indices), torch.arange(k).expand(2, k))
        shares = found.merge_weights(total)
        torch.testing.assert_close(
            torch.zeros(2, k).scatter_add(1, found.source.clamp_min(0), shares), torch.ones(2, k)
        )
        torch.testing.assert_close(found.features, sum_by_source(tokens.features, found.source, k, shares))
        assert found.sizes.sum() == (found.source >= 0).sum()
        assert name != "prunevid" or (found.source >= 0).all()  # which loses nothing


@every_policy
@every_at
@pytest.mark.parametrize("kind", ["random", "scenes"])
def test_units_of_a_batch_do_not_meet(name, at, kind):
    tokens = clips(kind, 16, 5, units=3)
    for k in (3, 20, 60):
        policy = POLICIES[name](keep=k, at=at)
        together = policy.select(tokens, k)
        for i in range(3):
            alone = policy.select(unit(tokens, i), k)
            for what in ("indices", "order", "source", "sizes"):
                assert torch.equal(getattr(together, what)[i : i + 1], getattr(alone, what))
            torch.testing.assert_close(together.features[i : i + 1], alone.features)


@every_policy
@pytest.mark.parametrize(("at", "frame"), [("first", 0), ("middle", 3), ("last", 7)])
def test_what_never_changes_is_one_frame(name, at, frame):
    x = randn(1, 12, D)
    tokens = visual_tokens(x.repeat(1, 8, 1), grid=(8, 3, 4))
    found = POLICIES[name](keep=12, at=at).select(tokens, 12)
    assert found.indices.tolist() == [list(range(12 * frame, 12 * frame + 12))]
    assert found.source.tolist() == [list(range(12)) * 8]
    assert found.sizes.tolist() == [[8.0] * 12]
    torch.testing.assert_close(found.features, x)


@every_policy
def test_with_more_tokens_than_time_leaves_the_least_similar_position_is_not_static(name):
    x = randn(1, 12, D).repeat(8, 1, 1)
    x[:, 5] += 0.01 * randn(8, D, seed=1)
    tokens = visual_tokens(x.flatten(0, 1)[None], grid=(8, 3, 4))
    found = POLICIES[name](keep=19).select(tokens, 19)
    assert found.indices[0].tolist() == sorted([*range(12), *range(17, 96, 12)])
    torch.testing.assert_close(found.features[0, found.sizes[0] == 1], x[:, 5])


@every_policy
@pytest.mark.parametrize("t", [1, 2, 3, 8])
def test_small_videos_as_published(name, t):
    for n in (1, 4, 30):
        tokens = clips("scenes", t, n, units=1)
        found = POLICIES[name](keep=0.9, strict_paper=True).select(tokens, 1)
        assert 1 <= found.indices.shape[1] <= t * n
        assert torch.equal(found.order.sort(-1).values, found.indices)


@every_policy
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tau": 1.5}, "tau=1.5 is not in"),
        ({"tau": True}, "tau=True is not in"),
        ({"neighbours": 0}, "neighbours=0 is not an int of at least 1"),
        ({"at": "centre"}, "at='centre' is not one of first, middle, last"),
        ({"beta": -0.1}, "beta=-0.1 is not in"),
        ({"per": "frame"}, "shows policy .* no whole video"),
    ],
    ids=str,
)
def test_what_is_no_setting_is_refused(name, fields, says):
    with pytest.raises(InvalidArgumentError, match=says):
        POLICIES[name](**fields)


@every_policy
def test_tokens_without_frames_are_refused(name):
    with pytest.raises(UnsupportedPolicyError, match="frames of this video are not known"):
        POLICIES[name](keep=3).select(visual_tokens(randn(1, 12, D)), 3)


@every_policy
def test_places_are_renumbered_and_images_are_not_asked_about(name):
    policy = POLICIES[name](keep=3)
    assert (policy.positions, policy.kinds, policy.exact) == ("compact", frozenset({"video"}), True)
    assert not POLICIES[name](keep=3, strict_paper=True).exact
