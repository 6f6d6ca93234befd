import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune import ZooPrune
from tokenprune.errors import InvalidArgumentError
from tokenprune.ops import greedy_max_min, min_max, unit_norm
from tokenprune.policies.sensitivity import Sensitivity
from tokenprune.projection import Projection


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_sensitivity(features, values):
    """Tokens whose sensitivity is given: the derivative of x^2 / 2 is x, in every direction."""
    square = Projection(apply=None, exact=lambda x: x[..., 0, :].square() / 2, mlp=None)
    return visual_tokens(features, encoder=values[..., None, None], projection=square)


def slow_order(features, w, k):
    """The greedy of the paper in float64, token by token."""
    z = torch.nn.functional.normalize(features.double(), dim=-1)
    chosen = [int(w.argmax())]
    while len(chosen) < k:
        rest = [i for i in range(len(z)) if i not in chosen]
        gains = [float(w[i]) * min(float(1 - z[i] @ z[j]) for j in chosen) for i in rest]
        chosen.append(rest[gains.index(max(gains))])
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_greedy_of_the_paper_on_scaled_sensitivities(seed):
    features, values = randn(2, 15, 6, seed=seed), 1 + randn(2, 15, seed=seed + 50).abs()
    policy = ZooPrune(keep=9, estimator="zeroth_order")
    selection = policy.select(with_sensitivity(features, values), 9)
    w = (values - values.amin(-1, keepdim=True)) / (values.amax(-1, keepdim=True) - values.amin(-1, keepdim=True))
    torch.testing.assert_close(selection.scores, w, rtol=0, atol=1e-3)
    assert selection.order.tolist() == [slow_order(*unit, 9) for unit in zip(features, selection.scores, strict=True)]


def test_the_most_sensitive_comes_first_and_the_least_sensitive_last():
    features, values = randn(1, 6, 8), torch.tensor([[3.0, 1.0, 2.0, 9.0, 4.0, 5.0]])
    order = ZooPrune(estimator="zeroth_order").select(with_sensitivity(features, values), 6).order[0].tolist()
    assert (order[0], order[-1]) == (3, 1)


def test_quality_gates_distance():
    """Far but insensitive loses to near but sensitive, a duplicate of a chosen token to both."""
    features = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.6, 0.8], [2.0, 0.0], [0.0, -1.0]]])
    values = torch.tensor([[9.0, 2.0, 8.0, 7.0, 1.0]])  # w = 1, 1/8, 7/8, 3/4, 0
    # distances to the first: 2, 0.4, 0, 1; gains 0.25, 0.35, 0, 0; the duplicate only comes before the weight 0
    assert ZooPrune(estimator="zeroth_order").select(with_sensitivity(features, values), 5).order.tolist() == [
        [0, 2, 1, 3, 4]
    ]


def test_weights_of_zero_come_last_in_order_even_behind_rounded_duplicates():
    x = unit_norm(randn(1, 1, 50).expand(1, 6, 50) * torch.linspace(0.1, 3, 6)[:, None])
    w = torch.tensor([[0.0, 0.5, 1.0, 0.0, 0.25, 0.125]])
    order = greedy_max_min(x, 6, quality=w)[0].tolist()
    assert order[0] == 2
    assert sorted(order[1:4]) == [1, 4, 5]
    assert order[4:] == [0, 3]


def test_equal_sensitivities_leave_plain_diversity():
    features = randn(1, 12, 6)
    order = ZooPrune(estimator="zeroth_order").select(with_sensitivity(features, torch.ones(1, 12)), 7).order
    first = torch.zeros(1, dtype=torch.long)
    assert torch.equal(order, greedy_max_min(unit_norm(features), 7, first=first))


def test_units_are_scaled_by_themselves():
    features, values = randn(2, 8, 6), torch.stack([torch.linspace(1, 2, 8), torch.linspace(1, 200, 8)])
    tokens = with_sensitivity(features, values)
    scores = ZooPrune(estimator="zeroth_order").select(tokens, 3).scores
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-3)


def test_the_control_takes_the_norm_and_needs_nothing_else():
    policy = ZooPrune(estimator="norm", keep=4)
    tokens = visual_tokens(randn(1, 9, 5))
    assert policy.needs == {"features"}
    expected = min_max(tokens.features.norm(dim=-1), denominator_eps=1e-8)
    torch.testing.assert_close(policy.select(tokens, 4).scores, expected)


def test_what_the_estimators_need():
    assert ZooPrune(estimator="zeroth_order").needs == ZooPrune().needs == {"features", "encoder", "projection"}
    assert ZooPrune(features="pre_merger").needs == {"features", "encoder", "projection"} | ZooPrune().needs


def test_the_closed_form_asks_for_the_weights_and_the_estimate_does_not():
    tokens = visual_tokens(randn(2, 40, 6))
    closed, estimated = (Sensitivity(estimator=one)(tokens) for one in ("closed_form", "zeroth_order"))
    assert (closed / estimated).min() > 0.95
    assert (closed / estimated).max() < 1.3


def test_directions_are_unit_vectors_and_differ_by_seed_only():
    one, same, other = (Sensitivity(m=5, seed=seed).directions(7) for seed in (0, 0, 1))
    torch.testing.assert_close(one.norm(dim=-1), torch.ones(5))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "zeroth-order"}, r"did you mean 'zeroth_order'"),
        ({"m": 0}, "m=0"),
        ({"m": 2.0}, "m=2.0"),
        ({"h": 0.0}, "h=0.0"),
        ({"h": float("inf")}, "h=inf"),
        ({"h": "0.01"}, "h='0.01'"),
        ({"seed": -1}, "seed=-1"),
        ({"features": "merger"}, "pre_merger"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        ZooPrune(**arguments)
