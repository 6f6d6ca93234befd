"""AD-TP's predictors and their folder, its policy, and the baselines of stage `encoder`."""

import pytest
import torch
from torch.nn import functional as F

from tokenprune import ADTP, TextFirst, TextNorm, TextRandom, TextTokens, get_policy
from tokenprune.errors import InvalidArgumentError, PredictorError
from tokenprune.ops import inner_tokens
from tokenprune.predictors import SaliencyPredictor, TokenRouter

REAL = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]]).bool()


def predictor(**more):
    torch.manual_seed(0)
    return SaliencyPredictor(**{"width": 6, "hidden": 4, **more})


def tokens(real=REAL):
    generator = torch.Generator().manual_seed(3)
    return TextTokens(embeddings=torch.randn(*real.shape, 6, generator=generator), real=real)


def test_saliency_of_a_token_by_the_formula():
    module, shown = predictor(), tokens()
    found = module(shown.embeddings, shown.real)
    for i, n in enumerate((7, 4)):
        x = shown.embeddings[i, :n]
        place = torch.stack([torch.arange(n) / n, torch.full((n,), torch.tensor(float(n)).log() / 6.238324625)], 1)
        mean = F.layer_norm(x.mean(0), (6,), module.norm.weight, module.norm.bias)
        hidden = F.gelu(module.token(module.norm(x)) + module.text(mean) + module.place(place))
        wanted = module.head(hidden) + module.straight(place)
        torch.testing.assert_close(found[i, :n], wanted[:, 0])


def test_padding_changes_nothing():
    module, shown = predictor(), tokens()
    scores = module(shown.embeddings, shown.real)
    alone = module(shown.embeddings[1:, :4], shown.real[1:, :4])
    torch.testing.assert_close(scores[1:, :4], alone)
    chosen = module.choose(shown.embeddings, shown.real, scores)
    torch.testing.assert_close(chosen[1:], module.choose(shown.embeddings[1:, :4], shown.real[1:, :4], alone))


def test_what_each_ratio_would_keep_of_the_saliency():
    module = predictor(ratios=[0.2, 0.5, 1.0])
    scores = torch.log(torch.tensor([[9.0, 1.0, 4.0, 2.0, 3.0, 0.5, 9.0], [9.0, 3.0, 1.0, 9.0, 9.0, 9.0, 9.0]]))
    masses = module.masses(scores, REAL)  # of 7 tokens 2, 4 and 7 stay, of 4 tokens 2, 2 and 4
    torch.testing.assert_close(masses, torch.tensor([[0, 7 / 10.5, 1], [0, 0, 1.0]]))
    assert module.masses(torch.zeros(1, 3), torch.tensor([[True, True, False]])).tolist() == [[0, 0, 0]]


def test_arp_chooses_the_candidate_of_the_largest_logit_for_each_text():
    module = predictor(ratios=[0.25, 0.5, 1.0])
    module.choose = lambda embeddings, real, scores: torch.tensor([[0.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
    policy, shown = ADTP(predictor=module), tokens()
    scores = policy.score(shown)
    assert torch.equal(scores, module(shown.embeddings, shown.real).detach())
    assert policy.shares(shown, scores).tolist() == [0.5, 1.0]
    assert ADTP(predictor=module, ratio=0.3).shares(shown, scores).tolist() == [0.3, 0.3]


def test_baselines():
    shown = tokens()
    assert TextFirst(ratio=0.5).score(shown)[0].argsort(descending=True).tolist() == list(range(7))
    assert torch.equal(TextNorm(ratio=0.5).score(shown), shown.embeddings.norm(dim=-1))
    drawn = TextRandom(ratio=0.5, seed=1).score(shown)
    alone = TextTokens(embeddings=shown.embeddings[1:, :4], real=shown.real[1:, :4])
    assert torch.equal(TextRandom(ratio=0.5, seed=1).score(alone), drawn[1:, :4])
    assert not torch.equal(TextRandom(ratio=0.5, seed=2).score(shown), drawn)
    left = TextTokens(embeddings=shown.embeddings[1:], real=REAL[1:].flip(1))
    assert torch.equal(TextRandom(ratio=0.5, seed=1).score(left)[0, 3:], drawn[1, :4])
    assert TextFirst(ratio=0.5).score(left)[0, 3:].tolist() == [0, -1, -2, -3]
    TextRandom(ratio=0.5, seed=2**31 - 1).score(shown)


def test_a_predictor_comes_back_from_its_folder(tmp_path):
    module = predictor(ratios=[0.5, 1.0], base={"model_type": "bert", "layers": 2})
    module.save_pretrained(tmp_path)
    assert {one.suffix for one in tmp_path.iterdir()} <= {".json", ".safetensors", ".md"}
    policy = ADTP(predictor=tmp_path)
    again = policy.trained
    assert (again.ratios, again.width, again.base) == ([0.5, 1.0], 6, module.base)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), module.parameters(), strict=True))
    assert policy.trained is again
    with pytest.raises(PredictorError, match="'ftp' is asked for"):
        TokenRouter.from_pretrained(tmp_path)


def test_flops_count_the_matrices():
    module, n = predictor(), 7
    matrices = [(6, 4, n), (2, 4, n), (4, 1, n), (2, 1, n), (6, 4, 1), (17, 2, 1), (2, 10, 1)]
    assert module.flops(n) == sum(2 * a * b * times for a, b, times in matrices) + 2 * 12  # and ARP's biases


def test_inner_tokens_alone_are_ranked():
    shown = tokens()
    assert inner_tokens(shown.real).sum(1).tolist() == [5, 2]
    assert shown.place[1, :4].tolist() == [0, 1, 2, 3]


def test_bad_arguments():
    assert get_policy("adtp") is ADTP
    for more in ({"ratio": 0.0}, {"ratio": 1.5}, {"ratio": "half"}, {"predictor": 3}, {"keep": 0.5}, {"per": "crop"}):
        with pytest.raises(InvalidArgumentError, match=next(iter(more))):
            ADTP(**more)
    with pytest.raises(InvalidArgumentError, match="seed"):
        TextRandom(seed=-1)
    for ratios in ([], [0.5, 0.2], [0.0, 1.0], [0.5, 1.1]):
        with pytest.raises(InvalidArgumentError, match="ratios"):
            predictor(ratios=ratios)
    with pytest.raises(PredictorError, match="nowhere"):
        ADTP(predictor="/nowhere/at/all").trained  # noqa: B018 -- read when it is first needed
