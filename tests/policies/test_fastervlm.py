import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import FasterVLM
from tokenprune.policies.quality import FeatureNorm, VisionAttention
from tokenprune.tokens import Tap


def test_the_most_attended_stay_in_raster_order():
    policy = FasterVLM()
    # two patches a token: means 0.2, 0.25, 0.05, 0.2, 0.3
    patches = torch.tensor([[[0.4, 0.0], [0.2, 0.3], [0.1, 0.0], [0.1, 0.3], [0.0, 0.6]]])
    tokens = visual_tokens(torch.zeros(1, 5, 4), tower={Tap("attention"): patches[..., None]})
    selection = policy.select(tokens, 3)
    assert selection.indices.tolist() == [[0, 1, 4]]  # token 0 before its equal, token 3
    assert selection.order.tolist() == [[4, 1, 0]]
    torch.testing.assert_close(selection.scores, patches.mean(-1))


def test_it_needs_what_its_score_needs():
    assert FasterVLM().needs == {"features", Tap("attention")}
    assert FasterVLM(attention=VisionAttention(queries="all", layer=3)).needs == {
        "features",
        Tap("attention", queries="all", layer=3),
    }
    assert FasterVLM(attention=FeatureNorm()).needs == {"features"}
    features = torch.tensor([[[1.0], [-3.0], [2.0]]])
    assert FasterVLM(attention=FeatureNorm()).select(visual_tokens(features), 2).order.tolist() == [[1, 2]]


def test_a_score_that_is_no_function_is_refused():
    with pytest.raises(InvalidArgumentError, match="attention='cls' is no function"):
        FasterVLM(attention="cls")
