"""What holds for every policy on the list that compares the frames of a video."""

import pytest
import torch
from test_every_policy import check

from tests.default_policies import POLICIES, unit, visual_tokens
from tokenprune.errors import InvalidArgumentError, UnsupportedPolicyError

NAMES = [name for name, factory in POLICIES.items() if "image" not in factory().kinds]
every_policy = pytest.mark.parametrize("name", NAMES)
N, D = 4, 5


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moving(t):
    """A still background in two scenes, and one token of each frame that is another picture."""
    x = torch.cat([randn(2, 1, N, D, seed=i).expand(2, n, N, D) for i, n in enumerate((t - t // 2, t // 2))], 1).clone()
    x[:, torch.arange(t), torch.arange(t) % N] = randn(2, t, D, seed=2)
    return x


VIDEOS = {
    "random": lambda t: randn(2, t, N, D),
    "still": lambda t: randn(2, 1, N, D).expand(2, t, N, D),
    "flat": lambda t: torch.ones(2, t, N, D),
    "moving": moving,
}


@every_policy
@pytest.mark.parametrize("video", VIDEOS)
@pytest.mark.parametrize("t", [1, 2, 3, 5, 8, 16])
def test_exactly_k_of_any_number_of_frames(name, video, t):
    tokens = visual_tokens(VIDEOS[video](t).flatten(1, 2), grid=(t, 2, 2))
    for k in range(1, t * N):
        check(POLICIES[name](keep=k).select(tokens, k), 2, t * N, k)


@every_policy
@pytest.mark.parametrize("video", VIDEOS)
@pytest.mark.parametrize("k", [1, 5, 13, 27])
def test_videos_of_a_batch_do_not_meet(name, video, k):
    x = torch.cat([VIDEOS[video](8), VIDEOS["moving"](8)]).flatten(1, 2)
    tokens, policy = visual_tokens(x, grid=(8, 2, 2)), POLICIES[name](keep=k)
    together = policy.select(tokens, k)
    for i in range(4):
        alone = policy.select(unit(tokens, i), k)
        assert torch.equal(together.indices[i : i + 1], alone.indices)
        assert torch.equal(together.source_map(8 * N)[i : i + 1], alone.source_map(8 * N))
        if alone.features is not None:
            torch.testing.assert_close(together.features[i : i + 1], alone.features)


@every_policy
def test_videos_without_known_frames_are_refused(name):
    with pytest.raises(UnsupportedPolicyError, match="put policies that compare frames first"):
        POLICIES[name](keep=3).select(visual_tokens(randn(1, 12, D)), 3)


@every_policy
def test_a_budget_is_of_a_whole_video(name):
    with pytest.raises(InvalidArgumentError, match="per='frame'"):
        POLICIES[name](keep=3, per="frame")
    assert POLICIES[name](keep=0.5, of="prompt").kinds == {"video"}
