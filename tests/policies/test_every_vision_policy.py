"""What holds for every policy inside the vision transformer."""

import math
from dataclasses import replace

import pytest
import torch

from tests.allocations import MIB, Allocations
from tests.default_vision_policies import (
    DEPTH,
    GRID,
    NO_PREFIX,
    PATCHES,
    SCHEDULES,
    VISION_POLICIES,
    block_tokens,
    image,
    prefix_of,
    steps,
)
from tokenprune import registry
from tokenprune.errors import InvalidArgumentError

every_policy = pytest.mark.parametrize("name", VISION_POLICIES)
D = 6
KEEPS = (39, 33, 20, 14, 10, 0.25, 0.5, 0.9)
UNNAMED = ("random-blocks",)  # by no paper


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FEATURES = {
    "random": lambda n: randn(2, n, D),
    "duplicates": lambda n: randn(2, 3, D).repeat(1, n, 1)[:, :n],
    "all zero": lambda n: torch.zeros(2, n, D),
    "huge": lambda n: 1e4 * randn(2, n, D),
}
ATTENTION = {
    "random": lambda n: randn(2, n, seed=1).softmax(-1),
    "few values": lambda n: torch.tensor([0.0, 0.5, 0.5, 0.25]).repeat(2, n)[:, :n],
    "all zero": lambda n: torch.zeros(2, n),
    "tiny": lambda n: 1e-30 * randn(2, n, seed=2).abs(),
}


def walk(policy, name, features="random", attention="random", *, patches=PATCHES, dtype=torch.float32, **fields):
    prefix = prefix_of(name)
    hidden = FEATURES[features](patches + prefix).to(dtype)
    keys, paid = hidden.float() + 0.1 * (features == "random"), ATTENTION[attention](patches + prefix)
    return list(steps(policy, hidden, keys, paid, prefix=prefix, **fields))


def check(reduction, tokens, k, merges):
    """As many distinct places as asked for, the prefix in front as it is; carriers and weights that make sense."""
    (g, n), p, order = tokens.shape, tokens.prefix, reduction.order
    assert (order.dtype, order.shape) == (torch.long, (g, p + k))
    assert torch.equal(order[:, :p], torch.arange(p).expand(g, p))
    assert all(len(set(row)) == p + k for row in order.tolist())
    assert 0 <= order.min() <= order.max() < n
    if (source := reduction.source) is None:
        assert not merges
        return
    assert (source.dtype, source.shape) == (torch.long, (g, n))
    assert torch.equal(source.gather(1, order), torch.arange(p + k).expand(g, p + k))
    assert -1 <= source.min() <= source.max() < p + k
    assert source.min() >= 0 or not merges
    assert (source[:, p:] >= p).all() or not merges  # nobody joins the prefix
    if (weights := reduction.weights) is not None:
        assert (weights.shape, bool(weights.isfinite().all())) == ((g, n), True)
        assert torch.equal(weights[:, :p], torch.ones(g, p))


def test_the_list_holds_every_registered_policy():
    ours = {name for name in registry.list_policies() if registry.get_policy(name).stage == "vision"}
    assert {factory().name for factory in VISION_POLICIES.values()} == ours
    assert set(SCHEDULES) == set(VISION_POLICIES)


@every_policy
def test_a_policy_states_its_name_stage_cost_and_source(name):
    policy = VISION_POLICIES[name](keep=3)
    assert registry.get_policy(policy.name) is type(policy)
    assert (policy.stage, policy.needs, policy.budgeted) == ("vision", frozenset(), True)
    assert policy.reads <= {"keys", "class_attention"}
    for line in (policy.cost, policy.when, policy.limits):
        assert line.strip()
    assert not type(policy).__doc__.startswith(f"{type(policy).__name__}(")
    assert "Source:" in type(policy).__doc__ or policy.name in UNNAMED


@every_policy
@pytest.mark.parametrize("keep", [*KEEPS, 40, 41, 1.0])
@pytest.mark.parametrize("depth", [3, 6, 12, 24])
def test_counts_never_rise_and_end_at_the_budget(name, keep, depth):
    policy = VISION_POLICIES[name](keep=keep)
    counts = policy.counts(depth, PATCHES, GRID)
    assert len(counts) == depth
    assert counts == sorted(counts, reverse=True)
    assert counts[0] <= PATCHES
    assert counts[-1] == policy.budget.count(PATCHES)
    assert all(type(count) is int for count in counts)


@every_policy
def test_a_schedule_without_a_budget_never_rises(name):
    counts = VISION_POLICIES[name](**SCHEDULES[name]).counts(DEPTH, PATCHES, GRID)
    assert len(counts) == DEPTH
    assert PATCHES > counts[-1] >= 1
    assert counts == sorted(counts, reverse=True)


