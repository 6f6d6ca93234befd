"""Speed of selections: figures of real, tiny runs, beside goals that are said to be missed where they are."""

import json
from dataclasses import replace

import pytest
import torch

from tokenprune import get_policy
from tokenprune.errors import PolicyError
from tokenprune.eval.speed import data as selection_data
from tokenprune.eval.speed import hooks as hook_costs
from tokenprune.eval.speed import memory as selection_memory
from tokenprune.eval.speed import rows as row_costs
from tokenprune.eval.speed import selection as selection_speed
from tokenprune.eval.speed.goals import Goal, verdicts
from tokenprune.eval.speed.selection import Case, differing
from tokenprune.eval.training_free import training_free

NEVER, ALWAYS = Goal("speedup", ">=", 1e9, "x"), Goal("speedup", ">=", 0, "x")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(selection_speed, "CASES", (Case(1, 48, 8, cpu=(NEVER,)), Case(2, 40, 5, cpu=(ALWAYS,))))


def run(module, folder, *given):
    module.main([*map(str, given), "--out", str(folder)])
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text()), file.with_suffix(".md").read_text()


def test_goals_are_met_or_missed():
    row = {"ms": [0.3, 0.1, 0.9], "x": 10.0, "share": 0.021}
    assert Goal("ms", "<=", 0.25, " ms").of(row) == {"goal": "<= 0.25 ms", "met": False}
    assert Goal("ms", "<=", 0.3, " ms").of(row)["met"]
    assert Goal("x", ">=", 10, "x").of(row) == {"goal": ">= 10x", "met": True}
    found = [Goal("share", "<=", 0.02, percent=True).of(row), Goal("x", ">=", 10.5, "x").of(row)]
    assert verdicts(found) == "<= 2 %: missed; >= 10.5x: missed"


def test_the_table_of_the_goals():
    first, second, *others = selection_speed.CASES
    assert [(case.units, case.n, case.k) for case in (first, second)] == [(1, 576, 64), (5, 576, 128)]
    assert [goal.text for goal in first.cuda] == ["<= 0.25 ms", ">= 10x"]
    assert [goal.text for goal in second.cuda] == ["<= 1 ms"]
    assert [goal.text for goal in first.cpu] == [">= 3x"]
    assert {(case.n, case.k) for case in others} == {(2928, 320), (1296, 143)}
    assert selection_memory.GOAL.text == "<= 256 MiB"
    assert selection_memory.TOKENS == 16384
    assert row_costs.GOAL.text == "<= 2 % of a layer"


def test_made_tokens_are_as_alike_as_said():
    x = torch.nn.functional.normalize(selection_data.features(2, 512, 2048), dim=-1)
    cosines = x @ x.mT
    spread = cosines[~torch.eye(512, dtype=torch.bool).expand(2, -1, -1)]
    same = spread[spread > 0.5]
    assert abs(float(spread[spread < 0.5].mean()) - 1 / 3) < 0.05
    assert abs(float(same.mean()) - 2 / 3) < 0.05
    assert abs(len(same) / len(spread) - 1 / selection_data.CLUSTERS) < 0.01
    r = selection_data.quality(3, 100)
    assert torch.equal(r.amin(1), torch.zeros(3))
    assert torch.equal(r.amax(1), torch.ones(3))


@pytest.mark.parametrize("selector", selection_data.SELECTORS)
def test_the_plain_loop_and_the_public_function_answer_the_same_question(selector):
    x = selection_data.features(2, 60, 32)
    plain, public = (call() for call in selection_data.selections(selector, x, 9).values())
    assert plain.shape == (2, 9)
    assert torch.equal(plain, public)


def test_differing_picks_are_counted_as_sets():
    some = torch.tensor([[3, 1, 2], [0, 5, 4]])
    assert differing(some, some.flip(1), 6) == 0
    assert differing(some, torch.tensor([[3, 0, 2], [1, 2, 3]]), 6) == 4


def test_the_command_writes_json_and_tables(tiny, tmp_path):
    result, text = run(selection_speed, tmp_path, "--rounds", 3, "--width", 16, "--tokens", 1024)
    rows = result["rows"]
    assert [(row["case"], row["selector"]) for row in rows] == [
        (case, selector) for case in ("48 -> 8", "2 x 40 -> 5") for selector in selection_data.SELECTORS
    ]
    for row in rows:
        for name in ("plain_ms", "public_ms", "speedup"):
            median, low, high = row[name]
            assert 0 < low <= median <= high
        assert row["differing"] == 0
    assert result["versions"].keys() >= {"torch", "tokenprune", "python"}
    assert result["memory_of"] == {"n": 1024, "k": 32, "width": 64}
    assert text.count(">= 1e+09x: missed; <= 0 differing: met") == text.count(">= 0x: met; <= 0 differing: met") == 3
    assert "| cdpruner | " in text
    assert "--width 16 --rounds 3 --threads 1 --tokens 1024" in text


def test_other_picks_miss_their_goal(tiny, tmp_path, monkeypatch):
    plain = selection_data.selections

    def wrong(selector, x, k):
        calls = plain(selector, x, k)
        return calls | {"public": lambda: (calls["plain"]() + 1) % x.shape[1]}

    monkeypatch.setattr(selection_speed, "selections", wrong)
    result, text = run(selection_speed, tmp_path, "--rounds", 1, "--width", 16, "--tokens", 0)
    assert result["memory"] == []
    assert all(row["differing"] > 0 for row in result["rows"])
    assert text.count("<= 0 differing: missed") == 6


