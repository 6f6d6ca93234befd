import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import VidCom2

T, N, D = 5, 6, 8


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def video(x):
    return visual_tokens(x.flatten(0, 1)[None], grid=(x.shape[0], 1, x.shape[1]))


def by_hand(x, channel_ratio):
    """v, f and the frames' uniqueness u, token by token, in float64."""
    t, n, d = x.shape
    flat = x.double().flatten(0, 1)
    variance = [float(((c - c.mean()) ** 2).mean()) for c in flat.T]
    channels = sorted(range(d), key=lambda c: variance[c])[: max(1, int(d * channel_ratio))]
    x = torch.nn.functional.normalize(x.double()[..., channels], dim=-1)
    centre = x.flatten(0, 1).mean(0)
    v, f = torch.zeros(t, n).double(), torch.zeros(t, n).double()
    for i in range(t):
        for j in range(n):
            for a in (0.125, 0.25, 0.5, 1, 2):
                v[i, j] += (-((x[i, j] - centre) ** 2).sum() / (2 * a)).exp()
                f[i, j] += (-((x[i, j] - x[i].mean(0)) ** 2).sum() / (2 * a)).exp()
    return v, f, -v.mean(1)


@pytest.mark.parametrize("channel_ratio", [0.05, 0.5, 1.0])
def test_likeness_is_the_formula(channel_ratio):
    x = randn(T, N, D) * torch.arange(1, D + 1)
    v, f, unlike = by_hand(x, channel_ratio)
    policy = VidCom2(channel_ratio=channel_ratio, temperature=0.1)
    video_likeness, frame_likeness = policy.likeness(x[None])
    torch.testing.assert_close(video_likeness[0].double(), v, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(frame_likeness[0].double(), f, rtol=1e-5, atol=1e-5)
    p = (unlike / 0.1).softmax(-1)
    torch.testing.assert_close(policy.shares(video_likeness)[0].double(), 1 + p - 1 / T, rtol=1e-4, atol=1e-4)
    scores = policy.select(video(x), 9).scores
    torch.testing.assert_close(scores[0].double(), -(v + f).flatten(), rtol=1e-5, atol=1e-5)


def test_every_frame_keeps_what_is_least_like_the_rest():
    x = randn(T, N, D)
    v, f, _ = by_hand(x, 0.5)
    for k in range(1, T * N):
        kept = VidCom2().select(video(x), k).indices[0]
        counts = torch.bincount(kept // N, minlength=T)
        for t in range(T):
            lowest = (v + f)[t].argsort()[: counts[t]] + t * N
            assert set(lowest.tolist()) == {i for i in kept.tolist() if i // N == t}


@pytest.fixture
def eventful():
    """Frames that are nearly alike, the fourth apart from them."""
    x = 3.0 + 0.1 * randn(1, N, D) + 0.01 * randn(T, N, D, seed=1)
    x[3] = randn(N, D, seed=2)
    return x


def counted(x, policy, k):
    return torch.bincount(policy.select(video(x), k).indices[0] // N, minlength=T).tolist()


def test_the_frame_apart_gets_up_to_twice_as_many(eventful):
    assert counted(eventful, VidCom2(), 9) == [2, 1, 1, 4, 1]  # shares of 1.44 and 3.24, the rest to the largest
    assert counted(eventful, VidCom2(), 1) == [0, 0, 0, 1, 0]
    assert counted(eventful, VidCom2(), 22)[3] == N  # no more than it has
    assert counted(eventful, VidCom2(temperature=1e6), 10) == [2] * T


def test_strict_rounds_every_frame_and_leaves_each_one(eventful):
    """p = (0, 0, 0, 1, 0): 0.25 * 6 * 0.8 = 1.2 tokens, and 2.7 of the frame apart."""
    assert counted(eventful, VidCom2(keep=0.25, strict_paper=True), 8) == [1, 1, 1, 3, 1]
    assert counted(eventful, VidCom2(keep=0.02, strict_paper=True), 1) == [1] * T
    assert counted(eventful, VidCom2(keep=0.9, strict_paper=True), 27) == [4, 4, 4, 6, 4]
    assert counted(eventful, VidCom2(keep=8, strict_paper=True), 8) == [1, 1, 1, 3, 1]  # 8 / 30
    assert not VidCom2(strict_paper=True).exact


@pytest.mark.parametrize("fields", [{"temperature": 0.0}, {"temperature": float("inf")}, {"channel_ratio": 1.5}])
def test_fields_are_checked(fields):
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(fields))}="):
        VidCom2(**fields)
