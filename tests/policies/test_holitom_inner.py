import torch

from tests.default_layer_policies import causal_attention, layer_tokens
from tokenprune.ops import unit_norm
from tokenprune.policies import HoliTomInner


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_scores_in_the_layer_before_the_drop_by_the_last_word():
    policy = HoliTomInner()
    (event,) = policy.events(28)
    assert (event.score, event.drop, event.rows) == (17, 18, "last")
    assert (policy.positions, policy.kinds, policy.count(event, 100)) == ("original", frozenset({"video"}), 50)
    attention = causal_attention([(3, 9, 4), (1, 6, 2)], rows="last")
    torch.testing.assert_close(policy.score(attention, event), attention.probabilities.mean(1)[:, 0])


def test_the_others_are_folded_in_ascending_order():
    tokens = layer_tokens(randn(1, 20, 4))
    found = HoliTomInner(keep=6).select(tokens, 6)
    kept = tokens.scores[0].argsort(descending=True)[:6].sort().values.tolist()
    assert found.indices[0].tolist() == kept
    rows, u = tokens.hidden[0].clone(), unit_norm(tokens.hidden[0])
    for i in range(20):
        if i not in kept:
            h = kept[int((u[kept] @ u[i]).argmax())]
            rows[h] = (rows[h] + rows[i]) / 2
            assert kept[found.source[0, i]] == h
    torch.testing.assert_close(found.features[0], rows[kept])
    assert found.sizes.sum() == 20


def test_what_else_is_read_of_a_token_is_merged_with_the_same_shares():
    tokens = layer_tokens(randn(2, 20, 4))
    found = HoliTomInner(keep=6).select(tokens, 6)
    shares = found.merge_weights(20)
    mixed = torch.zeros(2, 6, 4).scatter_add(
        1, found.source[..., None].expand(2, 20, 4), shares[..., None] * tokens.hidden
    )
    torch.testing.assert_close(found.features, mixed)
