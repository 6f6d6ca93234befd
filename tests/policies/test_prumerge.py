import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError, PolicyError
from tokenprune.ops import unit_norm
from tokenprune.policies import PruMerge, PruMergePlus
from tokenprune.policies.prumerge import ATTENTION, KEYS


def tokens_of(n=40, seed=0, attention=None):
    tokens = visual_tokens(torch.randn(2, n, 6, generator=torch.Generator().manual_seed(seed)), seed=seed)
    if attention is None:
        return tokens
    tower = {ATTENTION: attention[..., None, None], KEYS: tokens.tower[KEYS][: len(attention)]}
    return visual_tokens(tokens.features[: len(attention)], encoder=tokens.encoder[: len(attention)], tower=tower)


def check_merge(policy, tokens, selection):
    """Features of a selection against sums over python lists: every centre with its neighbours, then the summary."""
    n = tokens.shape[1]
    for g in range(tokens.shape[0]):
        a, x = tokens.tower[ATTENTION][g].sum((1, 2)), tokens.encoder[g]
        key = unit_norm(tokens.tower[KEYS][g].mean(1)).double()
        *centres, summary = selection.order[g].tolist()
        rest = [i for i in range(n) if i not in centres]
        assert summary == rest[-1]
        expected = {summary: sum(a[i] * x[i] for i in rest)}
        for c in centres:
            near = sorted((i for i in range(n) if i != c), key=lambda i, c=c: -float(key[c] @ key[i]))
            expected[c] = x[c] + sum(a[i] * x[i] for i in near[: policy.neighbours])
        merged = torch.stack([expected[i] for i in selection.indices[g].tolist()])
        torch.testing.assert_close(selection.features[g], tokens.projection.apply(merged), rtol=1e-4, atol=1e-4)
        place = selection.indices[g].tolist().index(summary)
        assert (selection.source[g] == place).nonzero()[:, 0].tolist() == rest
        torch.testing.assert_close(selection.weights[g, rest], a[rest])
        assert (selection.weights[g, centres] == 1).all()


@pytest.mark.parametrize(
    "policy", [PruMerge(), PruMergePlus(), PruMerge(neighbours=3), PruMerge(neighbours=0)], ids=str
)
@pytest.mark.parametrize("k", [1, 2, 9, 39])
def test_it_matches_a_slow_one(policy, k):
    tokens = tokens_of()
    selection = policy.select(tokens, k)
    assert selection.indices.shape == (2, k)
    check_merge(policy, tokens, selection)


def test_centres_are_the_most_attended():
    tokens = tokens_of()
    order = PruMerge().select(tokens, 9).order
    assert torch.equal(order[:, :8], tokens.tower[ATTENTION].sum((2, 3)).topk(8).indices)


def test_plus_shares_the_centres_with_evenly_spread_tokens():
    attention = torch.zeros(1, 12)
    attention[0, [2, 7]] = torch.tensor([0.2, 0.3])
    order = PruMergePlus().select(tokens_of(12, attention=attention), 8).order
    # 7 centres, 2 of them by attention; the middles of 5 equal stretches of the 10 other tokens; the last one dropped
    assert order.tolist() == [[7, 2, 1, 4, 6, 9, 11, 10]]


@pytest.fixture
def attention():
    """5 of 60 tokens stand out."""
    a = torch.linspace(0.009, 0.011, 60)
    a[[7, 30, 31, 45, 58]] = torch.tensor([0.05, 0.09, 0.07, 0.08, 0.06])
    return a[None]


def test_the_adaptive_rule_counts_outliers_whatever_the_budget(attention):
    tokens = tokens_of(60, attention=attention)
    policy = PruMerge(strict_paper=True)
    assert not policy.exact
    assert policy.adaptive_count(tokens).tolist() == [5]
    selection = policy.select(tokens, 17)
    assert selection.order.tolist() == [[30, 45, 31, 58, 7, 59]]
    check_merge(policy, tokens, selection)


def test_plus_leaves_one_token_for_the_summary_where_its_grid_reaches_them_all():
    """An outlier at the end, and a stride of 1: every token would be a centre."""
    attention = torch.tensor([[1.0, 1.0, 1.0, 1.0, 9.0]])
    tokens = tokens_of(5, attention=attention)
    selection = PruMergePlus(strict_paper=True).select(tokens, 3)
    assert selection.indices.tolist() == [[0, 1, 2, 3, 4]]
    assert selection.order.tolist() == [[4, 0, 1, 2, 3]]


def test_plus_adds_the_released_grid(attention):
    tokens = tokens_of(60, attention=attention)
    policy = PruMergePlus(strict_paper=True)
    selection = policy.select(tokens, 17)
    # 60 / 5 = 12, a third is 4: 0, 4, 8, ... below 59; 58 is no multiple of 4
    assert selection.order.tolist() == [[30, 45, 31, 58, 7, *range(0, 59, 4), 59]]
    check_merge(policy, tokens, selection)


def test_the_adaptive_rule_without_outliers():
    tokens = tokens_of(40, attention=torch.full((1, 40), 1 / 40))
    assert PruMerge(strict_paper=True).select(tokens, 5).order.tolist() == [[39]]
    with pytest.raises(PolicyError, match="no token among N=40 that stands out"):
        PruMergePlus(strict_paper=True).select(tokens, 5)


def test_a_count_of_neighbours_is_no_share():
    with pytest.raises(InvalidArgumentError, match=r"neighbours=0\.5"):
        PruMerge(neighbours=0.5)
