import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenprune.errors import PredictorError
from tokenprune.fingerprint import check_fingerprint, fingerprint
from tokenprune.predictors import PruningModule


def model(seed=0, layers=1, width=16):
    torch.manual_seed(seed)
    sizes = {"intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 50}
    return LlamaForCausalLM(LlamaConfig(hidden_size=width, num_hidden_layers=layers, **sizes))


def test_the_same_weights_have_one_fingerprint_in_any_dtype():
    one = model().to(torch.bfloat16)
    assert fingerprint(one) == fingerprint(one.float())
    assert fingerprint(one)["embeddings"] != fingerprint(model(seed=1))["embeddings"]
    assert (fingerprint(one)["width"], fingerprint(one)["layers"]) == (16, 1)


@pytest.mark.parametrize(
    ("other", "word"), [({"seed": 1}, "embeddings"), ({"layers": 2}, "layers"), ({"width": 32}, "width")]
)
def test_another_model_is_refused_naming_both_and_what_differs(other, word):
    trained, here = fingerprint(model()), model(**other)
    check_fingerprint(trained, model(), "covipal")
    check_fingerprint({}, here, "covipal")
    with pytest.raises(PredictorError) as caught:
        check_fingerprint(trained, here, "covipal")
    text = str(caught.value)
    assert trained["embeddings"] in text
    assert fingerprint(here)["embeddings"] in text
    assert word in text.split("(")[-2] + text.split("(")[-1]
    assert "tokenprune train covipal" in text


def test_a_predictor_comes_back_as_it_was_saved(tmp_path):
    torch.manual_seed(0)
    module = PruningModule(width=6, hidden=8, layers=1, heads=2, base=fingerprint(model())).eval()
    module.save_pretrained(tmp_path)
    assert {"model.safetensors", "config.json"} <= {file.name for file in tmp_path.iterdir()}
    again = PruningModule.from_pretrained(str(tmp_path))
    assert again.base == module.base
    assert not again.training
    given = (torch.randn(2, 9, 6), torch.randn(2, 3, 6), torch.tensor([[True, True, True], [True, False, False]]))
    assert torch.equal(again(*given), module(*given))


def test_padding_of_the_text_and_other_units_change_nothing():
    torch.manual_seed(0)
    module = PruningModule(width=6, hidden=8, layers=2, heads=2)
    for one in module.parameters():
        torch.nn.init.normal_(one, std=1.0)
    x, text = torch.randn(2, 12, 6), torch.randn(2, 4, 6)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    both = module(x, text, mask, (1, 3, 4))
    alone = module(x[1:], text[1:, :2], mask[1:, :2], (1, 3, 4))
    torch.testing.assert_close(both[1:], alone)
    assert (both - module(x, text.flip(1), mask, (1, 3, 4)))[0].abs().max() > 1e-3, "the order of words counts"
    assert (both - module(x, text, mask, (1, 4, 3))).abs().max() > 1e-3, "the place counts"


@pytest.mark.parametrize("broken", ["no folder", "no config", "other kind", "no weights", "half a file", "other sizes"])
def test_what_cannot_be_loaded_gets_one_sentence(tmp_path, broken):
    PruningModule(width=6, hidden=8, layers=1, heads=2).save_pretrained(tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    source = tmp_path
    if broken == "no folder":
        source = tmp_path / "nothing"
    elif broken == "no config":
        config.unlink()
    elif broken == "other kind":
        config.write_text(config.read_text().replace("covipal", "router"))
    elif broken == "no weights":
        weights.unlink()
    elif broken == "half a file":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        config.write_text(config.read_text().replace('"hidden": 8', '"hidden": 16'))
    with pytest.raises(PredictorError) as caught:
        PruningModule.from_pretrained(source)
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_of_another_width_are_refused():
    with pytest.raises(PredictorError, match="width 5, and this module was trained for 6"):
        PruningModule(width=6, hidden=8, heads=2)(torch.zeros(1, 3, 5), torch.zeros(1, 1, 5), torch.ones(1, 1).bool())
