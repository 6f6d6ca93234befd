import pytest
import torch

from tokenprune import CDPruner, DivPrune, Pool, Uniform
from tokenprune.eval import shapes, weights
from tokenprune.eval.asking import Pruned, encoded


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return shapes.load(folder=tiny_checkpoint)


@pytest.fixture(scope="module")
def batch(model):
    with torch.inference_mode():
        return next(encoded(*model, list(shapes.held_out(8))))


def test_clusters_share_all_tokens():
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9], [0.2, 0.5]])
    assert weights.cluster_sizes(features, torch.tensor([0, 2])).tolist() == [2, 3]
    assert weights.cluster_sizes(features, torch.arange(5)).sum() == 5


@pytest.mark.parametrize("policy", [Uniform(), Pool(), CDPruner()], ids=lambda policy: policy.name)
@torch.inference_mode()
def test_without_weights_it_answers_what_the_pruned_model_answers(model, batch, policy):
    ways = Pruned(*model, policy)
    with ways.at(20, batch):
        expected = ways.words(ways.encoded(batch, 20)).tolist()
    kept = weights.kept_tokens(*model, policy, batch, 20)
    assert [weights.first_word(model[0], batch, i, kept[i], weighted=False) for i in range(8)] == expected


@torch.inference_mode()
def test_all_tokens_have_a_place_in_what_is_left(model, batch):
    for policy in (Pool(), DivPrune()):
        for i, kept in enumerate(weights.kept_tokens(*model, policy, batch, 0.25)):
            assert (len(kept.indices), int(kept.sizes.sum())) == (64, 256)
            assert torch.equal(kept.rows, batch.features[i][kept.indices]) is isinstance(policy, DivPrune)


@torch.inference_mode()
def test_a_weight_of_two_is_the_token_twice(model, batch):
    """Attention to a token with weight 2 equals attention to two copies of it at the same position."""
    language_model = model[0].model.language_model
    x, at = torch.randn(1, 4, batch.features[0].shape[1]), torch.tensor([[0, 1, 1, 2]])
    twice = language_model(inputs_embeds=x[:, [0, 1, 1, 3]], position_ids=at, attention_mask=copies(), use_cache=False)
    mask = torch.full((3, 3), -torch.inf).triu(1) + torch.tensor([1.0, 2.0, 1.0]).log()
    once = language_model(
        inputs_embeds=x[:, [0, 1, 3]], position_ids=at[:, [0, 1, 3]], attention_mask=mask[None, None], use_cache=False
    )
    torch.testing.assert_close(once.last_hidden_state[0, -1], twice.last_hidden_state[0, -1], atol=1e-5, rtol=1e-5)


def copies():
    """Causal for four tokens of which the second and third are copies that see each other."""
    mask = torch.full((4, 4), -torch.inf).triu(1)
    mask[1, 2] = 0.0
    return mask[None, None]
