import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tokenprune import CDPruner, DivPrune, Random
from tokenprune.eval import accuracy, clock, pareto, shapes
from tokenprune.eval.asking import Way, encoded
from tokenprune.eval.rows import configurations, described
from tokenprune.eval.training_free import training_free


@pytest.fixture
def command(tiny_checkpoint, tmp_path, monkeypatch):
    """Runs the command with some options on the tiny model and gives back what it wrote."""
    load = shapes.load
    monkeypatch.setattr(accuracy.shapes, "load", lambda: load(folder=tiny_checkpoint), raising=False)
    monkeypatch.setattr(accuracy.shapes, "CHECKPOINT", tiny_checkpoint, raising=False)
    monkeypatch.setattr(accuracy, "KEEPS", (0.25, 0.05))
    always = ["accuracy", "--easy", "0", "--repeats", "1", "--no-clip", "--out", str(tmp_path)]

    def run(*options):
        monkeypatch.setattr("sys.argv", [*always, *options])
        accuracy.main()
        return json.loads((tmp_path / "accuracy.json").read_text())

    return run


def cells(result, row):
    return [cell for cell in result["rows"] if cell["row"] == row]


SMALL = ("--scenes", "6", "--seeds", "2", "--policy", "uniform", "--policy", "random", "--policy", "resize")