@pytest.mark.parametrize(
    ("module", "given", "words"),
    [
        (selection_speed, ["--tokens", "1000"], "--tokens 1000 is no multiple of 1024"),
        (selection_speed, ["--rounds", "0"], "--rounds 0 is below 1"),
        (selection_speed, ["--device", "cuda"], "--device cuda, and torch finds none: use cpu"),
        (row_costs, ["--scale", "1.5"], "--scale 1.5 is outside (0, 1]"),
        (row_costs, ["--device", "cuda"], "--device cuda, and torch finds none: use cpu"),
        (hook_costs, ["--repeats", "0"], "--repeats 0 is below 1"),
    ],
)
def test_bad_options_get_a_sentence(module, given, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        module.main([*given, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_extra_memory_is_that_of_the_call():
    x = torch.zeros(2**18)
    assert selection_memory.extra(lambda: (x + 1) * 2, "cpu") == {"peak_mib": 2.0}
    assert selection_memory.extra(lambda: x[:10], "cpu") == {"peak_mib": 0.0}


def test_memory_of_every_policy_in_front_of_the_language_model(monkeypatch):
    monkeypatch.setattr(selection_memory, "GOAL", replace(selection_memory.GOAL, limit=0.001))
    rows = selection_memory.measure("cpu", 1024, 128)
    projector = training_free("projector").keys() - {"none"}
    assert [row["what"] for row in rows[:3]] == list(selection_data.SELECTORS)
    assert {row["what"] for row in rows[3:]} == projector
    assert all("refused" not in row for row in rows)
    cdpruner = next(row for row in rows if row["what"] == "cdpruner")
    assert cdpruner["goals"] == [{"goal": "<= 0.001 MiB", "met": False}]


def test_a_policy_that_refuses_is_said_to(monkeypatch):
    def refuses(self, tokens, k):
        raise PolicyError("too few.")

    monkeypatch.setattr(get_policy("norm"), "select", refuses)
    row = next(row for row in selection_memory.measure("cpu", 1024, 8) if row["what"] == "norm")
    assert row == {"what": "norm", "of": "image", "refused": "too few.", "goals": []}


@pytest.fixture(scope="module")
def layer():
    return row_costs.Layer("llava-1.5-7b", scale=0.05, dtype="float32", device="cpu", text=16)


@pytest.mark.parametrize("count", row_costs.ROWS)
def test_rows_are_the_attention_of_the_last_tokens(layer, count):
    query, keys, _, options = layer.handed
    scores = query[0] @ keys[0].repeat_interleave(query.shape[1] // keys.shape[1], 0).mT * options["scaling"]
    causal = torch.ones(layer.length, layer.length, dtype=torch.bool).tril()
    whole = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    assert layer.length == 576 + 16
    assert int(layer.visual.sum()) == 576
    torch.testing.assert_close(layer.alone(count)[0], whole[:, -count:].sum((0, 1)), rtol=1e-4, atol=1e-5)


def test_the_layer_shows_its_queries_while_it_is_to(layer):
    seen = []
    with layer.shown(lambda *handed: seen.append(handed[0].shape[2])):
        layer()
    layer()
    assert seen == [layer.length]


def test_costs_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(row_costs, "GOAL", replace(row_costs.GOAL, limit=1e-9))
    given = ["--shape", "llava-1.5-7b", "--scale", 0.05, "--rounds", 2]
    result, text = run(row_costs, tmp_path, *given)
    assert [row["rows"] for row in result["rows"]] == [1, 16, 32]
    for row in result["rows"]:
        assert 0 < row["share"][1] <= row["share"][0] <= row["share"][2]
        assert row["goals"][0]["met"] is False
    assert text.count(": missed |") == 3


def test_costs_of_hooks(tmp_path):
    result, text = run(hook_costs, tmp_path, "--rounds", 2, "--repeats", 1)
    pairs = [(row["what"], row["policy"], row["against"]) for row in result["rows"]]
    plain = "the model as it is"
    assert pairs == [
        ("forward", "none", plain),
        ("step", "none", plain),
        ("forward", "random, keep=1.0", plain),
        ("step", "random, keep=1.0", plain),
        ("forward", "random, keep=16", "the oracle"),
        ("step", "random, keep=16", "a prompt as short"),
        ("forward", "fastv, keep=16", "the oracle"),
    ]
    assert all(row["us"][0] > 0 and row["against_us"][0] > 0 for row in result["rows"])
    assert "| step | random, keep=16 | " in text


def test_steps_that_are_compared_read_caches_of_one_length(monkeypatch):
    costs, lengths = hook_costs.Costs(1), []

    def noted(self, call):
        lengths.append(call.keywords["past_key_values"].layers[0].keys.shape[2])
        return 1.0

    found = [pair for pair in hook_costs.pairs(costs) if pair.what == "step"]
    monkeypatch.setattr(hook_costs.Costs, "_each", noted)
    for pair in found:
        pair.mine()
        pair.other()
    whole, short = 64 + hook_costs.TEXT, hook_costs.KEEP + hook_costs.TEXT
    assert lengths == [whole, whole, whole, whole, short, short]


def test_what_is_pruned_is_compared_with_the_oracle(monkeypatch):
    monkeypatch.setattr(hook_costs.Costs, "_each", lambda self, call: tuple(call().shape))
    monkeypatch.setattr(hook_costs.Costs, "forward", lambda self, text: text)
    costs = hook_costs.Costs(1)
    found = [pair for pair in hook_costs.pairs(costs) if pair.what == "forward"]
    assert [pair.mine() for pair in found] == [
        "none",
        *list(hook_costs.WHOLE.values())[1:],
        *hook_costs.PRUNED.values(),
    ]
    assert [pair.other() for pair in found[:2]] == [None, None]
    words = costs.model.config.get_text_config().vocab_size
    assert [pair.other() for pair in found[2:]] == [(1, words), (1, words)]
