"""Tokens leave in front of a text encoder: against the same rows run through its blocks one text at a time."""

import copy
from dataclasses import dataclass

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    BertConfig,
    BertModel,
)

from tests.encoders import FAMILIES, SIZES, build, texts
from tokenprune import ADTP, EncoderPolicy, FastV, TextFirst, TextRandom, wrap
from tokenprune.errors import (
    AlreadyWrappedError,
    InvalidArgumentError,
    InvalidFeaturesError,
    PredictorError,
    UnsupportedModelError,
    UnsupportedPolicyError,
)
from tokenprune.fingerprint import fingerprint
from tokenprune.predictors import SaliencyPredictor

LENGTHS = (11, 4, 16, 7)
SKIP_PADDING = ("camembert", "roberta", "xlm-roberta")  # when they count places


@dataclass(kw_only=True)
class ByFeature(EncoderPolicy):
    """Its scores depend on the text; counts on its length where `mixed`."""

    name = "by-feature"
    adaptive = True
    mixed: bool = False

    def score(self, tokens):
        return tokens.embeddings[..., 0]

    def shares(self, tokens, scores):
        odd = tokens.real.sum(1) % 2 == 1
        return torch.where(odd, 0.9, 0.3) if self.mixed else super().shares(tokens, scores)


def pooled(rows, mask):
    mask = mask[..., None].to(rows)
    return (rows * mask).sum(1) / mask.sum(1)


