import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.ops import points_on_grid
from tokenprune.policies import EVS


def video(x, grid=None):
    t, n = x.shape[:2]
    return visual_tokens(x.flatten(0, 1)[None], grid=grid or (t, 1, n))


@pytest.fixture
def still():
    """Six equal frames of four tokens."""
    return torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(0)).repeat(6, 1, 1)


def test_what_changed_since_the_frame_before_stays(still):
    still[2, 1] *= -1  # there and back: two changes
    still[4, 3] += still[4, 0]  # a smaller one, that lasts
    still[5, 3] += still[5, 0]
    kept = {k: EVS().select(video(still), k).indices[0].tolist() for k in (4, 6, 7)}
    assert kept == {4: [0, 1, 2, 3], 6: [0, 1, 2, 3, 9, 13], 7: [0, 1, 2, 3, 9, 13, 19]}
    assert EVS().select(video(still), 7).order[0].tolist() == [0, 1, 2, 3, 9, 13, 19]


def test_equal_changes_go_to_the_earlier_frame_and_the_lower_place(still):
    assert EVS().select(video(still), 9).indices[0].tolist() == list(range(9))
    assert EVS().select(video(1000 * still.half()), 9).indices[0].tolist() == list(range(9))


def test_fewer_tokens_than_a_frame_are_spread_over_the_first():
    tokens = video(torch.randn(3, 12, 4, generator=torch.Generator().manual_seed(1)), grid=(3, 3, 4))
    for k in range(1, 12):
        assert EVS().select(tokens, k).indices[0].tolist() == points_on_grid((1, 3, 4), k)
    assert EVS().select(tokens, 12).indices[0].tolist() == list(range(12))


@pytest.mark.parametrize(("keep", "count"), [(0.5, 12), (0.3, 7), (0.1, 4), (9, 9), (2, 4)])
def test_strict_never_keeps_less_than_the_first_frame(still, keep, count):
    policy = EVS(keep=keep, strict_paper=True)
    assert not policy.exact
    assert policy.select(video(still), policy.budget.count(24)).indices.shape == (1, count)
