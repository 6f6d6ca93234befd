import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.ops import greedy_dpp, greedy_max_min, nearest_other, plain, top_k, unit_norm

SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=40, deadline=None, derandomize=True)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


IMPLEMENTATIONS = pytest.mark.parametrize(
    ("max_min", "dpp"), [(greedy_max_min, greedy_dpp), (plain.max_min, plain.dpp)], ids=["lazy", "plain"]
)


def at_their_length(x):
    """Keywords under which S_ij is x_i . x_j."""
    return {"scale": torch.ones(x.shape[:2])}


def test_top_k_takes_the_lowest_index_among_equals():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float16)
    assert top_k(scores, 4).tolist() == [[1, 2, 4, 3], [0, 1, 2, 3]]
    many = torch.arange(5000) % 2  # short rows are sorted stably in any case
    assert top_k(many[None], 2500).tolist() == [list(range(1, 5000, 2))]


@pytest.mark.parametrize("elements", [1, 60, 130, 10**6])
def test_nearest_other_in_blocks_equals_dense(monkeypatch, elements):
    monkeypatch.setattr(plain, "BLOCK_ELEMENTS", elements)
    x = unit_norm(randn(3, 20, 6))
    dense = x @ x.mT
    dense.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    torch.testing.assert_close(nearest_other(x), dense.amax(-1))


def test_nearest_other_of_a_single_token_is_minus_infinity():
    assert nearest_other(torch.ones(1, 1, 4)).tolist() == [[-torch.inf]]


@pytest.mark.parametrize("d", [3, 17, 64])
def test_two_tokens_that_are_each_others_nearest_tie_exactly(d):
    """A matrix product may round x_i . x_j and x_j . x_i apart, and otherwise in a batch than alone."""
    x = unit_norm(randn(40, 1, 6, d) + 0.3 * randn(40, 2, 6, d, seed=1)).transpose(1, 2).flatten(1, 2)  # six pairs
    nearest = nearest_other(x)
    similarity = (x @ x.mT).double()
    similarity.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    partner = similarity.argmax(-1)
    mutual = partner.gather(1, partner) == torch.arange(12)
    assert mutual.sum() > 100
    assert torch.equal(nearest[mutual], nearest.gather(1, partner)[mutual])
    assert torch.equal(nearest, torch.cat([nearest_other(one[None]) for one in x]))


def naive_max_min_value(x, chosen, candidate):
    """Smallest distance of a candidate to those chosen; for the first pick, to any other token. Float64."""
    others = chosen or [i for i in range(len(x)) if i != candidate]
    return min(float(1 - x[candidate] @ x[i]) for i in others)


@IMPLEMENTATIONS
@few
@given(seed=SEEDS, n=st.integers(2, 9), d=st.integers(2, 5), data=st.data())
def test_max_min_matches_a_naive_float64_greedy(max_min, dpp, seed, n, d, data):
    k = data.draw(st.integers(1, n))
    x = randn(n, d, seed=seed, dtype=torch.float64)
    order = max_min(x.float()[None], k)[0].tolist()
    x = x / x.norm(dim=-1, keepdim=True)
    assert len(set(order)) == k
    for t, pick in enumerate(order):
        best = max(naive_max_min_value(x, order[:t], i) for i in range(n) if i not in order[:t])
        assert naive_max_min_value(x, order[:t], pick) >= best - 1e-6


@IMPLEMENTATIONS
def test_max_min_first_pick_can_be_given(max_min, dpp):
    assert max_min(randn(2, 8, 3), 3, first=torch.tensor([5, 2]))[:, 0].tolist() == [5, 2]


@IMPLEMENTATIONS
def test_max_min_ties_go_to_the_lowest_index(max_min, dpp):
    axes = torch.eye(300)  # every pair at distance 1
    assert max_min(axes[None], 200).tolist() == [list(range(200))]


