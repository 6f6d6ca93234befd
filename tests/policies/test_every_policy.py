"""What holds for every policy on the list."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.allocations import MIB, Allocations
from tests.default_policies import (
    BY_PLACE,
    POLICIES,
    SUMMARY,
    cast,
    permuted,
    same_everywhere,
    taken,
    unit,
    visual_tokens,
    without,
    wordless,
)
from tokenprune import registry
from tokenprune.ops import nearest_other, unit_norm
from tokenprune.tokens import Tap

every_policy = pytest.mark.parametrize("name", POLICIES)
few = settings(max_examples=25, deadline=None, derandomize=True)
N, D = 12, 6


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FEATURES = {
    "random": randn(2, N, D),
    "duplicates": randn(2, 3, D).repeat(1, N // 3, 1),
    "rank one": randn(2, N, 1) * randn(2, 1, D),
    "rank two": randn(2, N, 2) @ randn(2, 2, D),
    "all equal": randn(2, 1, D).expand(2, N, D),
    "some zero": randn(2, N, D) * (torch.arange(N) % 3 > 0)[:, None],
    "all zero": torch.zeros(2, N, D),
    "huge": 1e4 * randn(2, N, D),
    "tiny": 1e-6 * randn(2, N, D),
}


def ask(policy, tokens, k):
    """The policy's answer; where it compares frames and the tokens form no grid, each of them is a frame."""
    if tokens.grid is None and "image" not in policy.kinds:
        tokens = replace(tokens, grid=(tokens.shape[1], 1, 1))
    return policy.select(tokens, k)


def check(selection, g, n, k):
    """Exactly k distinct ascending indices, and an order and a source map that agree with them."""
    indices = selection.indices
    assert (indices.dtype, indices.shape) == (torch.long, (g, k))
    assert (indices[:, 1:] > indices[:, :-1]).all()
    assert indices.min() >= 0
    assert indices.max() < n
    if selection.order is not None:
        assert torch.equal(selection.order.sort(-1).values, indices)
    source = selection.source_map(n)
    assert source.shape == (g, n)
    assert torch.equal(source.gather(1, indices), torch.arange(k).expand(g, k))
    if selection.scores is not None:
        assert selection.scores.shape == (g, n)
        assert selection.scores.dtype == torch.float32
        assert not selection.scores.isnan().any()
    if selection.features is None:
        assert ((source >= 0).sum(-1) == k).all()
        assert selection.weights is None
    else:
        assert selection.features.shape[:2] == (g, k)
        assert selection.features.isfinite().all()
        carried = [row[row >= 0].bincount(minlength=k) for row in source]
        assert torch.equal(selection.sizes, torch.stack(carried).float())
        if selection.weights is not None:
            assert selection.weights.shape == (g, n)
            assert selection.weights.isfinite().all()


def test_the_list_holds_every_registered_policy():
    """But those of other stages: "processor" sees pixels only, "layer" and "vision" have lists of their own, "skip" and
    "encoder" are about all tokens."""
    stages = {name: registry.get_policy(name).stage for name in registry.list_policies()}
    assert {factory().name for factory in POLICIES.values()} == {
        name for name, stage in stages.items() if stage == "projector"
    }
    assert set(stages.values()) <= {"projector", "processor", "layer", "vision", "skip", "encoder"}
    assert set(BY_PLACE) <= set(POLICIES)


@every_policy
def test_a_policy_states_its_name_stage_needs_cost_and_source(name):
    policy = POLICIES[name](keep=3)
    assert registry.get_policy(policy.name) is type(policy)
    assert policy.stage == "projector"
    assert {one for one in policy.needs if not isinstance(one, Tap)} <= {
        "features",
        "encoder",
        "projection",
        "text",
        "instruction",
    }
    assert "projection" not in policy.needs or "encoder" in policy.needs  # what it is asked to project
    assert policy.exact  # what answers other counts is for comparisons with papers, and no entry of the list
    for line in (policy.cost, policy.when, policy.limits):
        assert line.strip()
    assert type(policy).__doc__
    assert not type(policy).__doc__.startswith(f"{type(policy).__name__}(")  # what a dataclass without one gets


@every_policy
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("grid", [None, (1, 3, 4), (3, 2, 2)], ids=str)
def test_exactly_k_distinct_ascending_for_every_k(name, features, grid):
    tokens = visual_tokens(FEATURES[features], grid=grid)
    for k in range(1, N + 1):
        policy = POLICIES[name](keep=k)
        check(ask(policy, tokens, k), 2, N, policy.budget.count(N))


