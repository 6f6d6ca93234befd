import json
from collections import Counter

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from tokenprune import ClipRelevance, Random, Uniform, wrap
from tokenprune.eval import accuracy, shapes


@pytest.fixture(scope="module")
def model_and_processor(tiny_checkpoint):
    from tokenprune.eval.shapes.inference import load

    return load(folder=tiny_checkpoint)


@pytest.fixture(scope="module")
def batches(model_and_processor):
    with torch.inference_mode():
        return list(accuracy.encoded(*model_and_processor, list(shapes.held_out(60))))


def test_batches_hold_every_sample_once(batches):
    assert [len(one.samples) for one in batches] == [50, 10]
    assert [len(one.features) for one in batches] == [50, 10]


@torch.inference_mode()
def test_pre_encoded_features_change_nothing(model_and_processor, batches):
    """Neither the dense logits nor what a policy picks."""
    model, batch = model_and_processor[0], batches[1]
    dense = model(**batch.inputs, pixel_values=batch.pixels, logits_to_keep=1).logits[:, -1].argmax(-1)
    assert torch.equal(accuracy.first_words(model, batch), dense)
    with wrap(model, "divprune", keep=9) as handle:
        accuracy.first_words(model, batch, handle)
        short_cut = [unit.indices.tolist() for unit in handle.report().units]
        model(**batch.inputs, pixel_values=batch.pixels)
        assert [unit.indices.tolist() for unit in handle.report().units] == short_cut


@torch.inference_mode()
def test_the_short_cut_is_compared_with_generate(model_and_processor, batches, monkeypatch):
    accuracy.check_against_generate(*model_and_processor, batches[1])
    monkeypatch.setattr(accuracy, "first_words", lambda model, batch: torch.zeros(len(batch.samples), dtype=torch.long))
    with pytest.raises(RuntimeError, match="not the first word"):
        accuracy.check_against_generate(*model_and_processor, batches[1])


@torch.inference_mode()
def test_counting_counts_right_answers_and_tokens(model_and_processor, batches, monkeypatch):
    model = model_and_processor[0]
    monkeypatch.setattr(accuracy, "first_words", lambda model, batch, handle: batch.answers)
    asked = Counter(one.question.kind for batch in batches for one in batch.samples)
    assert accuracy.count(model, batches, None, 1.0) == (asked, 256)
    monkeypatch.undo()
    assert accuracy.count(model, batches, Uniform(), 0.11)[1] == 28


@torch.inference_mode()
def test_clip_relevance_gets_the_tower_and_the_question_of_every_sample(model_and_processor, batches, monkeypatch):
    model, processor = model_and_processor
    side = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    words = processor.tokenizer
    text = side | {"hidden_size": 8, "vocab_size": len(words), "eos_token_id": words.eos_token_id}
    vision = side | {"hidden_size": model.config.vision_config.hidden_size, "image_size": 16, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    rows = accuracy.configurations((clip, words), 1)
    plus, minus = (rows[f"cdpruner, CLIP (sign {sign})"][0] for sign in ("+1", "-1"))
    scores = []
    monkeypatch.setattr(ClipRelevance, "__call__", spied(ClipRelevance.__call__, scores))
    for policy in (plus, minus):
        assert accuracy.count(model, batches[1:], policy, 0.05)[1] == 13
    assert torch.equal(scores[0][1], -scores[1][1])
    assert scores[0][0].instruction == [one.question.text for one in batches[1].samples]


def spied(call, seen):
    def wrapper(self, tokens):
        seen.append((tokens, call(self, tokens)))
        return seen[-1][1]

    return wrapper


def test_rows_average_over_seeds_and_keep_the_spread():
    asked = Counter(color=6, shape=4)
    one = accuracy.row("random", 0.5, [Counter(color=6), Counter(color=2, shape=2)], asked)
    assert one["accuracy"] == pytest.approx(0.5)
    assert one["std"] == pytest.approx(0.1414, abs=1e-4)
    assert one["by_kind"] == {"color": pytest.approx(4 / 6), "shape": 0.25}
    assert accuracy.row("pool", 0.5, [Counter(color=5)], asked)["std"] is None


def test_every_seed_is_another_random_policy():
    rows = accuracy.configurations(None, 3)
    assert rows["random"] == [Random(seed=0), Random(seed=1), Random(seed=2)]
    assert list(rows) == ["cdpruner", "cdpruner-openvino", "divprune", "pool", "uniform", "random"]


def test_the_command_writes_json_table_and_plot(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    load = shapes.load
    monkeypatch.setattr(accuracy.shapes, "load", lambda: load(folder=tiny_checkpoint), raising=False)
    monkeypatch.setattr(accuracy.shapes, "CHECKPOINT", tiny_checkpoint, raising=False)
    monkeypatch.setattr(accuracy, "KEEPS", (0.25, 0.05))
    command = ["accuracy", "--scenes", "6", "--seeds", "2", "--no-clip", "--out", str(tmp_path / "results")]
    monkeypatch.setattr("sys.argv", command)
    accuracy.main()
    result = json.loads((tmp_path / "results" / "accuracy.json").read_text())
    assert result["tokens"] == {"1.0": 256, "0.25": 64, "0.05": 13}
    assert len(result["rows"]) == 1 + 2 * 6
    assert {one["seeds"] for one in result["rows"] if one["policy"] == "random"} == {2}
    markdown = (tmp_path / "results" / "accuracy.md").read_text()
    assert markdown.startswith("| policy | 25% (64) | 5% (13) |\n|---|---:|---:|\n| cdpruner |")
    assert "\n| at 5% | " in markdown
    assert (tmp_path / "results" / "accuracy.png").stat().st_size > 10_000
    assert "divprune" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--scenes", "--seeds"])
def test_a_count_below_one_is_refused(monkeypatch, capsys, option):
    monkeypatch.setattr("sys.argv", ["accuracy", option, "0"])
    with pytest.raises(SystemExit) as caught:
        accuracy.main()
    assert caught.value.code == 2
    assert f"{option} 0 is below 1" in capsys.readouterr().err
