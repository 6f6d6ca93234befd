import pytest
import torch

from tests.default_policies import unit, visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.policies import DART


def reference(features, words, k, p_image, p_text):
    """The docstring, token by token, in float64: order."""
    x, text = features.double(), words.double()
    pivots = sorted(range(len(x)), key=lambda i: -float(x[i].abs().sum()))[: min(p_image, k)]
    rows = [x[i] for i in pivots] + sorted(text, key=lambda row: -float(row.abs().sum()))[:p_text]
    rest, kept = k - len(pivots), list(pivots)
    for number, pivot in enumerate(rows):
        count = rest // len(rows) + (number < rest % len(rows))
        cosine = {i: float(x[i] @ pivot / x[i].norm() / pivot.norm()) for i in range(len(x)) if i not in kept}
        kept += sorted(cosine, key=cosine.get)[:count]
    return kept


@pytest.fixture
def tokens():
    """Three units with 6, 2 and no words."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(6) < torch.tensor([[6], [2], [0]])
    text = torch.randn(3, 6, 8, generator=generator) * mask[..., None]
    return visual_tokens(torch.randn(3, 40, 8, generator=generator), text=text, text_mask=mask)


@pytest.mark.parametrize(("pivot_image", "pivot_text"), [(4, 4), (1, 0), (3, 5), (7, 1)])
@pytest.mark.parametrize("k", [1, 3, 4, 5, 17, 38, 40])
def test_against_the_rule_token_by_token(tokens, k, pivot_image, pivot_text):
    order = DART(pivot_image=pivot_image, pivot_text=pivot_text).select(tokens, k).order
    for i, words in enumerate((6, 2, 0)):
        expected = reference(tokens.features[i], tokens.text[i, :words], k, pivot_image, pivot_text)
        assert order[i].tolist() == expected


def test_strict_keeps_the_pivots_and_a_multiple_of_their_number(tokens):
    policy = DART(strict_paper=True)
    assert not policy.exact
    assert DART().exact
    for i, pivots in enumerate((8, 6, 4)):
        alone = unit(tokens, i)
        for k in (1, 17, 30, 39, 40):
            kept = min(4 + pivots * (k // pivots), 40)  # never more than there are
            assert policy.select(alone, k).indices.shape == (1, kept)


@pytest.mark.parametrize("fields", [{"pivot_image": 0}, {"pivot_image": True}, {"pivot_text": -1}])
def test_numbers_of_pivots_are_checked(fields):
    with pytest.raises(InvalidArgumentError, match=next(iter(fields))):
        DART(**fields)