@every_policy
def test_a_unit_of_two_tokens(name):
    policy = POLICIES[name](keep=1)
    check(ask(policy, visual_tokens(randn(3, 2, D)), 1), 3, 2, policy.budget.count(2))


@every_policy
def test_an_instruction_without_words(name):
    tokens = visual_tokens(randn(2, N, D), text=torch.zeros(2, 0, D), text_mask=torch.zeros(2, 0, dtype=torch.bool))
    policy = POLICIES[name](keep=5)
    check(ask(policy, tokens, 5), 2, N, policy.budget.count(N))


@every_policy
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_selection_runs_in_float32_whatever_the_dtype(name, dtype):
    policy = POLICIES[name](keep=5)
    half = visual_tokens(randn(2, N, D).to(dtype))
    full = visual_tokens(half.features.float(), text=half.text.float())
    of_half, of_full = ask(policy, half, 5), ask(policy, full, 5)
    assert torch.equal(of_half.indices, of_full.indices)
    if of_half.features is not None:
        assert torch.equal(of_half.features, of_full.features.to(dtype))
    if of_half.scores is not None:
        assert of_half.scores.dtype == torch.float32


@every_policy
@pytest.mark.parametrize("k", [1, 4, N - 1])
def test_a_batch_of_units_equals_one_unit_at_a_time(name, k):
    tokens = visual_tokens(randn(4, N, D), grid=(1, 3, 4))
    policy = POLICIES[name](keep=k)
    together = ask(policy, tokens, k)
    for i in range(4):
        alone = ask(policy, unit(tokens, i), k)
        assert torch.equal(together.indices[i : i + 1], alone.indices)
        if alone.features is not None:
            torch.testing.assert_close(together.features[i : i + 1], alone.features)


@every_policy
def test_selecting_is_repeatable_and_leaves_inputs_and_the_global_generator_alone(name):
    tokens, policy = visual_tokens(randn(2, N, D)), POLICIES[name](keep=5)
    features, state = tokens.features.clone(), torch.random.get_rng_state()
    first = ask(policy, tokens, 5).indices
    assert torch.equal(ask(policy, tokens, 5).indices, first)
    assert torch.equal(tokens.features, features)
    assert torch.equal(torch.random.get_rng_state(), state)


