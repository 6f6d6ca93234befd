import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.ops import sum_by_source, unit_norm
from tokenprune.policies import VisionZip
from tokenprune.policies.quality import VisionAttention
from tokenprune.policies.visionzip import CLASS_TOKEN
from tokenprune.tokens import Tap


def tokens_of(n=40, seed=0):
    return visual_tokens(torch.randn(2, n, 6, generator=torch.Generator().manual_seed(seed)), seed=seed)


def merge_slowly(policy, tokens, g, dominant, c):
    """Targets, {target: tokens that go to it}, and the merged tower features of each target, [P, d_v]."""
    rest = [i for i in range(tokens.shape[1]) if i not in dominant]
    targets = rest[:: len(rest) // c][:c]
    key = unit_norm(tokens.tower[policy.keys][g].mean(1)).double()
    groups = {t: [] for t in targets}
    for i in rest:
        if i not in groups:
            groups[max(targets, key=lambda t, i=i: float(key[i] @ key[t]))].append(i)
    x = tokens.encoder[g]
    merged = {t: x[t] + (x[others].mean(0) if others else 0) for t, others in groups.items()}
    return targets, groups, merged


@pytest.mark.parametrize(("k", "contextual"), [(13, None), (12, 5), (39, 20), (40, 20), (4, 99), (2, 1)])
def test_it_matches_a_slow_one(k, contextual):
    tokens, policy = tokens_of(), VisionZip(contextual=contextual)
    selection, c = policy.select(tokens, k), min(contextual or round(k / 6.4), k - 1)
    for g in range(2):
        dominant = policy.attention(tokens)[g].topk(k - c).indices.tolist()
        targets, groups, merged = merge_slowly(policy, tokens, g, dominant, c)
        indices = sorted(dominant + targets)
        assert selection.indices[g].tolist() == indices
        for place, i in enumerate(indices):
            others = groups.get(i, [])
            carried = (selection.source[g] == place).nonzero()[:, 0].tolist()
            assert carried == sorted([i, *others])
            assert selection.sizes[g, place] == 1 + len(others)
            if others:
                expected = tokens.projection.apply(merged[i])
                torch.testing.assert_close(selection.features[g, place], expected, rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(selection.features[g, place], tokens.features[g, i])
    # the weights are those of the merge
    sums = sum_by_source(tokens.encoder.flatten(2), selection.source, k, selection.weights)
    torch.testing.assert_close(sums[1, place], (merged[i] if i in merged else tokens.encoder[1, i]).flatten())


@pytest.mark.parametrize(("k", "contextual"), [(192, 30), (128, 20), (64, 10), (32, 5), (3, 0), (1, 0)])
def test_the_share_of_contextual_tokens_is_the_papers(k, contextual):
    selection = VisionZip().select(tokens_of(576), k)
    merged = 0 if selection.features is None else int((selection.sizes > 1).sum())
    assert merged == 2 * contextual


def test_the_released_order_begins_with_the_class_token():
    tokens, k, c = tokens_of(), 12, 3
    selection = VisionZip(contextual=c, strict_paper=True).select(tokens, k)
    policy = VisionZip(contextual=c)
    assert torch.equal(selection.indices, policy.select(tokens, k).indices)
    torch.testing.assert_close(selection.features[:, 0], tokens.projection.apply(tokens.tower[CLASS_TOKEN][:, 0]))
    for g in range(2):
        dominant = sorted(policy.attention(tokens)[g].topk(k - c - 1).indices.tolist())
        targets, groups, merged = merge_slowly(policy, tokens, g, dominant, c)
        assert torch.equal(selection.features[g, 1 : k - c], tokens.features[g, dominant])
        expected = tokens.projection.apply(torch.stack([merged[t] for t in targets]))
        torch.testing.assert_close(selection.features[g, k - c :], expected, rtol=1e-4, atol=1e-5)
        assert selection.source[g, dominant].tolist() == list(range(1, k - c))
        assert selection.source[g, [*groups[targets[0]], targets[0]]].unique().tolist() == [k - c]
    assert selection.sizes[:, 0].tolist() == [1, 1]


@pytest.mark.parametrize("contextual", [None, 0, 4])
def test_the_released_order_works_for_every_k(contextual):
    tokens = tokens_of(9)
    for k in range(1, 10):
        selection = VisionZip(contextual=contextual, strict_paper=True).select(tokens, k)
        assert selection.features.shape == (2, k, 6)
        assert (selection.indices.diff() > 0).all()
        assert selection.source.max() == (k - 1 if k > 1 else -1)


def test_the_keys_are_of_the_layer_of_the_attention():
    assert VisionZip().needs == {"features", "encoder", "projection", Tap("attention"), Tap("keys")}
    later = VisionZip(attention=VisionAttention(layer=5), strict_paper=True)
    assert {Tap("attention", layer=5), Tap("keys", layer=5), CLASS_TOKEN} <= later.needs


def test_a_negative_count_is_refused():
    with pytest.raises(InvalidArgumentError, match="contextual=-1"):
        VisionZip(contextual=-1)
