"""Chains of a position over time: similarity to the token before, and who joins whom."""

from itertools import pairwise

import torch

from tokenprune.ops import chain_map, chain_similarity, unit_norm


def by_hand(x, place, positions):
    """(position, time) order, and the similarity of each token to the one before, for one unit."""
    order = sorted(range(len(place)), key=lambda i: (place[i] % positions, place[i] // positions))
    unit, found = unit_norm(x), [float("-inf")]
    for before, i in pairwise(order):
        same = place[before] % positions == place[i] % positions
        found.append(float(unit[before] @ unit[i]) - (0 if same else 3))
    return order, found


def test_similarity_over_holes_in_time():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 20, 8, generator=generator)
    place = torch.stack([torch.randperm(36, generator=generator)[:20].sort().values for _ in range(3)])
    order, similarity = chain_similarity(x, place, 6)
    for g in range(3):
        expected, values = by_hand(x[g], place[g].tolist(), 6)
        assert order[g].tolist() == expected
        torch.testing.assert_close(similarity[g], torch.tensor(values))


def test_a_run_joins_the_token_it_begins_at():
    order = torch.tensor([[0, 3, 6, 1, 4, 7, 2, 5, 8]])
    joins = torch.tensor([[False, True, True, False, False, True, False, False, False]])
    indices, source = chain_map(order, joins, 6)
    assert indices.tolist() == [[0, 1, 2, 4, 5, 8]]
    assert source.tolist() == [[0, 1, 2, 0, 3, 4, 0, 3, 5]]


def test_several_units_with_equally_many_joins():
    order = torch.tensor([[0, 2, 1, 3], [0, 2, 1, 3]])
    indices, source = chain_map(order, torch.tensor([[False, True, False, False], [False, False, False, True]]), 3)
    assert indices.tolist() == [[0, 1, 3], [0, 1, 2]]
    assert source.tolist() == [[0, 1, 0, 2], [0, 1, 2, 1]]
