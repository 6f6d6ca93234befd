import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune import CoViPAL, wrap
from tokenprune.errors import InvalidArgumentError, PredictorError
from tokenprune.ops import ordered_dither
from tokenprune.predictors import PruningModule


def test_the_k_highest_stay_and_where_all_are_equal_they_lie_evenly():
    torch.manual_seed(0)
    module = PruningModule(width=5, hidden=8, layers=1, heads=2)
    tokens = visual_tokens(torch.randn(2, 16, 5), grid=(1, 4, 4))
    selection = CoViPAL(predictor=module, keep=4).select(tokens, 4)
    scores = module(tokens.features, tokens.text, tokens.text_mask, tokens.grid)
    assert torch.equal(selection.scores, scores + 3.2 * 0.5 * ordered_dither((1, 4, 4)).logit())
    assert torch.equal(selection.order, selection.scores.topk(4).indices)
    torch.nn.init.zeros_(module.head.weight)
    (row, same) = CoViPAL(predictor=module, keep=4).select(tokens, 4).indices.tolist()
    assert row == same
    assert sorted((place // 8, place % 4 // 2) for place in row) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_question_changes_the_choice():
    torch.manual_seed(0)
    module = PruningModule(width=5, hidden=8, layers=2, heads=2, dither=0.0)
    for one in module.parameters():
        torch.nn.init.normal_(one, std=1.0)
    policy, features = CoViPAL(predictor=module, keep=4), torch.randn(1, 40, 5)
    asked = [policy.select(visual_tokens(features, seed=seed), 4).indices.tolist() for seed in range(24)]
    assert len({str(one) for one in asked}) > 1


def test_without_a_module_the_error_says_where_one_comes_from():
    policy = CoViPAL(keep=3)
    with pytest.raises(InvalidArgumentError, match="predictor=None .* `tokenprune train covipal` writes"):
        policy.trained  # noqa: B018
    with pytest.raises(InvalidArgumentError, match="predictor=3 is no folder"):
        CoViPAL(predictor=3)
    with pytest.raises(PredictorError, match="nowhere"):
        CoViPAL(predictor="/nowhere/at/all", keep=3)


def test_wrapping_without_a_module_leaves_nothing_behind():
    from tokenprune.eval.shapes.modeling import build

    model = build(width=24, heads=3, vision_layers=1, text_layers=1)
    with pytest.raises(InvalidArgumentError, match="predictor=None"):
        wrap(model, "covipal", keep=3)
    assert not any(module._forward_pre_hooks for module in model.modules())
