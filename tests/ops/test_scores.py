import pytest
import torch

from tokenprune.ops import image_extremes, mean_cosine, min_max, unit_norm


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_unit_norm_is_float32_and_keeps_zero(dtype):
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [300.0, 400.0]], dtype=dtype)
    assert unit_norm(x).dtype == torch.float32
    torch.testing.assert_close(unit_norm(x), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8]]))


def test_min_max_scales_every_unit_on_its_own():
    scores = torch.tensor([[0.0, 1.0, 4.0], [-2.0, 0.0, 2.0]])
    assert min_max(scores).tolist() == [[0.0, 0.25, 1.0], [0.0, 0.5, 1.0]]


def test_min_max_shares_extremes_over_the_crops_of_one_image():
    scores = torch.tensor([[0.0, 4.0], [2.0, 8.0], [5.0, 10.0], [1.0, 2.0]])
    image = torch.tensor([7, 7, 3, 7])
    extremes = image_extremes([scores], [image])[0]
    assert min_max(scores, extremes=extremes).tolist() == [[0.0, 0.5], [0.25, 1.0], [0.0, 1.0], [0.125, 0.25]]


def test_min_max_epsilons_go_where_they_are_named():
    scores = torch.tensor([[1.0, 3.0]])
    assert min_max(scores, numerator_eps=1.0).tolist() == [[0.5, 1.5]]
    assert min_max(scores, denominator_eps=2.0).tolist() == [[0.0, 0.5]]


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_min_max_of_equal_scores_is_one(value):
    assert min_max(torch.full((2, 3), value), numerator_eps=1e-6).tolist() == [[1.0] * 3] * 2


def test_mean_cosine_averages_cosines_not_vectors():
    visual = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    text = torch.tensor([[10.0, 0.0], [0.0, 0.1]])
    torch.testing.assert_close(mean_cosine(visual, text), torch.tensor([[0.5, 0.5]]))


def test_mean_cosine_ignores_padding():
    generator = torch.Generator().manual_seed(0)
    visual, text = torch.randn(2, 5, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    scores = mean_cosine(visual, text, mask)
    torch.testing.assert_close(scores[0], mean_cosine(visual[:1], text[0, :2])[0])
    assert scores[1].tolist() == [0.0] * 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mean_cosine_is_computed_in_float32(dtype):
    visual, text = torch.randn(1, 4, 8).to(dtype), torch.randn(3, 8).to(dtype)
    assert torch.equal(mean_cosine(visual, text), mean_cosine(visual.float(), text.float()))


def test_extremes_of_an_image_reach_over_batches():
    """Image 7 has units in both batches, of different sizes."""
    scores = [torch.tensor([[0.0, 1.0], [5.0, 6.0]]), torch.tensor([[-2.0, 0.5, 3.0]])]
    first, second = image_extremes(scores, [torch.tensor([7, 8]), torch.tensor([7])])
    assert first.tolist() == [[-2.0, 3.0], [5.0, 6.0]]
    assert second.tolist() == [[-2.0, 3.0]]
