"""What holds for every policy on the list."""

import weakref

import pytest
import torch
from default_policies import POLICIES, unit, visual_tokens
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenprune import registry

every_policy = pytest.mark.parametrize("name", POLICIES)
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
    if selection.features is None:
        assert ((source >= 0).sum(-1) == k).all()
    else:
        assert selection.features.shape[:2] == (g, k)
        assert selection.features.isfinite().all()
        assert torch.equal(selection.sizes, torch.stack([row.bincount(minlength=k) for row in source]).float())


def test_the_list_holds_every_registered_policy():
    assert {factory().name for factory in POLICIES.values()} == set(registry.list_policies())


@every_policy
def test_a_policy_states_its_name_stage_needs_cost_and_source(name):
    policy = POLICIES[name](keep=3)
    assert registry.get_policy(policy.name) is type(policy)
    assert policy.stage == "projector"
    assert policy.needs <= {"features", "encoder", "text", "instruction"}
    assert policy.cost
    assert type(policy).__doc__
    assert "self, " not in type(policy).__doc__  # what a dataclass without a docstring gets


@every_policy
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("grid", [None, (1, 3, 4), (3, 2, 2)], ids=str)
def test_exactly_k_distinct_ascending_for_every_k(name, features, grid):
    tokens = visual_tokens(FEATURES[features], grid=grid)
    for k in range(1, N + 1):
        policy = POLICIES[name](keep=k)
        check(policy.select(tokens, k), 2, N, policy.budget.count(N))


@every_policy
def test_a_unit_of_two_tokens(name):
    policy = POLICIES[name](keep=1)
    check(policy.select(visual_tokens(randn(3, 2, D)), 1), 3, 2, policy.budget.count(2))


@every_policy
def test_an_instruction_without_words(name):
    tokens = visual_tokens(randn(2, N, D), text=torch.zeros(2, 0, D), text_mask=torch.zeros(2, 0, dtype=torch.bool))
    policy = POLICIES[name](keep=5)
    check(policy.select(tokens, 5), 2, N, policy.budget.count(N))


@every_policy
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_selection_runs_in_float32_whatever_the_dtype(name, dtype):
    policy = POLICIES[name](keep=5)
    half = visual_tokens(randn(2, N, D).to(dtype))
    full = visual_tokens(half.features.float(), text=half.text.float())
    of_half, of_full = policy.select(half, 5), policy.select(full, 5)
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
    together = policy.select(tokens, k)
    for i in range(4):
        alone = policy.select(unit(tokens, i), k)
        assert torch.equal(together.indices[i : i + 1], alone.indices)
        if alone.features is not None:
            torch.testing.assert_close(together.features[i : i + 1], alone.features)


@every_policy
def test_selecting_is_repeatable_and_leaves_inputs_and_the_global_generator_alone(name):
    tokens, policy = visual_tokens(randn(2, N, D)), POLICIES[name](keep=5)
    features, state = tokens.features.clone(), torch.random.get_rng_state()
    first = policy.select(tokens, 5).indices
    assert torch.equal(policy.select(tokens, 5).indices, first)
    assert torch.equal(tokens.features, features)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", ["divprune", "cdpruner", "cdpruner-theta", "cdpruner-openvino-full"])
@pytest.mark.parametrize("k", [1, 5, N - 1])
def test_shuffled_tokens_give_the_shuffled_selection(name, k):
    tokens = visual_tokens(randn(1, N, 16))
    shuffle = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    shuffled = visual_tokens(tokens.features[:, shuffle])
    policy = POLICIES[name](keep=k)
    order = policy.select(tokens, k).order
    assert torch.equal(shuffle[policy.select(shuffled, k).order], order)


class Allocations(TorchDispatchMode):
    """Bytes of new storage alive inside the block: `largest` single one, `peak` of all together."""

    def __enter__(self):
        self.largest = self.alive = self.peak = 0
        self.known = {}
        return super().__enter__()

    def _free(self, key, size):
        self.alive -= size
        del self.known[key]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        old = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            if not isinstance(x, torch.Tensor):
                continue
            storage = x.untyped_storage()
            if id(storage) in old or id(storage) in self.known:
                continue
            size = storage.nbytes()
            self.known[id(storage)] = weakref.finalize(storage, self._free, id(storage), size)
            self.alive += size
            self.largest, self.peak = max(self.largest, size), max(self.peak, self.alive)
        return out


MIB = 2**20


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
        selection = policy.select(tokens, k)
    check(selection, 1, n, policy.budget.count(n))
    assert memory.largest <= 64 * MIB
    assert memory.peak <= 64 * MIB + 4 * n * (2 * k + 8 * d + 32)
    if "divprune" not in name:
        assert memory.peak <= 4 * n * (3 * k + 8 * d + 32)
