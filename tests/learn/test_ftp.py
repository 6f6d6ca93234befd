"""Training FTP's router and searching its schedules, on a tiny random model."""

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.learn.commands import refused, training
from tests.probes import same, snapshot
from tests.skipping import text_model
from tokenprune import FTP, wrap
from tokenprune.errors import InputError, InvalidArgumentError, PredictorError, TrainingError
from tokenprune.fingerprint import fingerprint
from tokenprune.learn import Plan
from tokenprune.learn import ftp as learning
from tokenprune.learn.ftp import RouterRecipe, train_ftp, windows
from tokenprune.learn.ftp_schedule import Search, genetic, read_on, search_schedules, similarity, with_mean
from tokenprune.learn.soft_skip import SoftSkip
from tokenprune.predictors import TokenRouter

SCHEDULE = (0.0, 0.5, 0.35, 0.2)
TEXTS = ["".join(chr(33 + (7 * i * k) % 90) for i in range(90)) for k in (1, 3, 5)]
RECIPE = RouterRecipe(prompt=12, answer=5, rows=4, hidden=8, sparsities=(0.1, 0.25))


def tokenizer(text, add_special_tokens=True):
    return {"input_ids": [5 + ord(one) % 90 for one in text]}


@pytest.fixture
def model():
    return text_model(dtype=torch.float32)


def weights(module):
    return torch.cat([one.detach().flatten() for one in module.parameters()])


def test_what_is_trained_on_is_the_model_that_will_skip(model):
    """Soft in the backward alone: the logits are those of the wrapped model, and the choice is its own."""
    ids, router = windows(tokenizer, TEXTS, 17)[:3], TokenRouter(rows=4)
    for one in router.parameters():
        torch.nn.init.normal_(one)
    with wrap(model, FTP(predictor=router, schedule=SCHEDULE)) as handle:
        wanted = read_on(model, ids, 12)
        kept = handle.report().kept
    soft = SoftSkip(model)
    with soft.attached():
        dense = soft.dense(ids, 12)
        found, decisions = soft.routed(ids, 12, router, SCHEDULE, temperature=0.5, noise=0.0)
        found.square().mean().backward()
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(dense, read_on(model, ids, 12), atol=2e-4, rtol=1e-4)
    assert (dense - wanted).abs().max() > 0.1
    for one, i in zip(decisions, (1, 2, 3), strict=True):
        assert torch.equal(one.keep, kept[i])
        assert one.share == SCHEDULE[i]
        assert one.static[:, 0].all()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in router.parameters())


def test_terms_of_the_loss():
    from tokenprune.learn.soft_skip import Decision

    static = torch.tensor([[True, False, True, True]])
    certain = torch.where(static[..., None], torch.tensor([-20.0, 20.0]), torch.tensor([20.0, -20.0]))
    one = Decision(logits=certain, share=0.5, keep=static, static=static)
    assert float(one.lacking()) == pytest.approx(0.25)
    assert float(one.apart()) < 1e-6
    more = Decision(logits=certain, share=0.2, keep=static, static=~static)
    assert float(more.lacking()) == 0.0
    assert float(more.apart()) > 10


def test_the_model_is_left_as_it_was(model):
    model.train()
    model(torch.tensor([[5, 6, 7]]))
    before, asked = snapshot(model), [one.requires_grad for one in model.parameters()]
    attention = model.config._attn_implementation
    with SoftSkip(model).attached():
        assert not model.training
        assert not any(one.requires_grad for one in model.parameters())
    assert same(before, snapshot(model))
    assert model.training
    assert [one.requires_grad for one in model.parameters()] == asked
    assert model.config._attn_implementation == attention


