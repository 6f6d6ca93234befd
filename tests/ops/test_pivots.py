import torch

from tokenprune.ops import least_similar_to_pivots, unit_norm


def by_hand(x, pivots, counts, taken):
    """The rule, token by token."""
    free, place = [i for i in range(len(x)) if not taken[i]], [len(x)] * len(x)
    step = 0
    for pivot, count in zip(pivots, counts, strict=True):
        for i in sorted(free, key=lambda i: (float(x[i] @ pivot), i))[:count]:
            free.remove(i)
            place[i] = step
            step += 1
    return place


def test_each_pivot_takes_the_least_similar_that_are_left():
    generator = torch.Generator().manual_seed(0)
    x, pivots = (
        unit_norm(torch.randn(3, 20, 4, generator=generator)),
        unit_norm(torch.randn(3, 4, 4, generator=generator)),
    )
    counts = torch.tensor([[2, 5, 0, 3], [0, 0, 0, 0], [4, 4, 4, 4]])
    taken = torch.zeros(3, 20, dtype=torch.bool)
    taken[:, [0, 7]] = True
    taken[2, 3:6] = True
    place = least_similar_to_pivots(x, pivots, counts, taken)
    assert place.tolist() == [by_hand(*parts) for parts in zip(x, pivots, counts.tolist(), taken, strict=True)]


def test_ties_go_to_the_lowest_place():
    x = unit_norm(torch.tensor([[[1.0, 0], [0, 1], [0, 1], [1, 0], [0, 1]]]))
    pivots = torch.tensor([[[1.0, 0], [0, 1]]])
    taken = torch.tensor([[True, False, False, False, False]])
    assert least_similar_to_pivots(x, pivots, torch.tensor([[2, 2]]), taken).tolist() == [[5, 0, 1, 2, 3]]