@torch.no_grad()
def alone(model, ids, share, **places):
    """Places of one text's tokens that stay, and the rows of the last block for these, without `wrap`."""
    encoder = model.base_model
    seen = []
    with encoder.embeddings.register_forward_hook(lambda m, a, out: seen.append(out)):
        encoder(input_ids=ids[None], **places)
    whole, n = seen[0], len(ids)
    count = max(2, min(n, -int(-share * n // 1)))
    inside = whole[0, 1:-1, 0].argsort(descending=True)[: count - 2] + 1
    places = torch.cat([torch.tensor([0, n - 1]), inside]).sort().values
    with encoder.embeddings.register_forward_hook(lambda m, a, out: whole[:, places]):
        out = model(input_ids=ids[None, :count])
        return places, (out.logits if hasattr(out, "logits") else out.last_hidden_state)[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_are_those_of_each_text_by_itself(family, side):
    model, given = build(family), texts(LENGTHS, side=side)
    with wrap(model, ByFeature(ratio=0.5), restore=False) as handle, torch.no_grad():
        rows = model(**given).last_hidden_state
        report = handle.report()
    assert rows.shape == (4, 8, 24)
    for i, n in enumerate(LENGTHS):
        start = 0 if side == "right" else max(LENGTHS) - n
        counted = {} if family in SKIP_PADDING else {"position_ids": torch.arange(start, start + n)[None]}
        places, wanted = alone(model, given["input_ids"][i][given["attention_mask"][i].bool()], 0.5, **counted)
        assert torch.equal(report.indices[i], places + start)
        torch.testing.assert_close(rows[i, : len(places)], wanted, atol=1e-10, rtol=1e-10)
        assert report.attention_mask[i].sum() == len(places) == report.kept[i] == max(2, -(-n // 2))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_heads_answer_as_for_each_text_by_itself(family, attention):
    model, given = build(family, head=True), texts((11, 8, 16))
    model.set_attn_implementation(attention)
    with wrap(model, ByFeature(mixed=True)), torch.no_grad():
        logits = model(**given).logits
    for i, share in enumerate((0.9, 0.3, 0.3)):
        _, wanted = alone(model, given["input_ids"][i][given["attention_mask"][i].bool()], share)
        torch.testing.assert_close(logits[i], wanted, atol=1e-10, rtol=1e-10)


def test_restored_rows_pool_as_those_that_stayed():
    model, given = build(), texts(LENGTHS)
    mask = given["attention_mask"]
    with torch.no_grad():
        dense = model(**given)
        with wrap(model, ByFeature(ratio=0.5), restore=False) as handle:
            short, seen = model(**given).last_hidden_state, handle.report().attention_mask
        with wrap(model, ByFeature(ratio=0.5)) as handle:
            out = model(**given, output_hidden_states=True)
            indices = handle.report().indices
            plain = model(**given, return_dict=False)
    whole = out.last_hidden_state
    assert whole.shape == dense.last_hidden_state.shape
    assert out.hidden_states[0].shape == short.shape
    torch.testing.assert_close(pooled(whole, mask), pooled(short, seen))
    lowest = -torch.inf
    assert torch.equal(
        whole.masked_fill(mask[..., None] == 0, lowest).amax(1), short.masked_fill(seen[..., None] == 0, lowest).amax(1)
    )
    assert torch.equal(whole[:, 0], short[:, 0])
    for i, places in enumerate(indices):
        assert torch.equal(whole[i, places], short[i, : len(places)])
    assert not whole[mask == 0].any()
    assert torch.equal(plain[0], whole)
    assert torch.equal(plain[1], out.pooler_output)


@pytest.mark.parametrize("more", [{}, {"token_type_ids": True}, {"position_ids": True}, {"inputs_embeds": True}])
def test_all_that_is_given_per_token_goes_along(more):
    model, given = build(), texts((12, 9))
    generator = torch.Generator().manual_seed(1)
    if "token_type_ids" in more:
        given["token_type_ids"] = torch.randint(2, (2, 12), generator=generator)
    if "position_ids" in more:
        given["position_ids"] = torch.randperm(12, generator=generator)[None]
    if "inputs_embeds" in more:
        given["inputs_embeds"] = model.get_input_embeddings()(given.pop("input_ids"))
    with torch.no_grad(), wrap(model, TextFirst(ratio=0.5), restore=False):
        rows = model(**given).last_hidden_state
        given = {name: one.expand(2, *one.shape[1:]) for name, one in given.items()}
        kept = [[0, 1, 2, 3, 4, 11], [0, 1, 2, 3, 8]]
    if "position_ids" not in more:
        given["position_ids"] = torch.arange(12).expand(2, 12)
    with torch.no_grad():
        for i, places in enumerate(kept):
            wanted = model(**{name: one[i : i + 1, places] for name, one in given.items()}).last_hidden_state
            torch.testing.assert_close(rows[i, : len(places)], wanted[0], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_left_is_the_model_bit_for_bit_and_nothing_stays_behind(family):
    model, given = build(family), texts(LENGTHS)
    before = {name: dict(vars(one)) for name, one in model.named_modules()}
    hooks = [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()]
    with torch.no_grad():
        dense = model(**given).last_hidden_state
        handle = wrap(model, TextRandom(ratio=1.0))
        assert torch.equal(model(**given).last_hidden_state, dense)
        assert handle.report().cost()["flops_pruned"] == handle.report().cost()["flops_dense"]
        handle.remove()
        with wrap(model, TextRandom(ratio=0.2)) as handle:
            assert not torch.equal(model(**given).last_hidden_state, dense)
            handle.enabled = False
            assert torch.equal(model(**given).last_hidden_state, dense)
        assert torch.equal(model(**given).last_hidden_state, dense)
    assert [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()] == hooks
    assert {name: set(vars(one)) for name, one in model.named_modules()} == {
        name: set(one) for name, one in before.items()
    }


def test_without_a_mask_all_count_and_equal_counts_need_no_padding():
    model, given = build(), texts((10, 10))
    with torch.no_grad(), wrap(model, ByFeature(ratio=0.4)) as handle:
        masked = model(**given).last_hidden_state
        bare = model(given["input_ids"]).last_hidden_state
    torch.testing.assert_close(bare, masked)
    assert handle.report().kept == [4, 4]
    assert "kept 4/10" in str(handle.report())
    assert handle.report().to_dict()["indices"][0][0] == 0


def test_labels_and_gradients_go_through():
    model, given = build(head=True), texts(LENGTHS)
    with wrap(model, ByFeature(ratio=0.5)):
        loss = model(**given, labels=torch.tensor([0, 1, 2, 0])).loss
    loss.backward()
    assert model.base_model.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_a_report_before_any_text_and_flops_of_one():
    model = build()
    with wrap(model, TextFirst(ratio=0.5)) as handle, torch.no_grad():
        assert "no text yet" in str(handle.report())
        assert handle.report().attention_mask is None
        model(**texts((10,)))
    n, k, d, m = 10, 5, 24, 40
    wanted = [2 * 2 * (4 * x * d * d + 2 * x * x * d + 2 * x * d * m) for x in (n, k)]
    assert list(handle.report().cost().values()) == wanted


def heads(kind, family="bert"):
    return kind.from_config(AutoConfig.for_model(family, **SIZES, intermediate_size=40, pad_token_id=1))


@pytest.mark.parametrize("kind", [AutoModelForQuestionAnswering, AutoModelForTokenClassification])
def test_heads_that_answer_for_every_token_are_refused(kind):
    with pytest.raises(UnsupportedModelError, match="answers for every token"):
        wrap(heads(kind), TextFirst(ratio=0.5))


def test_what_cannot_be_pruned_gets_a_sentence():
    model, policy = build(), TextFirst(ratio=0.5)
    decoder = BertModel(BertConfig(**SIZES, intermediate_size=40, is_decoder=True))
    for other, words in ((torch.nn.Linear(2, 2), "no text encoder"), (decoder, "is_decoder"), ("bert", "no text enc")):
        with pytest.raises(UnsupportedModelError, match=words):
            wrap(other, policy)
    for options, words in (({"timing": True}, "timing"), ({"keep": 0.5}, "give ratio"), ({"logits": "full"}, "logits")):
        with pytest.raises(InvalidArgumentError, match=words):
            wrap(model, policy, **options)
    with pytest.raises(InvalidArgumentError, match="works alone"):
        wrap(model, [policy, FastV(keep=0.5)])
    with pytest.raises(InvalidArgumentError, match="ratio=None leaves 'text-first'"):
        wrap(model, "text-first")
    with pytest.raises(InvalidArgumentError, match="predictor=None"):
        wrap(model, "adtp")
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())
    with wrap(model, policy) as handle:
        with pytest.raises(AlreadyWrappedError, match="wrapped already"):
            wrap(model, policy)
        with pytest.raises(InvalidArgumentError, match="instruction"):
            handle.instruction = "what?"
        with pytest.raises(UnsupportedPolicyError, match="attention_mask"):
            model(torch.ones(1, 5, dtype=torch.long), attention_mask=torch.ones(1, 1, 5, 5))


def test_numbers_that_are_none_are_refused():
    predictor = SaliencyPredictor(width=24, hidden=8)
    with torch.no_grad():
        predictor.head.bias.fill_(float("nan"))
    model = build()
    with wrap(model, ADTP(predictor=predictor, ratio=0.5)):
        with pytest.raises(InvalidFeaturesError, match="scores of policy='adtp' are NaN"):
            model(**texts((9,)))


def test_a_predictor_of_another_model_is_refused_and_both_are_named():
    model, other = build(), build(num_hidden_layers=1)
    predictor = SaliencyPredictor(width=24, hidden=8, base=fingerprint(other))
    with pytest.raises(PredictorError, match=r"trained for bert \(1 layers.*model is bert \(2 layers"):
        wrap(model, ADTP(predictor=predictor))
    with wrap(other, ADTP(predictor=predictor)):
        pass
    with wrap(model, ADTP(predictor=SaliencyPredictor(width=12, hidden=8), ratio=0.5)):
        with pytest.raises(PredictorError, match="width 24.*trained for 12"):
            model(**texts((9,)))


def test_a_copy_of_a_wrapped_model_is_not_wrapped():
    model, given = build(), texts(LENGTHS)
    with torch.no_grad(), wrap(model, TextFirst(ratio=0.3)):
        twin = copy.deepcopy(model)
        pruned = model(**given).last_hidden_state
        free = twin(**given).last_hidden_state
    assert torch.equal(free, model(**given).last_hidden_state)
    assert not torch.equal(free, pruned)
