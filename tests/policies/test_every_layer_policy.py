"""What holds for every policy inside the language model."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.allocations import MIB, Allocations
from tests.default_layer_policies import (
    LAYER_BY_PLACE,
    LAYER_POLICIES,
    RECYCLING,
    UNSCORED,
    GivenAttention,
    causal_attention,
    layer_tokens,
    layer_unit,
    shuffled,
)
from tokenprune import registry
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import ScheduledPolicy, at_mean, mean_share

every_policy = pytest.mark.parametrize("name", LAYER_POLICIES)
scoring = pytest.mark.parametrize("name", [name for name in LAYER_POLICIES if name not in UNSCORED])
scheduled = pytest.mark.parametrize(
    "name", [n for n in LAYER_POLICIES if isinstance(LAYER_POLICIES[n](), ScheduledPolicy)]
)
N, D = 12, 6
SIZES = [(3, 9, 4), (1, 6, 7), (5, 11, 1)]


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HIDDEN = {
    "random": randn(2, N, D),
    "duplicates": randn(2, 3, D).repeat(1, N // 3, 1),
    "all zero": torch.zeros(2, N, D),
    "huge": 1e4 * randn(2, N, D),
}
SCORES = {
    "random": randn(2, N, seed=1).abs(),
    "few values": torch.tensor([0.0, 0.5, 0.5, 0.25]).repeat(2, N // 4),
    "all zero": torch.zeros(2, N),
    "tiny": 1e-30 * randn(2, N, seed=2).abs(),
}


def attention_of(policy, sizes, number=0, **fields):
    event = policy.events(32)[number]
    raters = None
    if event.rows == "raters":
        blank = causal_attention(sizes)
        raters = policy.raters(randn(*blank.visual.shape, 8), blank.visual, blank.text)
    return causal_attention(sizes, rows=event.rows, raters=raters, **fields), event


def check(selection, tokens, k):
    """Exactly k distinct ascending indices, and a source map that agrees with them and with what was merged."""
    (g, n), indices = tokens.shape, selection.indices
    assert (indices.dtype, indices.shape) == (torch.long, (g, k))
    assert (indices[:, 1:] > indices[:, :-1]).all()
    assert 0 <= indices.min() <= indices.max() < n
    source = selection.source_map(n)
    assert source.shape == (g, n)
    if selection.order is not None:
        assert torch.equal(selection.order.sort(-1).values, indices)
    if selection.features is None:
        assert torch.equal(source.gather(1, indices), torch.arange(k).expand(g, k))
        return
    assert (selection.features.shape, selection.features.dtype) == ((g, k, tokens.hidden.shape[2]), tokens.hidden.dtype)
    if not tokens.compact:
        assert torch.equal(source.gather(1, indices), torch.arange(k).expand(g, k))
    shares = selection.merge_weights(n)
    for i in range(g):
        carried = source[i][source[i] >= 0].bincount(minlength=k)
        assert carried.min() > 0
        assert torch.equal(selection.sizes[i], carried.float())
        for place in range(k):
            share = shares[i, source[i] == place, None]
            mean = (share * tokens.hidden[i, source[i] == place].float()).sum(0).to(tokens.hidden.dtype)
            size = float(tokens.hidden.abs().max())
            torch.testing.assert_close(selection.features[i, place], mean, rtol=1e-5, atol=1e-6 * size)


def test_the_list_holds_every_registered_policy():
    ours = {name for name in registry.list_policies() if registry.get_policy(name).stage == "layer"}
    assert {factory().name for factory in LAYER_POLICIES.values()} == ours


@every_policy
def test_a_policy_states_its_name_stage_cost_and_source(name):
    policy = LAYER_POLICIES[name](keep=3)
    assert registry.get_policy(policy.name) is type(policy)
    assert (policy.stage, policy.needs, policy.exact) == ("layer", frozenset(), True)
    assert policy.positions in ("original", "compact")
    for line in (policy.cost, policy.when, policy.limits):
        assert line.strip()
    assert not type(policy).__doc__.startswith(f"{type(policy).__name__}(")
    assert "Source:" in type(policy).__doc__ or name in LAYER_BY_PLACE


@every_policy
@pytest.mark.parametrize("depth", [4, 5, 24, 28, 32, 40, 80])
def test_events_are_inside_of_any_decoder(name, depth):
    events = LAYER_POLICIES[name](keep=3).events(depth)
    assert [event.number for event in events] == list(range(len(events)))
    drops = [event.drop for event in events]
    assert drops == sorted(set(drops))
    assert drops[0] >= (0 if name in UNSCORED else 1)
    assert drops[-1] < depth
    for event in events:
        assert event.score in (None, event.drop, event.drop - 1)
        assert event.score is not None or name in UNSCORED


@every_policy
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("scores", SCORES)
def test_exactly_k_distinct_ascending_for_every_k(name, compact, hidden, scores):
    tokens = layer_tokens(HIDDEN[hidden], SCORES[scores], compact=compact)
    for k in range(1, N):
        check(LAYER_POLICIES[name](keep=k).select(tokens, k), tokens, k)


@every_policy
def test_a_unit_of_two_tokens(name):
    tokens = layer_tokens(randn(3, 2, D))
    check(LAYER_POLICIES[name](keep=1).select(tokens, 1), tokens, 1)


@scoring
def test_ties_go_to_the_lowest_index(name):
    tokens = layer_tokens(randn(1, 40, D), torch.tensor([0.25, 0.5]).repeat(1, 20))
    selection = LAYER_POLICIES[name](keep=14).select(tokens, 14)
    merged = 0 if selection.features is None else int((selection.sizes > 1).sum())
    assert (merged > 0) == (name in RECYCLING)
    alone = [i for i in selection.indices[0].tolist() if selection.features is None or i % 2 == 1]
    assert alone[: 14 - merged] == list(range(1, 2 * (14 - merged), 2))


@scoring
def test_the_best_by_score_times_weight_stay(name):
    scores, weights = randn(2, N, seed=3).abs(), randn(2, N, seed=4).abs()
    policy = LAYER_POLICIES[name](keep=4)
    found = policy.select(layer_tokens(randn(2, N, D), scores, weights=weights), 4)
    torch.testing.assert_close(found.scores, scores * weights)
    best = (scores * weights).argsort(-1, descending=True)[:, : 3 if name in RECYCLING else 4]
    assert all(set(b.tolist()) <= set(i.tolist()) for b, i in zip(best, found.indices, strict=True))


@every_policy
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_selection_runs_in_float32_whatever_the_dtype(name, dtype):
    hidden = randn(2, 60, D).to(dtype)
    policy = LAYER_POLICIES[name](keep=20)
    half, full = policy.select(layer_tokens(hidden), 20), policy.select(layer_tokens(hidden.float()), 20)
    assert torch.equal(half.indices, full.indices)
    assert torch.equal(half.source_map(60), full.source_map(60))
    if half.features is not None:
        assert torch.equal(half.features, full.features.to(dtype))


@every_policy
@pytest.mark.parametrize("k", [1, 4, 9, 29])
def test_a_batch_of_units_equals_one_unit_at_a_time(name, k):
    tokens = layer_tokens(randn(4, 30, D))
    policy = LAYER_POLICIES[name](keep=k)
    together = policy.select(tokens, k)
    for i in range(4):
        alone = policy.select(layer_unit(tokens, i), k)
        for what in ("indices", "order", "source", "sizes", "features", "scores"):
            if (value := getattr(alone, what)) is not None:
                assert torch.equal(getattr(together, what)[i : i + 1], value), what


@every_policy
def test_selecting_is_repeatable_and_changes_nothing(name):
    tokens, policy = layer_tokens(randn(2, N, D)), LAYER_POLICIES[name](keep=5)
    hidden, scores, fields = tokens.hidden.clone(), tokens.scores.clone(), copy.deepcopy(vars(policy))
    state = torch.random.get_rng_state()
    first = policy.select(tokens, 5).indices
    assert torch.equal(policy.select(tokens, 5).indices, first)
    assert torch.equal(tokens.hidden, hidden)
    assert torch.equal(tokens.scores, scores)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert vars(policy) == fields


@pytest.mark.parametrize("name", [name for name in LAYER_POLICIES if name not in LAYER_BY_PLACE])
def test_shuffled_tokens_give_the_shuffled_selection(name):
    tokens = layer_tokens(randn(2, 60, D))
    shuffle = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    policy = LAYER_POLICIES[name](keep=20)
    here, there = policy.select(tokens, 20), policy.select(shuffled(tokens, shuffle), 20)
    back = shuffle[there.indices].sort(-1)
    assert torch.equal(back.values, here.indices)
    if here.features is not None:
        rows = there.features.gather(1, back.indices[..., None].expand_as(there.features))
        torch.testing.assert_close(rows, here.features)


@pytest.mark.parametrize("name", LAYER_BY_PLACE)
def test_what_is_said_to_go_by_place_does(name):
    tokens = layer_tokens(randn(2, 60, D))
    shuffle = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    policy = LAYER_POLICIES[name](keep=20)
    here, there = policy.select(tokens, 20), policy.select(shuffled(tokens, shuffle), 20)
    back = shuffle[there.indices].sort(-1)
    same = torch.equal(back.values, here.indices)
    if same and here.features is not None:
        rows = there.features.gather(1, back.indices[..., None].expand_as(there.features))
        same = torch.allclose(rows, here.features, atol=1e-3)
    assert not same


@scoring
def test_scores_of_a_padded_batch_are_those_of_each_prompt(name):
    policy = LAYER_POLICIES[name](keep=3)
    for number in range(len(policy.events(32))):
        attention, event = attention_of(policy, SIZES, number)
        together = policy.score(attention, event)
        assert (together.shape, together.dtype) == (attention.visual.shape, torch.float32)
        assert not together[attention.visual].isnan().any()
        for i, size in enumerate(SIZES):
            n = sum(size)
            alone = GivenAttention(
                probabilities=attention.probabilities[i : i + 1, :, attention.row_mask[i], :n],
                rows=attention.rows[i : i + 1, attention.row_mask[i]],
                row_mask=attention.row_mask[i : i + 1, attention.row_mask[i]],
                visual=attention.visual[i : i + 1, :n],
                text=attention.text[i : i + 1, :n],
                place=attention.place[i : i + 1, :n],
                heads=attention.heads,
                frequencies=attention.frequencies,
            )
            torch.testing.assert_close(policy.score(alone, event)[0], together[i, :n])


@scoring
def test_scores_do_not_depend_on_how_many_rows_come_at_once(name):
    policy = LAYER_POLICIES[name](keep=3)
    for number in range(len(policy.events(32))):
        scores = []
        for some in (1, 4, 100):
            attention, event = attention_of(policy, SIZES, number)
            attention.some = some
            scores.append(policy.score(attention, event)[attention.visual])
        torch.testing.assert_close(scores[0], scores[1])
        torch.testing.assert_close(scores[0], scores[2])


class Streamed(GivenAttention):
    """Eight rows at a time, made when they are asked for."""

    def blocks(self):
        for start in range(0, self.rows.shape[1], 8):
            rows = slice(start, start + 8)
            yield rows, torch.full((1, self.heads, self.rows[:, rows].shape[1], self.visual.shape[1]), 1e-3)


@scoring
def test_scoring_holds_nothing_of_length_times_length(name):
    """4096 visual tokens and 256 words: a map of one head would be 72 MiB, of the words over it 4 MiB."""
    policy, heads, length = LAYER_POLICIES[name](keep=64), 4, 4096 + 256
    place = torch.arange(length)[None]
    visual, text = place < 4096, place >= 4096
    for event in policy.events(32):
        rows = {"last": place[:, -1:], "visual": place[:, :4096]}.get(event.rows, place[:, 4096:])
        attention = Streamed(
            probabilities=None,
            rows=rows,
            row_mask=torch.ones_like(rows, dtype=torch.bool),
            visual=visual,
            text=text,
            place=place,
            heads=heads,
            frequencies=10000.0 ** -(torch.arange(8) / 8),
        )
        with Allocations() as memory:
            policy.score(attention, event)
        block = 4 * heads * min(8, rows.shape[1]) * length
        assert memory.peak <= 4 * block + 4 * length * (4 * heads + 64)


@every_policy
def test_selecting_holds_nothing_of_length_times_length(name):
    """4096 tokens: all distances of them would be 64 MiB; those of the recycled 1152 are 5. And the hidden states."""
    n, d, k = 4096, 8, 256
    tokens, policy = layer_tokens(randn(1, n, d)), LAYER_POLICIES[name](keep=k)
    with Allocations() as memory:
        selection = policy.select(tokens, k)
    check(selection, tokens, k)
    assert memory.peak <= (16 * MIB if name in RECYCLING else 0) + 4 * n * (8 * d + 32)


@scheduled
def test_a_schedule_ends_at_the_budget_and_never_grows(name):
    for keep, last in ((64, 64), (0.25, 144), (1.0, 576), (576, 576)):
        policy = LAYER_POLICIES[name](keep=keep)
        counts = [policy.count(event, 576) for event in policy.events(32)]
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] == last
    policy = LAYER_POLICIES[name]()
    counts = [policy.count(event, 576) for event in policy.events(32)]
    assert counts == [round(576 * share) for share in policy.published]


@every_policy
@pytest.mark.parametrize("share", [0.5, 0.35])
def test_a_mean_share_is_met_or_just_less(name, share):
    share = max(share, 0.01 + mean_share(LAYER_POLICIES[name](keep=1), 32, 576))  # what late layers leave
    policy = at_mean(LAYER_POLICIES[name](), share, depth=32, total=576)
    more = replace(policy, keep=policy.keep + 1)
    assert mean_share(policy, 32, 576) <= share < mean_share(more, 32, 576)


@scheduled
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"layers": ()}, "prunes nowhere"),
        ({"layers": (-1, 4), "keeps": (0.5, 0.2)}, "has -1"),
        ({"layers": (1.0, 0.5), "keeps": (0.5, 0.2)}, "has 1.0"),
        ({"layers": (True, 4), "keeps": (0.5, 0.2)}, "has True"),
        ({"layers": ("2", 4), "keeps": (0.5, 0.2)}, "has '2'"),
        ({"layers": (2, 4), "keeps": (0.5,)}, "has 1 entries"),
        ({"layers": (2, 4), "keeps": (0.5, 1.5)}, "keep=1.5"),
        ({"layers": (2, 4), "keeps": (0.5, 0.0)}, "keep=0.0"),
        ({"layers": (2, 4), "keeps": (0.5, 0.2), "keep": 4}, "both given"),
        ({"keep": 0}, "keep=0"),
        ({"rounding": "up"}, "rounding='up'"),
    ],
    ids=str,
)
def test_what_is_no_schedule_is_refused(name, fields, says):
    with pytest.raises(InvalidArgumentError, match=says):
        LAYER_POLICIES[name](**fields)


@scheduled
def test_layers_that_a_decoder_does_not_have_are_refused(name):
    def policy(*layers):
        return LAYER_POLICIES[name](layers=layers, keeps=(0.5, 0.2))

    with pytest.raises(InvalidArgumentError, match="has 40, where tokens would leave layer 4[01] of a decoder with 32"):
        policy(2, 40).events(32)
    with pytest.raises(InvalidArgumentError, match="do not rise"):
        policy(7, 3).events(32)
    with pytest.raises(InvalidArgumentError, match="do not rise"):
        policy(3, 3).events(32)
