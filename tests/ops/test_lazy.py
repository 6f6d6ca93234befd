"""The lazy greedy answers as the plain one does, whatever the tokens: on shapes where panels come and go."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.ops import gather_rows, lazy, min_max, plain

N, D, K = 300, 48, 40


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clusters():
    return randn(2, N, D) + 3 * randn(2, 8, D, seed=1)[:, torch.arange(N) % 8]


FEATURES = {
    "isotropic": randn(2, N, D),
    "one direction in common": randn(2, N, D) + randn(D, seed=1),
    "clusters": clusters(),
    "nearly twins": randn(2, N // 2, D).repeat(1, 2, 1) + 1e-2 * randn(2, N, D, seed=1),
    "decaying spectrum": randn(2, N, D) * torch.arange(1, D + 1).rsqrt(),
    "some zero": randn(2, N, D) * (torch.arange(N) % 3 > 0)[:, None],
    "of any length": randn(2, N, D) * randn(2, N, 1, seed=1).exp(),
    "half": randn(2, N, D).half(),
}
QUALITY = {
    "none": None,
    "equal": torch.full((2, N), 0.3),
    "Gaussian": min_max(randn(2, N, seed=2)),
    "mostly zero": randn(2, N, seed=2).clamp_min(0.5) - 0.5,
}
SCALE = {"cosine": None, "given": randn(2, N, seed=3).abs() / D}

features = pytest.mark.parametrize("x", FEATURES.values(), ids=FEATURES)
quality = pytest.mark.parametrize("r", QUALITY.values(), ids=QUALITY)
scale = pytest.mark.parametrize("s", SCALE.values(), ids=SCALE)


@pytest.fixture(params=[None, (1, 2, 1, 0.0), (4, 8, 1, 9.0)], ids=["usual", "tiny panels", "never all at once"])
def sizes(request, monkeypatch):
    """Numbers that cost time, and must not change what is chosen."""
    if request.param:
        least, most, look, share = request.param
        for name, value in {"LEAST": least, "MOST": most, "LOOK": look, "SHARE": share, "ROWS": most}.items():
            monkeypatch.setattr(lazy, name, value)


@features
@quality
@scale
def test_dpp(sizes, x, r, s):
    for weight, eps in ((1.0, 0.0), (0.5, 1e-6)):
        settings = {"quality": r, "weight": weight, "scale": s, "eps": eps}
        assert torch.equal(lazy.dpp(x, K, **settings), plain.dpp(x, K, **settings))


@features
@quality
@scale
def test_max_min(sizes, x, r, s):
    for first in (None, torch.tensor([7, 11])):
        settings = {"quality": r, "scale": s, "first": first}
        assert torch.equal(lazy.max_min(x, K, **settings), plain.max_min(x, K, **settings))


@features
def test_coverage(sizes, x):
    columns = torch.relu(x.float() @ x.float()[:, :100].mT)  # [G, N, R]
    for weight in (torch.ones(2, N), min_max(randn(2, N, seed=2))):
        expected = plain.coverage(lambda index: gather_rows(columns, index), weight, 100, K)
        assert torch.equal(lazy.coverage(columns, weight, K), expected)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(n=st.integers(1, 12), d=st.integers(1, 5), seed=st.integers(0, 99), data=st.data())
@pytest.mark.parametrize("width", [1, 2, 32])
def test_exact_ties(width, n, d, seed, data):
    """Signed axes, many of them repeated or zero: all arithmetic is exact, and most values are equal to others."""
    k = data.draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(seed)
    axes = torch.cat([torch.eye(d), -torch.eye(d), torch.zeros(1, d)])
    x = axes[torch.randint(len(axes), (2, n), generator=generator)]
    r = torch.randint(3, (2, n), generator=generator).float()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LEAST", "MOST", "LOOK", "ROWS"):
            patch.setattr(lazy, name, width)
        for quality in (None, r):
            assert torch.equal(lazy.dpp(x, k, quality=quality), plain.dpp(x, k, quality=quality))
            assert torch.equal(lazy.max_min(x, k, quality=quality), plain.max_min(x, k, quality=quality))
        f = torch.randint(-1, 4, (2, n, d), generator=generator).float()
        expected = plain.coverage(lambda index: gather_rows(f, index).clone(), r, d, k)
        assert torch.equal(lazy.coverage(f, r, k), expected)


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_dpp_beyond_the_rank(sizes, rank):
    """Only the tokens behind are told by the diagonal: those before differ by rounding alone."""
    x = randn(1, 200, rank) @ randn(rank, D)
    r = min_max(randn(1, 200, seed=2), denominator_eps=1.0) + 0.1
    order = lazy.dpp(x, 60, quality=r)
    assert torch.equal(order, plain.dpp(x, 60, quality=r))
    rest = r[0].scatter(0, order[0, :rank], -1.0).sort(descending=True, stable=True).indices
    assert torch.equal(order[0, rank:], rest[: 60 - rank])


def test_max_min_starts_at_the_lowest_of_two_that_are_each_others_nearest():
    """The two farthest from all others: matrix products may round x_i . x_j and x_j . x_i apart."""
    for seed in range(20):
        x = randn(1, 90, 33, seed=seed).abs()
        i, j = sorted(torch.randperm(90, generator=torch.Generator().manual_seed(seed))[:2].tolist())
        x[0, [i, j]] = -x[0, [i, j]] + 2.0 * randn(2, 33, seed=seed + 100)
        unit = torch.nn.functional.normalize(x.double(), dim=-1)[0]
        similarity = (unit @ unit.T).fill_diagonal_(-1.0)
        nearest, partner = similarity.max(-1)
        start = int(nearest.argmin())
        if partner[partner[start]] == start:
            assert lazy.max_min(x, 1)[0, 0] == min(start, int(partner[start]))


def test_most_tokens_are_never_compared(monkeypatch):
    """With a quality that differs, few tokens are near the best: the rest is not looked at."""
    looked = []
    renew = lazy._Determinant.renew

    def count(self, some, t):
        seen = self.seen if some is None else self.seen[some]
        looked.append(len(seen) * (t - int(seen.min())))
        renew(self, some, t)

    monkeypatch.setattr(lazy._Determinant, "renew", count)
    monkeypatch.setattr(lazy, "LOOK", 16)
    monkeypatch.setattr(lazy, "MOST", 32)
    x, r = FEATURES["isotropic"][:1], QUALITY["Gaussian"][:1]
    lazy.dpp(x, 20, quality=r)
    assert 0 < sum(looked) < 20 * N / 4