@IMPLEMENTATIONS
def test_max_min_answers_the_lowest_remaining_index_once_only_duplicates_are_left(max_min, dpp):
    x = torch.eye(2)[[0, 0, 1, 0, 1]]
    # every token has a twin, so it starts at 0; then the first token of the other direction; then what is left
    assert max_min(x[None], 5).tolist() == [[0, 2, 1, 3, 4]]


@IMPLEMENTATIONS
def test_max_min_of_scaled_tokens(max_min, dpp):
    """Distances 1 - x_i . x_j from the first: -, 0, 2, 1; from the third, too: -, 0, -, 1."""
    x = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [-1.0, 1.0], [0.0, 1.0]]])
    assert max_min(x, 4, first=torch.tensor([0]), **at_their_length(x)).tolist() == [[0, 2, 1, 3]]


@IMPLEMENTATIONS
@few
@given(seed=SEEDS, n=st.integers(1, 6), weight=st.sampled_from([0.0, 0.3, 1.0]), data=st.data())
def test_dpp_matches_a_brute_force_float64_greedy_determinant(max_min, dpp, seed, n, weight, data):
    k = data.draw(st.integers(1, n))
    x, r = randn(n, n + 2, seed=seed, dtype=torch.float64), 0.1 + randn(n, seed=seed + 1, dtype=torch.float64).abs()
    kernel = (x @ x.T) * ((1 - weight) + weight * r[:, None] * r)
    order = dpp(x.float()[None], k, quality=r.float()[None], weight=weight, **at_their_length(x[None]))[0].tolist()
    assert len(set(order)) == k

    def determinant(subset):
        return float(torch.linalg.det(kernel[subset][:, subset]))

    for t in range(k):
        best = max(determinant([*order[:t], i]) for i in range(n) if i not in order[:t])
        assert determinant(order[: t + 1]) >= best * (1 - 1e-4)


@IMPLEMENTATIONS
def test_dpp_ties_go_to_the_lowest_index(max_min, dpp):
    assert dpp(torch.eye(300)[None], 200).tolist() == [list(range(200))]


@IMPLEMENTATIONS
def test_dpp_of_equally_good_tokens_starts_with_the_lowest(max_min, dpp):
    """Lengths of unit vectors round apart; the diagonal does not."""
    x = randn(20, 50, 17)
    assert dpp(x, 1).tolist() == [[0]] * 20
    assert dpp(x, 1, quality=torch.full((20, 50), 0.7)).tolist() == [[0]] * 20


@IMPLEMENTATIONS
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_dpp_beyond_the_rank_continues_with_the_highest_diagonal(max_min, dpp, rank):
    x = unit_norm(randn(1, 12, rank)) * torch.linspace(1, 2, 12)[:, None]
    order = dpp(x, 12, **at_their_length(x))[0].tolist()
    assert sorted(order) == list(range(12))
    independent = x[0, order[:rank]].double()
    assert torch.linalg.matrix_rank(independent) == rank
    rest = [i for i in range(11, -1, -1) if i not in order[:rank]]  # the diagonal grows with the index
    assert order[rank:] == rest


@IMPLEMENTATIONS
def test_dpp_of_zeros_is_the_lowest_indices(max_min, dpp):
    assert dpp(torch.zeros(1, 5, 5), 3).tolist() == [[0, 1, 2]]
    assert dpp(randn(1, 5, 5), 3, quality=torch.zeros(1, 5)).tolist() == [[0, 1, 2]]


@IMPLEMENTATIONS
def test_dpp_eps_only_shifts_the_pivots(max_min, dpp):
    x = randn(1, 30, 16)
    assert dpp(x, 8, eps=1e-6).tolist() == dpp(x, 8).tolist()
    assert dpp(x, 12, eps=10.0).tolist() != dpp(x, 12).tolist()


@IMPLEMENTATIONS
@pytest.mark.parametrize("k", [1, 5, 11])
def test_units_of_a_batch_do_not_meet(max_min, dpp, k):
    x = randn(4, 11, 7)
    for run in (max_min, dpp):
        assert run(x, k).tolist() == [run(x[i : i + 1], k)[0].tolist() for i in range(4)]
