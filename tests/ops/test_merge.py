import torch

from tokenprune.ops import (
    add_weighted,
    count_outliers,
    interleave_dominant,
    remaining,
    sizes_by_source,
    sum_by_source,
    summary_map,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_sums_are_weighted_and_leave_out_minus_one():
    features = torch.tensor([[[2.0], [4.0], [100.0], [6.0]]], dtype=torch.bfloat16)
    source = torch.tensor([[1, 1, -1, 0]])
    sums = sum_by_source(features, source, 3, torch.tensor([[0.5, 2.0, 1.0, 1.0]]))
    assert (sums.tolist(), sums.dtype) == ([[[6.0], [9.0], [0.0]]], torch.float32)
    assert sum_by_source(features, source, 3).tolist() == [[[6.0], [6.0], [0.0]]]
    assert sizes_by_source(source, 3).tolist() == [[1.0, 2.0, 0.0]]


def test_sums_and_sizes_of_a_batch_equal_a_loop():
    features, weights, sizes = randn(3, 20, 5).half(), randn(3, 20, seed=1).abs(), randn(3, 20, seed=2).abs()
    whole = torch.randint(0, 6, (3, 20), generator=torch.Generator().manual_seed(3))
    for source, complete in ((whole, False), (whole, True), (whole - 1, False), (whole - 3, False)):
        sums, total = torch.zeros(3, 6, 5), torch.zeros(3, 6)
        for g, i in torch.cartesian_prod(torch.arange(3), torch.arange(20)).tolist():
            if (to := int(source[g, i])) >= 0:
                sums[g, to] += weights[g, i] * features[g, i].float()
                total[g, to] += sizes[g, i]
        torch.testing.assert_close(sum_by_source(features, source, 6, weights, whole=complete), sums)
        torch.testing.assert_close(sizes_by_source(source, 6, sizes, whole=complete), total)


def test_neighbours_are_added_with_their_weights():
    features, weights = randn(2, 6, 3), randn(2, 6, seed=1)
    places, others = torch.tensor([[4, 0], [2, 2]]), torch.tensor([[[0, 5], [4, 4]], [[1, 3], [0, 5]]])
    expected = torch.stack(
        [
            torch.stack(
                [
                    features[g, c] + sum(weights[g, i] * features[g, i] for i in bag)
                    for c, bag in zip(places[g].tolist(), others[g].tolist(), strict=True)
                ]
            )
            for g in range(2)
        ]
    )
    torch.testing.assert_close(add_weighted(features, weights, places, others), expected)
    assert torch.equal(add_weighted(features, weights, places, others[..., :0])[0, 0], features[0, 4])
    assert add_weighted(features, weights, places[:, :0], others[:, :0]).shape == (2, 0, 3)


def test_remaining_places_ascend():
    assert remaining(torch.tensor([[4, 1], [0, 2]]), 5).tolist() == [[0, 2, 3], [1, 3, 4]]


def test_a_summary_takes_the_last_place_that_is_not_kept():
    indices, summary, source = summary_map(torch.tensor([[4, 1], [0, 2]]), 5)
    assert indices.tolist() == [[1, 3, 4], [0, 2, 4]]
    assert summary.tolist() == [[1], [2]]
    assert source.tolist() == [[1, 0, 1, 1, 2], [0, 2, 1, 2, 2]]
    assert summary_map(torch.zeros(1, 0, dtype=torch.long), 3)[2].tolist() == [[0, 0, 0]]


def test_outliers_are_those_above_the_upper_fence():
    scores = randn(3, 101) ** 3
    q1, q3 = torch.quantile(scores, torch.tensor([0.25, 0.75]), dim=-1)
    assert torch.equal(count_outliers(scores), (scores > (2.5 * q3 - 1.5 * q1)[:, None]).sum(-1))
    assert count_outliers(torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 100.0]])).tolist() == [1]
    assert count_outliers(torch.tensor([[7.0, 7.0], [1.0, 2.0]])).tolist() == [0, 0]
    assert count_outliers(torch.ones(2, 1)).tolist() == [0, 0]


def test_dominant_tokens_of_tiles_come_in_raster_order_of_the_whole_image():
    # two tiles side by side of 2 x 2 patches, below them a third; lists: class token, two patches, one contextual
    dominant = torch.tensor([[1, 2], [0, 3], [0, 1]])
    tile, place = interleave_dominant(dominant, 1, 2, 2)
    assert list(zip(tile.tolist(), place.tolist(), strict=True)) == [
        (0, 1),  # row 0, column 1
        (1, 1),  # row 0, column 2
        (0, 2),  # row 1, column 0
        (1, 2),  # row 1, column 3
        (2, 1),
        (2, 2),
        (0, 0),
        (1, 0),
        (2, 0),
        (0, 3),
        (1, 3),
        (2, 3),
    ]