@every_policy
def test_two_budgets_are_refused(name):
    field = next(iter(SCHEDULES[name]))
    with pytest.raises(InvalidArgumentError, match=rf"keep=8 and {field}=.* are both given: drop one of them"):
        VISION_POLICIES[name](keep=8, **SCHEDULES[name])


@every_policy
@pytest.mark.parametrize("keep", [0, 1.5, True, "many", math.nan])
def test_what_is_no_budget_is_refused(name, keep):
    with pytest.raises(InvalidArgumentError, match="keep="):
        VISION_POLICIES[name](keep=keep)


@every_policy
def test_a_tower_counts_by_image_alone(name):
    for fields in ({"per": "frame"}, {"per": "crop", "of": "image"}):
        with pytest.raises(InvalidArgumentError, match="leave both out"):
            VISION_POLICIES[name](keep=8, **fields)


@every_policy
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("attention", ATTENTION)
def test_exactly_k_distinct_the_prefix_first(name, features, attention):
    asked = [VISION_POLICIES[name](keep=keep) for keep in KEEPS] + [VISION_POLICIES[name](**SCHEDULES[name])]
    for policy in asked:
        found = walk(policy, name, features, attention)
        assert found
        for tokens, k, reduction in found:
            check(reduction, tokens, k, policy.merges)


@every_policy
@pytest.mark.parametrize("patches", [2, 3, 4, 5, 8])
def test_small_images(name, patches):
    grid = (4, patches, 1) if name in NO_PREFIX else (1, patches, 1)
    patches = math.prod(grid)
    for keep in range(patches // 2 + 1, patches):
        policy = VISION_POLICIES[name](keep=keep)
        found = walk(policy, name, patches=patches, grid=grid)
        assert found[-1][1] == keep
        for tokens, k, reduction in found:
            check(reduction, tokens, k, policy.merges)


@every_policy
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_any_prefix_is_left_alone(name, prefix):
    if name in NO_PREFIX:
        prefix = 0
    policy, hidden = VISION_POLICIES[name](keep=10), randn(2, PATCHES + prefix, D)
    found = list(steps(policy, hidden, hidden, hidden.square().sum(-1), prefix=prefix))
    for tokens, k, reduction in found:
        check(reduction, tokens, k, policy.merges)
        assert torch.equal(tokens.hidden[:, :prefix], hidden[:, :prefix])
    assert found[-1][1] == 10


@every_policy
def test_a_batch_is_answered_image_by_image(name):
    for tokens, k, reduction in walk(VISION_POLICIES[name](keep=12), name):
        for i in range(2):
            alone = VISION_POLICIES[name](keep=12).reduce(image(tokens, i), k)
            for part in ("order", "source", "weights"):
                if (value := getattr(reduction, part)) is not None:
                    assert torch.equal(value[i : i + 1], getattr(alone, part))


@every_policy
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_decided_in_float32(name, dtype):
    """Hidden states whose sums over channels are beyond float16."""
    policy = VISION_POLICIES[name](keep=12)
    wide = (5e4 * randn(2, PATCHES + prefix_of(name), 4)).clamp(-6e4, 6e4).to(dtype)
    for tokens, k, reduction in walk(policy, name, dtype=dtype)[:1]:
        for hidden in (tokens.hidden, wide):
            answer = policy.reduce(replace(tokens, hidden=hidden), k)
            again = policy.reduce(replace(tokens, hidden=hidden.float()), k)
            assert torch.equal(answer.order, again.order)
        assert reduction.order.dtype == torch.long


@every_policy
def test_answers_repeat_and_leave_the_random_state_alone(name):
    policy, state = VISION_POLICIES[name](keep=12), torch.get_rng_state()
    first, second = (walk(policy, name) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for (*_, one), (*_, other) in zip(first, second, strict=True):
        assert torch.equal(one.order, other.order)


@every_policy
def test_reducing_holds_nothing_of_length_times_length(name):
    """8192 patches: all similarities would be 256 MiB, those of two slots of a clip, 2048 each, 16."""
    n, prefix = 8192, prefix_of(name)
    policy, hidden = VISION_POLICIES[name](keep=0.5), randn(1, n + prefix, 4)
    grid = (4, 32, 64)
    k = policy.counts(3, n, grid)[0]
    paid = hidden.square().sum(-1)
    tokens = block_tokens(hidden, prefix=prefix, keys=hidden, class_attention=paid, grid=grid, depth=3)
    with Allocations() as memory:
        reduction = policy.reduce(tokens, k)
    assert k < n
    check(reduction, tokens, k, policy.merges)
    assert memory.peak <= 4 * MIB + 4 * n * (2 * 4 + 32)
