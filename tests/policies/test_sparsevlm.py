import pytest
import torch

from tests.allocations import MIB, Allocations
from tests.default_layer_policies import causal_attention, given_attention, layer_tokens, spans
from tokenprune.errors import InvalidArgumentError, UnsupportedPolicyError
from tokenprune.ops import density_peaks, rotary_gravity
from tokenprune.policies import SparseVLM
from tokenprune.policies.sparsevlm import LISTS

SIZES = [(3, 9, 4), (1, 6, 7), (5, 11, 1)]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def raters_of(sizes, seed=0):
    blank = causal_attention(sizes)
    x = 2 * randn(*blank.visual.shape, 8, seed=seed)
    return x, blank.visual, blank.text, SparseVLM().raters(x, blank.visual, blank.text)


def test_raters_are_words_of_more_than_mean_relevance():
    sizes = [*SIZES[:2], (2, 5, 9)]
    x, visual, text, raters = raters_of(sizes)
    for i in range(3):
        words = text[i].nonzero()[:, 0]
        relevance = (x[i, visual[i]] @ x[i, words].T).softmax(1).mean(0)
        assert raters[i].nonzero()[:, 0].tolist() == words[relevance > relevance.mean()].tolist()


@pytest.mark.parametrize(("size", "last"), [((2, 5, 1), 7), ((2, 5, 4), 10), ((3, 0, 4), 6)])
def test_the_last_word_rates_where_none_stands_out(size, last):
    visual, text = spans(*size)
    for x in (torch.zeros(1, visual.shape[1], 4), torch.ones(1, visual.shape[1], 4).half()):
        assert SparseVLM().raters(x, visual, text)[0].nonzero().tolist() == [[last]]
    nobody = SparseVLM().raters(torch.zeros(2, 5, 4), torch.ones(2, 5).bool(), torch.zeros(2, 5).bool())
    assert (nobody.shape, nobody.any()) == ((2, 5), False)


def test_scores_are_means_over_raters_and_heads():
    *_, raters = raters_of(SIZES)
    attention = causal_attention(SIZES, rows="raters", raters=raters)
    scores = SparseVLM().score(attention, SparseVLM().events(32)[0])
    for i in range(3):
        torch.testing.assert_close(scores[i], attention.probabilities[i][:, attention.row_mask[i]].mean((0, 1)))


def test_it_scores_in_a_layer_and_drops_behind_it():
    events = SparseVLM().events(32)
    assert [(event.score, event.drop, event.rows) for event in events] == [(n, n + 1, "raters") for n in (2, 6, 15)]
    assert [SparseVLM().count(event, 576) for event in events] == [309, 204, 113]
    for fields in ({"strict_paper": True}, {"tau": 0}):
        assert [SparseVLM(**fields).count(event, 576) for event in events] == [300, 200, 110]
    assert [SparseVLM(version="plus").count(event, 576) for event in events] == [300, 200, 118]


# visual tokens behind each layer, merged ones included, as published
WITH_MERGED = {192: (309, 204, 113), 128: (312, 117, 39), 96: (249, 55, 27), 64: (82, 32, 18)}


@pytest.mark.parametrize("mean", WITH_MERGED)
def test_the_released_lists_come_with_so_many_merged_tokens(mean):
    n = 576
    for keep, total in zip(LISTS["1.5"][mean], WITH_MERGED[mean], strict=True):
        tokens = layer_tokens(randn(1, n, 4))
        strict = SparseVLM(strict_paper=True).select(tokens, keep)
        assert strict.indices.shape[1] == total
        assert torch.equal(SparseVLM().select(tokens, total).indices, strict.indices)
        n = total


