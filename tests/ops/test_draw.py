import torch

from tokenprune.ops import draw


def test_a_draw_depends_on_key_seed_and_number_alone():
    drawn = {
        (key, seed, number): tuple(draw([key], 30, 6, seed=seed, number=number)[0].tolist())
        for key in range(3)
        for seed in range(3)
        for number in range(3)
    }
    assert len(set(drawn.values())) == 27
    torch.manual_seed(5)
    together = draw([2, 0], 30, 6, seed=1, number=2)
    assert [tuple(row) for row in together.tolist()] == [drawn[2, 1, 2], drawn[0, 1, 2]]
    assert all(len(set(places)) == 6 for places in drawn.values())
