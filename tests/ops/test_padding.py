import pytest
import torch
from PIL import Image

from tokenprune.ops.padding import content_cells, covered_cells, resized_cells, whole_cells

SIZES = [(640, 480), (480, 640), (336, 336), (1000, 300), (37, 500), (20, 11), (3, 2), (1, 7)]


def test_shares_by_hand():
    """A picture twice as wide as high on 6 x 6 cells: padding of one and a half rows above and below."""
    expected = torch.tensor([0, 0.5, 1, 1, 0.5, 0]).double()[:, None].expand(6, 6)
    torch.testing.assert_close(covered_cells(200, 100, 6), expected)
    torch.testing.assert_close(covered_cells(100, 200, 6), expected.mT)
    # int(100 * 6 / 200) = 3 rows fit, int((6 - 3) / 2) = 1 is padding on each side
    assert whole_cells(200, 100, 6)[:, 0].tolist() == [0, 1, 1, 1, 1, 0]
    assert whole_cells(100, 200, 6)[0].tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("side", [1, 5, 24])
def test_the_share_of_pixels_that_a_fine_square_counts(size, side):
    width, height = size
    long, fine = max(size), 40
    middle = (torch.arange(side * fine).double() + 0.5) / (side * fine) * long  # points of the square, per axis
    inside = [(middle > (long - extent) / 2) & (middle < (long + extent) / 2) for extent in (height, width)]
    counted = (inside[0][:, None] & inside[1]).double().view(side, fine, side, fine).mean((1, 3))
    torch.testing.assert_close(covered_cells(width, height, side), counted, rtol=0, atol=2 / fine)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("side", [5, 24])
def test_resized_cells_are_what_pillow_makes(size, side):
    width, height = size
    long = max(size)
    square = Image.new("F", (long, long), 0)
    square.paste(Image.new("F", size, 1), ((long - width) // 2, (long - height) // 2))
    pixels = square.resize((side, side), Image.Resampling.BILINEAR).get_flattened_data()
    expected = torch.tensor(list(pixels)).double().view(side, side)
    torch.testing.assert_close(resized_cells(width, height, side), expected, rtol=0, atol=1e-6)


def test_the_threshold_is_the_largest_share_of_padding():
    sizes = [(200, 100), (100, 100), (200, 100)]  # halves of cells in rows 1 and 4
    for threshold, rows in ((0.0, [2, 3]), (0.49, [2, 3]), (0.5, [1, 2, 3, 4]), (0.99, [1, 2, 3, 4])):
        content = content_cells(sizes, 6, "area", threshold).view(3, 6, 6)
        assert content[0].all(1).nonzero().flatten().tolist() == rows
        assert content[1].all()
        assert torch.equal(content[2], content[0])