@pytest.mark.parametrize(("tau", "theta"), [(0.3, 0.1), (1.0, 1.0), (0.9, 0.05), (0.0, 0.1)])
def test_kept_and_merged_tokens_are_k_and_at_most_half_of_them_merged(tau, theta):
    policy = SparseVLM(tau=tau, theta=theta)
    for n in range(2, 80):
        for k in range(1, n):
            kept = policy.kept_of(n, k)
            clusters = policy.recycled(n - kept)[1]
            assert kept + min(clusters, k // 2) == k
            assert kept + 1 + min(policy.recycled(n - kept - 1)[1], k // 2) > k or kept == k


@pytest.mark.parametrize("compact", [False, True])
def test_means_of_clusters_stand_behind_or_at_their_centres(compact):
    tokens = layer_tokens(randn(1, 100, 5), compact=compact)
    selection = SparseVLM().select(tokens, 43)  # 57 others: 18 recycled in 2 clusters, with 41 kept
    order = tokens.scores[0].argsort(descending=True)
    kept, recycled = order[:41].sort().values, order[41:59]
    source, indices = selection.source[0], selection.indices[0]
    assert (source[order[59:]] == -1).all()
    merged = source[recycled].unique()
    assert len(merged) == 2
    if compact:
        lost = sorted(set(range(100)) - set(kept.tolist()))
        assert indices.tolist() == sorted(kept.tolist() + lost[-2:])
        assert torch.equal(selection.features[0, :41], tokens.hidden[0, kept])
        assert merged.tolist() == [41, 42]
        assert source[kept].tolist() == list(range(41))
    else:
        centres = set(indices.tolist()) - set(kept.tolist())
        assert centres <= set(recycled.tolist())
        assert torch.equal(selection.features[0, source[kept]], tokens.hidden[0, kept])


def test_clustering_many_tokens_holds_blocks_of_distances():
    """All of them would be 144 MiB."""
    with Allocations() as memory:
        density_peaks(randn(1, 6144, 4), 32)
    assert memory.peak <= 48 * MIB


def test_recycling_goes_by_scores_without_weights():
    scores = torch.rand(1, 60, generator=torch.Generator().manual_seed(1))
    weights = torch.linspace(3, 0.1, 60)[None]
    selection = SparseVLM().select(layer_tokens(randn(1, 60, 4), scores, weights=weights), 20)
    merged = selection.sizes[0].argmax()  # 41 others, 13 recycled in 2 clusters
    best = (scores * weights)[0].argsort(descending=True)
    kept, others = best[:18], best[18:]
    recycled = others[scores[0, others].argsort(descending=True)[:13]]
    carried = {i for i in range(60) if selection.source[0, i] >= 0}
    assert carried == set(kept.tolist()) | set(recycled.tolist())
    assert selection.sizes[0, merged] > 1


def rank_attention(ranks, visual=200, words=12):
    """Prompts whose raters see the image in maps of these ranks."""
    seen, text = spans(2, visual, words)
    rows = torch.zeros(len(ranks), 2, words, 2 + visual + words)
    for i, rank in enumerate(ranks):
        means = randn(words, rank, seed=i).abs() @ randn(rank, visual, seed=9 + i).abs()
        noise = 0.1 * means.mean() * randn(words, visual, seed=20 + i)  # of single heads only
        rows[i, :, :, 2 : 2 + visual] = torch.stack([means + noise, means - noise])
    rows /= rows.sum((1, 2, 3), keepdim=True)
    where = text.nonzero()[None, :, 1].expand(len(ranks), -1)
    return given_attention(rows, where, seen.expand(len(ranks), -1), text.expand(len(ranks), -1))


def test_by_rank_every_prompt_keeps_what_its_raters_say():
    policy = SparseVLM(counts="rank", tau=0, keep=7)
    assert (policy.exact, policy.everywhere) == (False, True)
    event, attention = policy.events(32)[0], rank_attention([1, 3, 12])
    assert policy.count(event, 200) == 200
    scores = policy.score(attention, event)[:, 2:202]
    for i, count in enumerate((13, 40, 162)):
        tokens = layer_tokens(randn(1, 200, 4), scores[i : i + 1])
        indices = policy.select(tokens, 200).indices[0]
        best = attention.probabilities[i].mean((0, 1))[2:202].argsort(descending=True)[:count]
        assert indices.tolist() == best.sort().values.tolist()
        recycled = SparseVLM(counts="rank").select(tokens, 200)
        assert recycled.indices.shape[1] == count + SparseVLM().recycled(200 - count)[1]
    few = rank_attention([4], visual=20)
    assert policy.select(layer_tokens(randn(1, 20, 4), policy.score(few, event)[:, 2:22]), 20).indices.shape == (1, 19)


def test_by_rank_a_unit_of_nothing_but_lost_tokens_keeps_its_best():
    scores = -torch.tensor([[0.1, 0.4, 0.2, 0.0]])
    assert SparseVLM(counts="rank", tau=0).select(layer_tokens(randn(1, 4, 3), scores), 4).indices.tolist() == [[1]]


def plus_attention(**fields):
    *_, raters = raters_of(SIZES)
    return causal_attention(SIZES, rows="raters", raters=raters, heads=6, **fields)


@pytest.mark.parametrize("heads", [2, 6, 99, 0.5, 1.0, 14 / 32])
def test_plus_divides_by_the_rotary_product_and_hears_the_strongest_heads(heads):
    attention = plus_attention()
    attention.place = attention.place * 3  # two of three positions have gone already
    policy = SparseVLM(version="plus", heads=heads)
    scores = policy.score(attention, policy.events(32)[0])
    count = {2: 2, 6: 6, 99: 6, 0.5: 3, 1.0: 6}.get(heads, 3)
    for i in range(3):
        rows = attention.rows[i, attention.row_mask[i]]
        curve = rotary_gravity(3 * rows[None], attention.place[i : i + 1], attention.frequencies)[0].clamp_min(1)
        corrected = attention.probabilities[i][:, attention.row_mask[i]] / curve
        strongest = corrected[..., attention.visual[i]].sum((1, 2)).argsort(descending=True)[:count]
        torch.testing.assert_close(scores[i], corrected[strongest].mean((0, 1)))


def test_plus_where_the_product_is_not_positive():
    attention = plus_attention()
    attention.place = attention.place * 100
    policy = SparseVLM(version="plus")
    scores = policy.score(attention, policy.events(32)[0])
    assert (scores[attention.visual] >= 0).all()
    with pytest.raises(UnsupportedPolicyError, match="not positive at distances of this prompt"):
        SparseVLM(version="plus", strict_paper=True).score(attention, policy.events(32)[0])
    attention.frequencies = None
    with pytest.raises(UnsupportedPolicyError, match="has none of"):
        policy.score(attention, policy.events(32)[0])


def test_plus_is_refused_only_where_the_product_is_needed():
    attention, policy = plus_attention(), SparseVLM(version="plus", strict_paper=True)
    attention.place = torch.where(attention.visual | attention.text, attention.place, attention.place - 900)
    before = ~(attention.visual | attention.text)[0]
    far = rotary_gravity(attention.rows[:1, :1], attention.place[:1, before], attention.frequencies)
    assert (far < 0).any()
    scores = policy.score(attention, policy.events(32)[0])
    assert (scores[attention.visual] >= 0).all()


def test_positions_are_those_of_the_version():
    assert SparseVLM().positions == "compact"
    assert SparseVLM(version="plus").positions == "original"
    assert not SparseVLM(strict_paper=True).exact
    assert SparseVLM(version="plus", strict_paper=True).exact
    assert SparseVLM(version="plus").select(layer_tokens(randn(1, 50, 4)), 20).features is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"version": "2"}, "version='2' is not one of 1.5, plus"),
        ({"counts": "adaptive"}, "counts='adaptive' is not one of schedule, rank"),
        ({"heads": 0}, "heads=0"),
        ({"heads": 1.5}, "heads=1.5"),
        ({"heads": True}, "heads=True"),
        ({"tau": -0.1}, "tau=-0.1"),
        ({"tau": True}, "tau=True"),
        ({"theta": 1.1}, "theta=1.1"),
        ({"theta": "0.1"}, "theta='0.1'"),
        ({"version": "plus", "counts": "rank"}, "counts='rank' is no part"),
        ({"layers": (2, 6)}, "are 2, where the published schedule has 3"),
    ],
    ids=str,
)
def test_what_is_no_variant_is_refused(fields, says):
    with pytest.raises(InvalidArgumentError, match=says):
        SparseVLM(**fields)


def test_by_rank_any_layers_do():
    assert len(SparseVLM(counts="rank", layers=(2, 6, 15, 19)).events(32)) == 4
