from dataclasses import replace

import pytest
import torch

from tests.default_policies import visual_tokens
from tokenprune.errors import InvalidArgumentError
from tokenprune.ops import coverage
from tokenprune.policies import MMTok


def reference(x, v, y, k, policy):
    """The formulas in float64, with F in full."""
    x, v, y = (a.double() / a.double().norm(dim=-1, keepdim=True) for a in (x, v, y))
    q = policy.alpha * (v @ v.T / policy.vv_temp).softmax(-1) / len(v)
    f = torch.cat([(y @ x.T / policy.tv_temp).softmax(-1) / max(len(y), 1), q])
    covered, order = torch.zeros(len(f), 1, dtype=torch.float64), []
    for _ in range(k):
        gain = (f - covered).clamp_min(0).sum(0)
        gain[order] = -1
        order.append(int(gain.argmax()))
        covered = torch.maximum(covered, f[:, order[-1:]])
    return order


@pytest.fixture
def tokens():
    """Two units with 5 and 2 words; rows of padding are not zero, to show that they do not count."""
    generator = torch.Generator().manual_seed(2)
    encoder = torch.randn(2, 30, 3, 4, generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    features, text = torch.randn(2, 30, 8, generator=generator), torch.randn(2, 5, 8, generator=generator)
    return visual_tokens(features, encoder=encoder, text=text, text_mask=mask)


@pytest.mark.parametrize("fields", [{}, {"alpha": 3.0}, {"alpha": 0.05, "tv_temp": 0.2}, {"vv_temp": 0.1}])
@pytest.mark.parametrize("lazy", [False, True])
def test_against_the_formulas(monkeypatch, tokens, fields, lazy):
    if lazy:
        monkeypatch.setattr(coverage, "BLOCK_ELEMENTS", 0)
        monkeypatch.setattr(coverage, "FIRST_ROUND", 3)
    policy = MMTok(**fields)
    order = policy.select(tokens, 12).order
    for i, words in enumerate((5, 2)):
        v = tokens.encoder[i].flatten(1)
        assert order[i].tolist() == reference(tokens.features[i], v, tokens.text[i, :words], 12, policy)


def test_without_text_only_the_image_is_covered(tokens):
    policy, silent = MMTok(), replace(tokens, text_mask=torch.zeros_like(tokens.text_mask))
    expected = reference(tokens.features[0], tokens.encoder[0].flatten(1), tokens.text[0, :0], 9, policy)
    assert policy.select(silent, 9).order[0].tolist() == expected


def test_without_alpha_words_come_first_and_then_the_lowest_places():
    """Every word points at one token; once all are covered nothing is gained."""
    features = torch.eye(6)[None]
    text = torch.eye(6)[None, [4, 2]]
    tokens = visual_tokens(features, text=text, text_mask=torch.ones(1, 2, dtype=torch.bool))
    assert MMTok(alpha=0.0, tv_temp=1e-3).select(tokens, 4).order.tolist() == [[2, 4, 0, 1]]


@pytest.mark.parametrize("fields", [{"alpha": -1.0}, {"alpha": "x"}, {"tv_temp": 0.0}, {"vv_temp": float("nan")}])
def test_weights_and_temperatures_are_checked(fields):
    with pytest.raises(InvalidArgumentError, match=f"{next(iter(fields))}="):
        MMTok(**fields)