def test_the_command_writes_json_tables_and_plots(command, tmp_path, capsys):
    result = command(*SMALL)
    assert [(cell["row"], cell["keep"], cell["tokens"]) for cell in result["rows"]] == [
        ("dense", 1.0, 256),
        ("random", 0.25, 64),
        ("random", 0.05, 13),
        ("resize", 0.25, 64),
        ("resize", 0.05, 12),
        ("uniform", 0.25, 64),
        ("uniform", 0.05, 13),
    ]
    for cell in result["rows"]:
        figure = cell["sets"]["scenes"]
        assert figure["asked"] == sum(kind["asked"] for kind in figure["by_kind"].values()) == 6
        assert figure["correct"] == pytest.approx(sum(kind["correct"] for kind in figure["by_kind"].values()))
        assert figure["low"] <= figure["accuracy"] <= figure["high"]
        assert ("over_random" in figure) == (cell["row"] != "random" and cell["keep"] != 1.0)
        assert all(ratio > 0 for ratio in cell["times"].values())
    parts = [f"{part}, batch {n}" for n in (1, 6) for part in clock.PARTS]
    assert set(cells(result, "uniform")[0]["times"]) <= set(parts)
    markdown = (tmp_path / "accuracy.md").read_text()
    assert markdown.startswith("| scenes | 25% (64) | 5% (13) |\n|---|---:|---:|\n| random | ")
    assert "\n| scenes, 5% | " in markdown
    for name in ("accuracy.png", "accuracy-time.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert "uniform" in capsys.readouterr().out


def test_a_run_goes_on_where_the_last_one_stopped(command, tmp_path, monkeypatch):
    first, asked, real = command(*SMALL), [], accuracy.answers

    def spied(ways, keeps, batches):
        asked.append(getattr(ways[0], "policy", None))
        return real(ways, keeps, batches)

    monkeypatch.setattr(accuracy, "answers", spied)
    assert command(*SMALL)["rows"] == first["rows"]
    assert asked == []

    partly = {**first, "rows": [cell for cell in first["rows"] if cell["row"] != "uniform"]}
    partly["rows"] = [cell for cell in partly["rows"] if (cell["row"], cell["keep"]) != ("resize", 0.05)]
    (tmp_path / "accuracy.json").write_text(json.dumps(partly))
    again = command(*SMALL)
    assert [policy.name for policy in asked] == ["resize", "uniform"], "a row that lacks a budget is measured whole"
    assert [cell["right"] for cell in again["rows"]] == [cell["right"] for cell in first["rows"]]

    asked.clear()
    grown = command(*SMALL[:4], "--policy", "pool")
    assert [policy.name for policy in asked] == ["pool"]
    assert {cell["row"] for cell in grown["rows"]} == {"dense", "random", "resize", "uniform", "pool"}


@pytest.mark.parametrize("change", [("--scenes", "7"), ("--fresh",)])
def test_rows_of_another_setup_are_measured_again(command, monkeypatch, change):
    command(*SMALL)
    asked, real = [], accuracy.answers
    monkeypatch.setattr(accuracy, "answers", lambda *args: asked.append(args) or real(*args))
    command(*SMALL, *change)
    assert len(asked) == 4


def test_a_row_whose_settings_changed_is_measured_again(command, monkeypatch):
    command(*SMALL)
    asked, real = [], accuracy.answers
    monkeypatch.setattr(accuracy, "answers", lambda *args: asked.append(args[0]) or real(*args))
    command(*SMALL, "--seeds", "3")
    assert [len(ways) for ways in asked] == [3]


def test_a_broken_file_is_no_earlier_result(command, tmp_path):
    (tmp_path / "accuracy.json").write_text('{"rows": [')
    assert cells(command(*SMALL), "uniform")


def test_tables_and_plots_alone_need_no_model(command, tmp_path, monkeypatch):
    result = command(*SMALL)
    (tmp_path / "accuracy.md").unlink()
    monkeypatch.setattr(accuracy, "measure", None)
    assert command("--plot-only") == result
    assert (tmp_path / "accuracy.md").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--scenes", "0"], "--scenes 0 is below 1"),
        (["--seeds", "-1"], "--seeds -1 is below 1"),
        (["--repeats", "0"], "--repeats 0 is below 1"),
        (["--easy", "-1"], "--easy -1 is below 0"),
        (["--scenes", "many"], "invalid int value: 'many'"),
        (["--policy", "divprun"], "--policy divprun has no row"),
        (["--plot-only", "--out", "nowhere"], "--plot-only needs nowhere/accuracy.json"),
    ],
)
def test_bad_options_get_a_sentence(monkeypatch, capsys, tmp_path, options, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["accuracy", *options])
    with pytest.raises(SystemExit) as caught:
        accuracy.main()
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_every_registered_policy_has_a_row():
    clip = (object(), object())
    rows = configurations(clip, 3)
    assert rows["random"] == [Random(seed=0), Random(seed=1), Random(seed=2)]
    named = {several[0].name for several in rows.values()}
    apart = ("vision", "skip")  # stages that are measured elsewhere, as are those that need training
    found = training_free().items()
    assert named == {name for name, cls in found if "image" in cls.kinds and cls.stage not in apart} - {"none"}
    assert [rows[f"cdpruner, CLIP (sign {sign})"][0].relevance.sign for sign in ("+1", "-1")] == [1, -1]
    without = configurations(None, 1)
    assert [name for name in rows if "CLIP" in name] == [name for name in rows if name not in without]


def test_a_configuration_names_settings_and_no_models():
    assert described(DivPrune()).endswith("features='projector')")
    text = described(configurations((SimpleNamespace(), SimpleNamespace()), 1)["cdpruner, CLIP (sign -1)"][0])
    assert "ClipRelevance(clip=SimpleNamespace, tokenizer=SimpleNamespace, sign=-1" in text
    assert accuracy.configuration([DivPrune()]) != accuracy.configuration([DivPrune(features="pre_merger")])
    assert accuracy.configuration([CDPruner()]) != accuracy.configuration([CDPruner(theta=0.1)])


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Max-min diversity", "Greatest diversity", True),
        ("limits", "limits_", False),
        ("self.compared(tokens)", "tokens.features", False),
    ],
)
def test_a_configuration_is_of_the_code_not_of_its_words(monkeypatch, old, new, same):
    source = accuracy.inspect.getsource(accuracy.sys.modules[DivPrune.__module__])
    before = accuracy.configuration([DivPrune()])
    assert old in source
    monkeypatch.setattr(accuracy.inspect, "getsource", lambda module: source.replace(old, new))
    assert (accuracy.configuration([DivPrune()]) == before) is same


