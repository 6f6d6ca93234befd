"""Quality of tokens that needs no text."""

import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import FeatureNorm, LocalVariance, VisionAttention
from tokenprune.tokens import Tap


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_is_the_mean_over_the_patches_of_a_token():
    tokens = visual_tokens(randn(2, 6, 4))
    quality = VisionAttention(queries="all", layer=3)
    expected = tokens.tower[Tap("attention", queries="all", layer=3)][..., 0].mean(-1)
    torch.testing.assert_close(quality(tokens), expected)
    assert quality.needs == {quality.tap}


def test_unknown_queries_are_refused():
    with pytest.raises(InvalidArgumentError, match="queries='class' is not one of auto, cls, all"):
        VisionAttention(queries="class")


def test_norm():
    features = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]], dtype=torch.float16)
    assert FeatureNorm()(visual_tokens(features)).tolist() == [[5.0, 0.0]]


@pytest.mark.parametrize("number", [1, 3, 50])
def test_local_variance_is_that_of_each_run_by_itself(number):
    features = randn(2, 7, 5)
    found = LocalVariance(runs=number)(visual_tokens(features))
    x = torch.nn.functional.normalize(features.double(), dim=-1)
    expected = []
    for run in torch.tensor_split(torch.arange(7), min(number, 7)):
        similar = x[:, run] @ x[:, run].mT
        similar.diagonal(dim1=1, dim2=2).zero_()
        others = max(len(run) - 1, 1)
        mean = similar.sum(-1, keepdim=True) / others
        expected.append((similar - mean).square().sum(-1) / others)
    torch.testing.assert_close(found.double(), torch.cat(expected, 1), rtol=1e-4, atol=1e-6)


def test_runs_are_a_count():
    with pytest.raises(InvalidArgumentError, match="runs=0"):
        LocalVariance(runs=0)