def test_training_goes_on_bit_for_bit_and_is_saved(model, tmp_path, monkeypatch):
    run = {"plan": Plan(steps=6, save_every=3, rate=0.01), "recipe": RECIPE, "schedules": [list(SCHEDULE)]}
    router, facts = train_ftp(model, tokenizer, TEXTS, tmp_path / "whole", **run)
    assert facts["last"].keys() >= {"loss", "distill", "sparse", "guide"}
    assert router.base == fingerprint(model)
    real = learning.losses.distillation
    calls = []

    def stopped(*given):
        calls.append(given)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(learning.losses, "distillation", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_ftp(model, tokenizer, TEXTS, tmp_path / "parts", **run)
    monkeypatch.setattr(learning.losses, "distillation", real)
    again, _ = train_ftp(model, tokenizer, TEXTS, tmp_path / "parts", **run)
    assert torch.equal(weights(again), weights(router))
    assert torch.equal(weights(TokenRouter.from_pretrained(tmp_path / "whole")), weights(router))
    with wrap(model, FTP(predictor=tmp_path / "whole", sparsity=0.2)) as handle:
        model(torch.arange(5, 25)[None])
    assert handle.report().skipped == 16
    with pytest.raises(TrainingError, match="guide=1.0 there, 0.5 here"):
        train_ftp(
            model,
            tokenizer,
            TEXTS,
            tmp_path / "whole",
            **{
                **run,
                "recipe": RouterRecipe(
                    **{
                        **{
                            name: getattr(RECIPE, name) for name in ("prompt", "answer", "rows", "hidden", "sparsities")
                        },
                        "guide": 0.5,
                    }
                ),
            },
        )


def test_a_loss_that_is_nan_keeps_what_was_good(model, tmp_path, monkeypatch):
    real, calls = learning.losses.distillation, []

    def broken(*given):
        calls.append(given)
        return real(*given) * (torch.nan if len(calls) == 4 else 1)

    monkeypatch.setattr(learning.losses, "distillation", broken)
    with pytest.raises(TrainingError, match="is nan at step 3"):
        train_ftp(model, tokenizer, TEXTS, tmp_path, plan=Plan(steps=6, save_every=2), recipe=RECIPE)
    assert torch.isfinite(weights(TokenRouter.from_pretrained(tmp_path))).all()


def test_with_enough_guidance_it_is_the_static_router(model, tmp_path):
    recipe = RouterRecipe(prompt=12, answer=5, rows=4, sparsities=(0.2, 0.3), distill=0.0, sparse=0.0, guided=100.0)
    router, facts = train_ftp(model, tokenizer, TEXTS, tmp_path, plan=Plan(steps=60, rate=0.03), recipe=recipe)
    assert facts["last"]["guide"] < 0.35
    kept = []
    for policy in (FTP(predictor=router, sparsity=0.25), FTP(router="static", sparsity=0.25)):
        with wrap(model, policy) as handle:
            model(windows(tokenizer, TEXTS, 12)[:2])
        kept.append(handle.report().kept)
    assert (kept[0] == kept[1]).float().mean() > 0.9


def test_the_search_keeps_the_mean_and_finds_what_is_better(model):
    search = Search(population=6, generations=4, texts=3, prompt=12, answer=5)
    found, facts = search_schedules(model, tokenizer, TEXTS, [0.2, 0.4], search=search)
    again, _ = search_schedules(model, tokenizer, TEXTS, [0.2, 0.4], search=search)
    assert found == again
    for one, mean, what in zip(found, (0.2, 0.4), facts["found"], strict=True):
        assert sum(one) / 4 == pytest.approx(mean, abs=1e-6)
        assert 0 <= min(one) <= max(one) <= 0.9
        assert what["kl"] <= what["kl_alike"]
    assert len(facts["similarity"]) == 4
    held, _ = search_schedules(model, tokenizer, TEXTS, [0.3], search=replace(search, whole=2, generations=1))
    assert held[0][:2] == [0, 0]
    assert sum(held[0]) / 4 == pytest.approx(0.3, abs=1e-6)
    with pytest.raises(InvalidArgumentError, match=r"whole=4 is not in \[0, 4\)"):
        search_schedules(model, tokenizer, TEXTS, [0.3], search=replace(search, whole=4))
    with pytest.raises(InvalidArgumentError, match=r"give means in \(0, 0.45\)"):
        search_schedules(model, tokenizer, TEXTS, [0.5], search=replace(search, whole=2))
    with pytest.raises(InvalidArgumentError, match="sparsities has 0.95"):
        search_schedules(model, tokenizer, TEXTS, [0.95])


def test_the_search_climbs():
    """What is lost is the share of the first block alone."""
    best, lost, alike = genetic(lambda shares: shares[0], [0.5, 0.6, 0.7, 0.4], 0.3, Search(generations=12))
    assert alike == 0.3
    assert lost == best[0] < 0.02
    assert with_mean([0.0, 5.0, 0.1], 0.4, 0.9) == pytest.approx([0.1, 0.9, 0.2])


def test_similarity_is_the_cosine_of_a_blocks_input_and_output(model):
    ids = windows(tokenizer, TEXTS, 17)[:2]
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states
    wanted = [float(torch.cosine_similarity(hidden[i], hidden[i + 1], dim=-1).mean()) for i in range(3)]
    assert similarity(model, ids)[:3] == pytest.approx(wanted, abs=1e-5)


def test_bad_arguments(model, tmp_path):
    with pytest.raises(InputError, match="texts have 90 tokens, and a piece takes 112"):
        train_ftp(model, tokenizer, TEXTS[:1], tmp_path, plan=Plan(steps=1))
    with pytest.raises(PredictorError, match=r"sparsity=0.25 is above 0.2"):
        train_ftp(model, tokenizer, TEXTS, tmp_path, plan=Plan(steps=1), recipe=RECIPE, schedules=[[0.2] * 4])
    with pytest.raises(InvalidArgumentError, match="3 shares, and the model has 4 blocks"):
        train_ftp(model, tokenizer, TEXTS, tmp_path, plan=Plan(steps=1), recipe=RECIPE, schedules=[[0.3] * 3])
    for more, match in (({"batch": 0}, "batch=0"), ({"sparsities": (0.4, 0.1)}, "smallest <= largest")):
        with pytest.raises(InvalidArgumentError, match=match):
            RouterRecipe(**more)
    with pytest.raises(InvalidArgumentError, match="population=2"):
        Search(population=2)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def invoke(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({chr(33 + i): 5 + i for i in range(90)} | {"?": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "model")
    text_model(dtype=torch.float32).save_pretrained(tmp_path / "model")
    (tmp_path / "data.txt").write_text("\n\n".join(TEXTS))

    given = {"--model": tmp_path / "model", "--data": tmp_path / "data.txt", "--out": tmp_path / "out"}
    given |= {"--steps": 3, "--prompt": 12, "--answer": 5, "--whole": 1, "--generations": 1}
    return training("ftp", given)


def test_the_command_trains_and_goes_on(invoke, tmp_path):
    result = invoke()
    assert result.exit_code == 0, result.output
    assert "450 parameters" in result.stdout
    router = FTP(predictor=tmp_path / "out").trained
    assert [one[0] for one in router.schedules] == [0, 0]
    assert invoke().exit_code == 0
    other = invoke("--steps", "4")
    refused(other, "steps=3 there, 4 here")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "nothing.txt"), "data='nothing.txt' cannot be read"),
        (("--model", "no/such-model"), "model='no/such-model' is neither a folder here"),
        (("--device", "warp"), "device='warp'"),
        (("--whole", "4"), "whole=4 is not in [0, 4)"),
        (("--most", "0.8"), "give means in (0, 0.675)"),
        (("--prompt", "500"), "and a piece takes 505"),
    ],
)
def test_bad_input_gets_one_sentence(invoke, options, words):
    refused(invoke(*options), words)