def test_packed_answers_come_back():
    right = np.random.default_rng(0).random((3, 21)) < 0.5
    assert np.array_equal(accuracy.unpacked(accuracy.packed(right), 21), right)


def test_easy_vqa_is_all_there_image_after_image_and_its_start_is_the_same():
    pytest.importorskip("easy_vqa")
    some, few = accuracy.easy_samples(57), accuracy.easy_samples(20)
    assert [one.question for one in some[:20]] == [one.question for one in few]
    assert len(some) == 57
    pictures = [id(one.image) for one in some]
    assert len(set(pictures)) == 1 + sum(a != b for a, b in pairwise(pictures)) < 12
    for one in some:
        kind = {"yes": "yes/no", "no": "yes/no"}.get(one.question.answer, one.question.kind)
        assert one.question.kind == kind
    assert {one.question.kind for one in some} == {"yes/no", "color", "shape"}
    assert accuracy.easy_samples(0) == []


class Clockwork(Way):
    """Takes as long as it is told, on a clock of its own."""

    now = 0.0

    def __init__(self, model, seconds):
        self.model, self.seconds = model, seconds

    def given(self, batch, keep):
        Clockwork.now += 100.0  # must not count
        return {"cost": 3 * self.seconds * keep}

    def encoded(self, batch, keep):
        return {"cost": self.seconds * keep}

    def words(self, arguments):
        Clockwork.now += arguments["cost"]


def test_times_are_ratios_to_dense_without_the_preparations(tiny_checkpoint, monkeypatch):
    model, _ = shapes.load(folder=tiny_checkpoint)
    monkeypatch.setattr(clock.time, "perf_counter", lambda: Clockwork.now)
    found = clock.ratios(Clockwork(model, 2.0), Clockwork(model, 3.0), (0.5, 0.1), None, repeats=3)
    for keep in (0.5, 0.1):
        assert found[keep]["forward"] == pytest.approx(1.5 * keep)
        assert found[keep].get("prefill", 1.5 * keep) == pytest.approx(1.5 * keep)


def test_the_frontier_is_what_nothing_beats():
    points = [(0.5, 0.9), (0.3, 0.7), (0.4, 0.6), (1.0, 1.0), (1.2, 0.95), (0.3, 0.65)]
    assert pareto.frontier(points) == [(0.3, 0.7), (0.5, 0.9), (1.0, 1.0)]


def test_better_and_worse_need_an_interval_beside_zero():
    over = [{"low": 0.01, "high": 0.2}, {"low": -0.2, "high": -0.01}, {"low": -0.1, "high": 0.1}]
    assert [pareto.verdict({"over_random": one}) for one in over] == [" +", " −", ""]
    assert pareto.verdict({}) == ""


@torch.inference_mode()
def test_right_answers_are_counted_per_way_and_budget(tiny_checkpoint, monkeypatch):
    model, processor = shapes.load(folder=tiny_checkpoint)
    sets = {"scenes": list(shapes.held_out(3))}
    questions = accuracy.Questions(model, processor, sets, lambda n: None)
    truth = next(encoded(model, processor, sets["scenes"])).answers
    ways = [accuracy.way(model, processor, Random(seed=seed)) for seed in range(2)]
    monkeypatch.setattr(ways[0], "words", lambda arguments: truth)
    monkeypatch.setattr(ways[1], "words", lambda arguments: torch.where(torch.arange(3) == 1, truth, -1))
    monkeypatch.setattr("tokenprune.eval.asking.Pruned.kept", lambda self, batch: 7)
    found = accuracy.answers(ways, (0.5, 0.1), questions.batches)
    assert found[0.5][0].tolist() == [[True, True, True], [False, True, False]]
    assert found[0.1][1] == 7
    figure = accuracy.figures(found[0.5][0], {"over_random": found[0.5][0][:1]}, questions)["scenes"]
    assert figure["correct"] == 2
    assert figure["seeds"] == [3, 1]
    assert figure["over_random"]["mean"] == pytest.approx(-1 / 3, abs=1e-4)
