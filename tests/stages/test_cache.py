"""Logical and physical lengths of a cache that went through a pruned forward."""

import pytest
import torch
from transformers import DynamicCache

from tokenprune.stages.cache import CacheState, Life, attach, physical_length, state_of

VALID = torch.tensor([[True, True, True], [False, True, True]])


@pytest.fixture
def cache():
    cache = DynamicCache()
    cache.update(torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4), 0)
    attach(cache, CacheState(Life(), VALID, removed=5, all_valid=False, shift=torch.tensor([2, 3])))
    return cache


def test_lengths(cache):
    assert cache.get_seq_length() == 8
    assert cache.get_seq_length(0) == 3
    assert physical_length(cache) == 3
    assert isinstance(cache, DynamicCache)


def test_everything_per_row_follows_the_batch(cache):
    cache.reorder_cache(torch.tensor([1, 1]))
    assert state_of(cache).valid.tolist() == [VALID[1].tolist()] * 2
    assert state_of(cache).shift.tolist() == [3, 3]
    cache.batch_repeat_interleave(2)
    assert state_of(cache).valid.shape == (4, 3)
    cache.batch_select_indices(torch.tensor([0]))
    assert state_of(cache).shift.tolist() == [3]


def test_reset_forgets(cache):
    cache.reset()
    assert state_of(cache) is None
    assert cache.get_seq_length() == cache.get_seq_length(0)  # logical and physical agree again


@pytest.mark.parametrize(
    ("mask", "past", "new", "expected"),
    [
        (None, 3, 1, [[1, 1, 1, 1], [0, 1, 1, 1]]),  # generate dropped an all-ones mask
        (None, 4, 2, [[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]]),  # one decoded token is in the cache already
        ([[1] * 9, [0, 1, 1, 1, 1, 1, 1, 1, 1]], 3, 1, [[1, 1, 1, 1], [0, 1, 1, 1]]),
        ([[1] * 8 + [1, 1], [1] * 8 + [0, 1]], 3, 2, [[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]]),  # padding of a later turn
        ([[1] * 7, [1] * 7], 1, 1, [[1, 1], [0, 1]]),  # cropped into the segment
    ],
)
def test_physical_mask(mask, past, new, expected):
    state = CacheState(Life(), VALID, removed=5, all_valid=False)
    mask = mask if mask is None else torch.tensor(mask)
    assert state.physical_mask(mask, past, new).tolist() == expected


def test_no_mask_is_needed_while_all_slots_are_valid():
    state = CacheState(Life(), torch.ones(2, 3).bool(), removed=5, all_valid=True)
    assert state.physical_mask(None, 3, 1) is None
