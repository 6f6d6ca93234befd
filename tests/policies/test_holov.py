import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import HoloV
from tokenprune.tokens import Tap

N = 24


def fixed(attention):
    return lambda tokens: torch.as_tensor(attention)[None]


@pytest.fixture
def tokens():
    return visual_tokens(torch.randn(1, N, 5, generator=torch.Generator().manual_seed(0)))


def attention(*runs):
    """Four runs of six tokens, rising inside a run to these means."""
    return torch.tensor([mean * (1 + 0.01 * i) / 1.025 for mean in runs for i in range(6)])


def test_the_overflow_of_a_run_goes_to_the_others(tokens):
    policy = HoloV(num_crops=4, gamma=0.0, attention=fixed(attention(0.7, 0.1, 0.1, 0.1)))
    kept = policy.select(tokens, 12).indices[0].tolist()
    assert kept == [0, 1, 2, 3, 4, 5, 10, 11, 16, 17, 22, 23]  # 8.4 asked for the first, which has 6


def test_strict_fills_lost_places_with_zeros(tokens):
    policy = HoloV(num_crops=4, gamma=0.0, attention=fixed(attention(0.7, 0.1, 0.1, 0.1)), strict_paper=True)
    selection = policy.select(tokens, 12)  # quotas 9, 1, 1, 1: floors 8, 1, 1, 1 and one more for the first
    order = selection.order[0].tolist()
    assert order == [0, 1, 2, 3, 4, 5, 11, 17, 23, 6, 7, 8]
    zeros = [i in (6, 7, 8) for i in sorted(order)]
    assert selection.features[0].eq(0).all(-1).tolist() == zeros
    kept = [i for i in sorted(order) if i not in (6, 7, 8)]
    assert torch.equal(selection.features[0, ~torch.tensor(zeros)], tokens.features[0, kept])
    assert selection.weights[0].nonzero()[:, 0].tolist() == kept
    assert selection.sizes.tolist() == [[1.0] * 12]
    assert policy.exact


def test_score_weighs_variance_on_the_scale_of_attention():
    """One run: token 3 differs from all others, tokens 0 and 5 get most attention."""
    features = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [-1, 0.4], [1, 0.3], [1, 0.05]])
    a = torch.tensor([0.3, 0.1, 0.1, 0.1, 0.15, 0.25])
    s = torch.nn.functional.cosine_similarity(features[:, None], features[None], dim=-1).fill_diagonal_(0)
    v = (s - s.sum(-1, keepdim=True) / 5).square().sum(-1) / 5
    tokens = visual_tokens(features[None])
    for gamma in (0.0, 0.4, 1.0, 30.0):
        policy = HoloV(num_crops=1, gamma=gamma, attention=fixed(a))
        selection = policy.select(tokens, 3)
        score = 1000 * a + gamma * 1000 * a.mean() / v.mean() * v
        torch.testing.assert_close(selection.scores[0], score, rtol=1e-4, atol=1e-3)
        assert selection.order[0].tolist() == score.topk(3).indices.tolist()
        assert HoloV(num_crops=1, gamma=gamma, attention=fixed(a), by="attention").select(tokens, 3).order.tolist() == [
            [0, 5, 4]
        ]
    torch.testing.assert_close(
        HoloV(num_crops=1, attention=fixed(a)).select(tokens, 3).scores,
        HoloV(num_crops=1, gamma=1.0, attention=fixed(a)).select(tokens, 3).scores,
    )


def test_tau_sharpens_the_shares(tokens):
    shares = {}
    for tau in (0.0, 1.0, 2.0):
        policy = HoloV(num_crops=2, gamma=0.0, tau=tau, attention=fixed(attention(0.3, 0.3, 0.1, 0.1)))
        shares[tau] = int((policy.select(tokens, 10).indices < 12).sum())
    assert shares == {0.0: 5, 1.0: 8, 2.0: 9}


@pytest.mark.parametrize(("k", "crops"), [(64, 16), (128, 8), (192, 5), (575, 1)])
def test_the_released_number_of_runs(k, crops):
    tokens = visual_tokens(torch.randn(1, 576, 4, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(HoloV().select(tokens, k).indices, HoloV(num_crops=crops).select(tokens, k).indices)


def test_more_runs_than_tokens(tokens):
    assert HoloV(num_crops=99).select(tokens, 5).indices.shape == (1, 5)


def test_needs_the_attention_it_is_given():
    assert HoloV().needs == {"features", Tap("attention")}
    assert HoloV(attention=fixed([1.0])).needs == {"features"}


@pytest.mark.parametrize("fields", [{"num_crops": 0}, {"gamma": -1.0}, {"tau": "x"}, {"by": "both"}, {"attention": 1}])
def test_fields_are_checked(fields):
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(fields))}="):
        HoloV(**fields)