def grids(n):
    """Frames, rows and columns of n tokens, or none."""
    return [
        None,
        *((t, h, n // t // h) for t in range(1, n + 1) for h in range(1, n + 1) if n % t == 0 and n // t % h == 0),
    ]


@st.composite
def plain_units(draw, independent=False):
    """Up to three units of random tokens without ties, and a budget. Independent: none is a sum of others."""
    g, n = draw(st.integers(1, 3)), draw(st.integers(3 if independent else 2, 12))
    d = draw(st.integers(n + 1, n + 6) if independent else st.integers(2, 8))
    seed = draw(st.integers(0, 2**31))
    tokens = visual_tokens(randn(g, n, d, seed=seed + 1), seed=seed, grid=draw(st.sampled_from(grids(n))))
    return tokens, draw(st.sampled_from([1, n]) | st.integers(1, n))


@st.composite
def odd_units(draw):
    """The same with what real images do not have, or not often: any of it may come together."""
    tokens, k = draw(plain_units())
    (g, n), draws = tokens.shape, torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        different = draw(st.integers(1, n))
        tokens = taken(tokens, torch.randint(different, (n,), generator=draws))
    if draw(st.booleans()):
        share = draw(st.sampled_from([0.2, 0.6, 1.0]))
        tokens = without(tokens, torch.rand(g, n, generator=draws) < share)
    for change in (same_everywhere, wordless):
        tokens = change(tokens) if draw(st.booleans()) else tokens
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    return cast(tokens, dtype), k


@every_policy
@few
@given(odd=odd_units())
def test_whatever_the_tokens_it_is_a_selection(name, odd):
    tokens, k = odd
    policy = POLICIES[name](keep=k)
    selection = ask(policy, tokens, k)
    check(selection, *tokens.shape, policy.budget.count(tokens.shape[1]))
    if selection.features is not None:
        assert selection.features.dtype == tokens.features.dtype
        assert selection.features.shape[2] == tokens.features.shape[2]


@every_policy
@few
@given(plain=plain_units())
def test_units_of_a_batch_do_not_meet(name, plain):
    tokens, k = plain
    policy = POLICIES[name](keep=k)
    together = ask(policy, tokens, k)
    for i in range(tokens.shape[0]):
        alone = ask(policy, unit(tokens, i), k)
        for what in ("indices", "order", "source", "sizes"):
            if getattr(alone, what) is not None:
                assert torch.equal(getattr(together, what)[i : i + 1], getattr(alone, what)), what
        for what in ("features", "weights", "scores"):
            if getattr(alone, what) is not None:
                torch.testing.assert_close(getattr(together, what)[i : i + 1], getattr(alone, what))


@every_policy
@few
@given(plain=plain_units(), dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_is_only_another_way_to_write_the_numbers(name, plain, dtype):
    """What comes in is rounded, but nothing that the choice depends on is after that."""
    tokens, k = plain
    half = cast(tokens, dtype)
    policy = POLICIES[name](keep=k)
    of_half, of_full = ask(policy, half, k), ask(policy, cast(half, torch.float32), k)
    assert torch.equal(of_half.indices, of_full.indices)
    if of_half.order is not None:
        assert torch.equal(of_half.order, of_full.order)
    assert torch.equal(of_half.source_map(tokens.shape[1]), of_full.source_map(tokens.shape[1]))
    if of_half.features is not None:
        size = float(of_full.features.abs().max())
        torch.testing.assert_close(of_half.features.float(), of_full.features, rtol=0, atol=0.03 * size)


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in BY_PLACE])
@few
@given(plain=plain_units(independent=True), seed=st.integers(0, 2**31))
def test_shuffled_tokens_give_the_shuffled_selection(name, plain, seed):
    tokens, k = plain
    shuffle = torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(seed))
    policy = POLICIES[name](keep=k)
    if name.startswith("divprune"):  # two tokens that are each other's nearest may be the farthest from all others
        lowest = nearest_other(unit_norm(policy.compared(tokens))).sort(dim=-1).values
        assume(bool((lowest[:, 1] > lowest[:, 0]).all()))
    here, there = ask(policy, tokens, k), ask(policy, permuted(tokens, shuffle), k)
    picks = slice(0, k - 1 if name in SUMMARY else k)
    assert torch.equal(shuffle[there.order][:, picks], here.order[:, picks])
    if here.features is not None:
        rows = [
            one.features.gather(1, torch.searchsorted(one.indices, one.order)[..., None].expand_as(one.features))
            for one in (here, there)
        ]
        torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in BY_PLACE if name != "none"])
def test_what_is_said_to_go_by_place_does(name):
    """Some order of some tokens changes the answer, so the exception from the test above is one."""
    tokens = visual_tokens(randn(8, N, D), grid=(1, 3, 4))
    for k in (2, 5, 8, 10):
        policy = POLICIES[name](keep=k)
        here = ask(policy, tokens, k).indices
        for seed in range(8):
            shuffle = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
            if not torch.equal(shuffle[ask(policy, permuted(tokens, shuffle), k).indices].sort(-1).values, here):
                return
    pytest.fail(f"{name!r} answered every order alike: take it off BY_PLACE.")


# Policies that work on blocks of 64 MiB: of similarities, of distances, or of moved features
BLOCKED = ("divprune", "zooprune", "fastvid")


def test_the_allocation_counter_sees_what_it_should():
    with Allocations() as memory:
        x = torch.zeros(2**18)
        view = x[:10]
        y = x + 1
        del y
        z = x * 2
    assert (memory.largest, memory.peak) == (MIB, 2 * MIB)
    assert view.shape[0] + z.shape[0] > 0


@every_policy
def test_memory_stays_linear_at_16384_tokens(name):
    """One 64 MiB block of similarities and a few [N, k] and [N, D] floats; N x N would be 1024 MiB."""
    n, d, k = 16384, 8, 32
    tokens = visual_tokens(randn(1, n, d), grid=(16, 32, 32))
    policy = POLICIES[name](keep=k)
    with Allocations() as memory:
        selection = ask(policy, tokens, k)
    check(selection, 1, n, policy.budget.count(n))
    assert memory.largest <= 64 * MIB
    assert memory.peak <= 64 * MIB + 4 * n * (2 * k + 8 * d + 32)
    if not name.startswith(BLOCKED):
        assert memory.peak <= 4 * n * (3 * k + 8 * d + 32)
