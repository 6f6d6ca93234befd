import pytest
import torch

from tests.default_layer_policies import layer_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import PyramidDrop, RandomLayers


def test_it_asks_for_no_attention():
    events = RandomLayers().events(32)
    assert [(event.score, event.drop) for event in events] == [(None, 8), (None, 16), (None, 24)]
    assert RandomLayers().published == PyramidDrop().published
    assert RandomLayers().positions == "original"


def test_a_choice_depends_on_seed_key_and_event_alone():
    def choice(seed, key, number):
        tokens = layer_tokens(torch.randn(2, 20, 4), keys=[99, key], number=number)
        return str(RandomLayers(keep=5, seed=seed).select(tokens, 5).indices[1].tolist())

    assert choice(0, 7, 1) == choice(0, 7, 1)
    assert len({choice(seed, key, number) for seed in range(3) for key in range(3) for number in range(3)}) == 27


def test_every_token_is_taken_equally_often():
    tokens = layer_tokens(torch.zeros(2000, 10, 1), number=1)
    indices = RandomLayers(keep=3).select(tokens, 3).indices
    share = indices.flatten().bincount(minlength=10) / 2000
    assert (share - 0.3).abs().max() < 0.05  # five standard deviations


@pytest.mark.parametrize("seed", ["a", 0.5, None, True, -1, 2**31])
def test_a_seed_must_be_an_int(seed):
    with pytest.raises(InvalidArgumentError, match="seed="):
        RandomLayers(seed=seed)


def test_one_layer_needs_no_schedule():
    policy = RandomLayers(layers=(2,), keep=64)
    assert [policy.count(event, 576) for event in policy.events(32)] == [64]
