import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.ops import unit_norm
from tokenprune.policies import FasterVLM, VisPruner


def tokens_of(n=21, seed=0):
    return visual_tokens(torch.randn(2, n, 6, generator=torch.Generator().manual_seed(seed)), seed=seed)


def select_slowly(x, a, k, ratio, step):
    """One unit, python lists, float64."""
    ranked = sorted(range(len(a)), key=lambda i: -a[i])
    important, left = ranked[: int(k * ratio)], ranked[int(k * ratio) :]
    diverse = k - len(important)
    while diverse and len(left) > diverse:
        first, second = left[0::2], left[1::2]
        best = {i: max(float(x[i] @ x[j]) for j in second) for i in first}
        drop = min(step, len(left) - diverse, len(first))
        left = sorted(first, key=lambda i: -best[i])[drop:] + second
    return important + (left if diverse else [])


@pytest.mark.parametrize(("ratio", "step"), [(0.5, 8), (0.0, 3), (0.75, 1), (1.0, 8)])
@pytest.mark.parametrize("features", ["pre_merger", "projector"])
def test_it_matches_a_slow_one_for_every_k(ratio, step, features):
    tokens = tokens_of()
    policy = VisPruner(important_ratio=ratio, step=step, features=features)
    x = unit_norm(tokens.features if features == "projector" else tokens.encoder.flatten(2)).double()
    a = policy.attention(tokens)
    for k in range(1, 22):
        expected = [select_slowly(x[g], a[g].tolist(), k, ratio, step) for g in range(2)]
        assert policy.select(tokens, k).order.tolist() == expected


def test_important_alone_is_fastervlm():
    tokens = tokens_of()
    assert torch.equal(VisPruner(important_ratio=1).select(tokens, 7).order, FasterVLM().select(tokens, 7).order)


def test_it_needs_tower_features_unless_told_otherwise():
    attention = VisPruner().attention.tap
    assert VisPruner().needs == {"features", "encoder", attention}
    assert VisPruner(features="projector").needs == {"features", attention}


@pytest.mark.parametrize(
    ("field", "value"), [("important_ratio", 1.5), ("important_ratio", True), ("step", 0), ("step", 2.0)]
)
def test_what_makes_no_sense_is_refused(field, value):
    with pytest.raises(InvalidArgumentError, match=f"{field}={value}"):
        VisPruner(**{field: value})
