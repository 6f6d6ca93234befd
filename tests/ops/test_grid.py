import itertools

import pytest
import torch

from tokenprune.ops import average_by_source, even_points, interleave_crops, points_on_grid, sources_on_grid

GRIDS = [(1, 1, 1), (1, 4, 4), (1, 1, 9), (1, 9, 1), (1, 3, 8), (2, 5, 7), (5, 2, 2), (7, 1, 3)]


@pytest.mark.parametrize("n", [1, 2, 7, 12])
def test_even_points_are_distinct_and_centred(n):
    for k in range(1, n + 1):
        points = even_points(n, k)
        assert points == sorted(set(points))
        assert len(points) == k
        assert points[0] >= 0
        assert points[-1] < n
        gaps = [b - a for a, b in itertools.pairwise(points)]
        assert not gaps or max(gaps) - min(gaps) <= 1
    assert even_points(n, 1) == [n // 2]


@pytest.mark.parametrize("grid", GRIDS)
def test_points_on_grid_are_exactly_k_and_ascending(grid):
    n = grid[0] * grid[1] * grid[2]
    for k in range(1, n + 1):
        points = points_on_grid(grid, k)
        assert points == sorted(set(points))
        assert len(points) == k
        assert points[0] >= 0
        assert points[-1] < n


def test_points_on_grid_are_a_coarser_grid_where_k_allows():
    assert points_on_grid((1, 4, 4), 4) == [5, 7, 13, 15]
    assert points_on_grid((1, 2, 4), 2) == [5, 7]  # twice as wide as high: one row of two


def test_frames_share_the_points_evenly():
    per_frame = torch.tensor(points_on_grid((3, 4, 4), 11)) // 16
    assert per_frame.bincount(minlength=3).tolist() in ([4, 4, 3], [4, 3, 4], [3, 4, 4])
    assert [p // 16 for p in points_on_grid((5, 4, 4), 2)] == [1, 3]


@pytest.mark.parametrize("grid", GRIDS)
def test_every_point_is_its_own_source_and_every_source_is_used(grid):
    n = grid[0] * grid[1] * grid[2]
    for k in range(1, n + 1):
        points = points_on_grid(grid, k)
        source = sources_on_grid(grid, points)
        assert source[points].tolist() == list(range(k))
        assert source.shape == (n,)
        assert source.min() >= 0
        assert source.max() < k


def test_sources_are_the_nearest_point_of_the_same_frame_and_the_last_among_equals():
    grid = (2, 3, 3)
    assert sources_on_grid(grid, [0, 8, 9]).tolist() == [0, 0, 1, 0, 1, 1, 1, 1, 1, *[2] * 9]


@pytest.mark.parametrize(("grid", "block"), [((1, 8, 8), 2), ((1, 6, 9), 3), ((3, 4, 4), 2), ((1, 4, 4), 4)])
def test_pooling_with_a_dividing_count_is_average_pooling(grid, block):
    frames, rows, columns = grid
    features = torch.randn(2, frames * rows * columns, 5, generator=torch.Generator().manual_seed(0))
    k = frames * rows * columns // block**2
    source = sources_on_grid(grid, points_on_grid(grid, k)).expand(2, -1)
    merged, sizes = average_by_source(features, source, k)
    maps = features.view(2 * frames, rows, columns, 5).permute(0, 3, 1, 2)
    expected = torch.nn.functional.avg_pool2d(maps, block).permute(0, 2, 3, 1).reshape(2, k, 5)
    torch.testing.assert_close(merged, expected)
    assert (sizes == block**2).all()


def test_average_by_source_leaves_out_minus_one():
    features = torch.tensor([[[2.0], [4.0], [100.0], [6.0]]], dtype=torch.bfloat16)
    merged, sizes = average_by_source(features, torch.tensor([[1, 1, -1, 0]]), 3)
    assert merged.tolist() == [[[6.0], [3.0], [0.0]]]
    assert sizes.tolist() == [[1.0, 2.0, 0.0]]
    assert (merged.dtype, sizes.dtype) == (torch.bfloat16, torch.float32)


def test_average_by_source_sums_in_float32():
    features = torch.full((1, 4096, 1), 0.1, dtype=torch.float16)
    merged, _ = average_by_source(features, torch.zeros(1, 4096, dtype=torch.long), 1)
    assert merged.item() == features[0, 0, 0].item()


def test_interleave_crops_orders_the_base_first_and_then_the_whole_raster():
    keep = torch.zeros(1 + 2 * 3, 4, dtype=torch.bool)  # 2 x 3 tiles of 2 x 2 patches
    keep[0, [1, 3]] = True
    keep[1, [0, 3]] = True  # row 0 and row 1 of tile (0, 0)
    keep[3, [1, 2]] = True  # row 0 and row 1 of tile (0, 2)
    keep[4, 0] = True  # tile (1, 0)
    crop, patch = interleave_crops(keep, (2, 3))
    assert list(zip(crop.tolist(), patch.tolist(), strict=True)) == [
        (0, 1),
        (0, 3),
        (1, 0),
        (3, 1),
        (1, 3),
        (3, 2),
        (4, 0),
    ]
