"""Training of AD-TP's predictors."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import BertTokenizerFast

from tests.encoders import Tokenizer, build, texts
from tests.learn.commands import refused, training
from tokenprune import ADTP, wrap
from tokenprune.errors import InputError, InvalidArgumentError, TrainingError
from tokenprune.fingerprint import fingerprint
from tokenprune.learn import Plan, SaliencyRecipe, train_adtp
from tokenprune.learn import adtp as learning
from tokenprune.learn.frozen_encoder import FrozenEncoder
from tokenprune.ops import keep_best
from tokenprune.predictors import SaliencyPredictor

TEXTS = ["a quick brown fox jumps", "over the lazy dog", "pack my box with five dozen", "jugs of liquor now please"]
RECIPE = SaliencyRecipe(batch=2, hidden=8, draws=2, chosen=1, ratios=(0.3, 0.6, 1.0))


def model(**more):
    return build(**more).float()


def weights(module):
    return torch.cat([one.detach().flatten() for one in module.parameters()])


@pytest.mark.parametrize("head", [False, True])
def test_a_distance_is_that_of_the_wrapped_model(head):
    """What training takes for a pruned answer is what `wrap` answers."""
    encoder, given = build(head=head), texts((11, 6, 14))
    frozen, predictor = FrozenEncoder(encoder), SaliencyPredictor(width=24, hidden=8)
    real = given["attention_mask"].bool()
    with frozen.attached(), torch.no_grad():
        x, answer = frozen.read(given)
        torch.testing.assert_close(frozen.answer(x, real), answer)
        scores = predictor(x, real)
        found = learning.distances(frozen, learning.Told(x, real, answer, None), scores, [0.4])[:, 0]
    with torch.no_grad(), wrap(encoder, ADTP(predictor=predictor, ratio=0.4)):
        out = encoder(**given)
    mask = given["attention_mask"][..., None]
    pruned = out.logits if head else (out.last_hidden_state * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(found, frozen.apart(pruned.float(), answer), atol=1e-5, rtol=1e-4)
    assert (found > 1e-4).all()
    if head:
        taught = answer.softmax(-1)
        wanted = (taught * (taught.log() - pruned.float().log_softmax(-1))).sum(-1)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_draws_keep_the_count_and_scatter_as_their_chances_say():
    torch.manual_seed(0)
    real = torch.tensor([[True] * 10, [True] * 7 + [False] * 3])
    scores = torch.randn(2, 10, requires_grad=True)
    keep, chances = learning.drawn(scores, real, 0.5, 0.5, 400)
    assert keep.sum(-1).unique(dim=0).tolist() == [[5, 4]]
    assert not (keep & ~real).any()
    assert keep[:, 0, [0, 9]].all()
    assert keep[:, 1, [0, 6]].all()
    often = keep.float().mean(0)[0, 1:9]
    assert often.argsort().tolist()[-2:] == scores[0, 1:9].argsort().tolist()[-2:]
    assert ((often > 0) & (often < 1)).any()
    likeliest = keep_best(scores, real, torch.tensor([5, 4]))
    best = (keep == likeliest).all(-1)
    assert chances[:, 0][best[:, 0]].min() >= chances[:, 0].max() - 1e-6
    chances[best[:, 0], 0].mean().backward()  # raising what was kept makes it likelier
    inner = slice(1, 9)
    assert (scores.grad[0, inner][likeliest[0, inner]] > 0).all()
    assert (scores.grad[0, inner][~likeliest[0, inner]] < 0).all()


def test_training_finds_the_tokens_that_an_answer_depends_on(tmp_path):
    """An encoder without blocks that mix averages rows: some words are long there, so they are salient."""
    encoder = model(num_hidden_layers=1)
    with torch.no_grad():
        for name, one in encoder.named_parameters():
            if "encoder" in name and one.ndim > 1:
                one.mul_(1e-3)
    letters = torch.randint(97, 123, (40, 12), generator=torch.Generator().manual_seed(0)).tolist()
    words = ["".join(map(chr, row)) for row in letters]
    run = {"recipe": SaliencyRecipe(batch=4, hidden=8, draws=4, chosen=1, ratios=(0.4, 1.0))}
    first, _ = train_adtp(encoder, Tokenizer(), words, tmp_path / "a", plan=Plan(steps=1, rate=1e-9), **run)
    last, facts = train_adtp(encoder, Tokenizer(), words, tmp_path / "b", plan=Plan(steps=100, rate=0.02), **run)
    lines = [json.loads(one) for one in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert lines[49]["align"] < lines[0]["align"]
    assert facts["of"] == 40
    frozen = FrozenEncoder(encoder)
    batch = Tokenizer()(words, padding=True, return_tensors="pt")
    with frozen.attached(), torch.no_grad():
        x, answer = frozen.read(batch)
        real = batch["attention_mask"].bool()
        told = learning.Told(x, real, answer, None)
        before, after = (float(learning.distances(frozen, told, one(x, real), [0.4]).mean()) for one in (first, last))
    assert after < 0.9 * before


def test_a_higher_price_keeps_less(tmp_path):
    plan, kept = Plan(steps=40, rate=0.03), []
    for price in (0.01, 3.0):
        recipe = SaliencyRecipe(batch=2, hidden=8, draws=2, chosen=2, price=price, imitate=0.0, ratios=(0.2, 0.6, 1.0))
        module, facts = train_adtp(model(), Tokenizer(), TEXTS, tmp_path / str(price), plan=plan, recipe=recipe)
        kept.append(facts["last"]["retained"])
        assert facts["last"].keys() >= {"loss", "align", "distance", "expected", "retained"}
        assert module.base == fingerprint(model())
    assert kept[0] > 0.9
    assert kept[1] < 0.3


def test_training_goes_on_bit_for_bit_and_is_saved(tmp_path, monkeypatch):
    encoder, run = model(), {"plan": Plan(steps=6, save_every=2, rate=0.01), "recipe": RECIPE}
    whole, _ = train_adtp(encoder, Tokenizer(), TEXTS, tmp_path / "whole", **run)
    real, calls = learning._cut, []

    def stopped(*given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(learning, "_cut", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_adtp(encoder, Tokenizer(), TEXTS, tmp_path / "parts", **run)
    monkeypatch.setattr(learning, "_cut", real)
    again, facts = train_adtp(encoder, Tokenizer(), TEXTS, tmp_path / "parts", **run)
    assert torch.equal(weights(again), weights(whole))
    assert torch.equal(weights(SaliencyPredictor.from_pretrained(tmp_path / "whole")), weights(whole))
    assert facts["steps"] == 6
    other = replace(RECIPE, draws=3)
    with pytest.raises(TrainingError, match="draws=2 there, 3 here"):
        train_adtp(encoder, Tokenizer(), TEXTS, tmp_path / "whole", plan=run["plan"], recipe=other)


def test_the_model_is_left_as_it_was_even_by_a_training_that_fails(tmp_path, monkeypatch):
    encoder = model().train()
    asked = [one.requires_grad for one in encoder.parameters()]
    before = weights(encoder)
    real, calls = learning._cut, []

    def none(*given):
        calls.append(given)
        lost = real(*given)
        return {**lost, "loss": lost["loss"] * float("nan")} if len(calls) > 2 else lost

    monkeypatch.setattr(learning, "_cut", none)
    with pytest.raises(TrainingError, match="keeps what was saved last"):
        train_adtp(encoder, Tokenizer(), TEXTS, tmp_path, plan=Plan(steps=8, save_every=1), recipe=RECIPE)
    assert SaliencyPredictor.from_pretrained(tmp_path).parameters_count
    assert encoder.training
    assert torch.equal(weights(encoder), before)
    assert [one.requires_grad for one in encoder.parameters()] == asked
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in encoder.modules())


def test_bad_arguments_and_texts_get_a_sentence(tmp_path):
    with pytest.raises(InputError, match="none of 2 texts has 5 tokens"):
        train_adtp(model(), Tokenizer(), ["a", "b c"], tmp_path, plan=Plan(steps=1))
    for name, value in (("batch", 0), ("draws", 1), ("imitate", 2.0), ("temperature", 0), ("ratios", (1.0,))):
        with pytest.raises(InvalidArgumentError, match=name):
            SaliencyRecipe(**{name: value})
    with pytest.raises(InvalidArgumentError, match="pool='means' is not one of mean, first"):
        FrozenEncoder(model(), pool="means")


@pytest.fixture
def invoke(tmp_path):
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    letters += list("abcdefghijklmnopqrs")
    (tmp_path / "vocab.txt").write_text("\n".join(letters))
    model(vocab_size=len(letters), pad_token_id=0).save_pretrained(tmp_path / "model")
    BertTokenizerFast(vocab_file=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "model")
    (tmp_path / "data.txt").write_text("\n\n".join(TEXTS))

    given = {"--model": tmp_path / "model", "--data": tmp_path / "data.txt", "--out": tmp_path / "out"}
    given |= {"--steps": 4, "--batch": 2, "--hidden": 8}
    return training("adtp", given)


def test_the_command_trains_and_goes_on(invoke, tmp_path):
    result = invoke()
    assert result.exit_code == 0, result.output
    assert "parameters, 4 texts" in result.stdout
    assert ADTP(predictor=tmp_path / "out").trained.base["model_type"] == "bert"
    assert invoke().exit_code == 0
    other = invoke("--price", "0.5")
    refused(other, "price=0.3 there, 0.5 here")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "nothing.txt"), "data='nothing.txt' cannot be read"),
        (("--model", "no/such-model"), "model='no/such-model' is neither a folder here"),
        (("--pool", "max"), "pool='max' is not one of mean, first"),
        (("--device", "warp"), "device='warp'"),
        (("--hidden", "1"), "hidden=1 is below 2"),
    ],
)
def test_bad_input_gets_one_sentence(invoke, options, words):
    refused(invoke(*options), words)
