"""What papers published: every recipe would run in the installed lmms-eval, and wrong ones are told so."""

import json
import shlex
import sys

import pytest
import yaml

from tokenprune.errors import InputError, TokenPruneError
from tokenprune.eval import recipes, specs
from tokenprune.eval.recipes import __main__ as module
from tokenprune.eval.recipes import checking, reading

PUBLIC = (
    "GQA", "TextVQA", "POPE", "MME", "MMBench", "ScienceQA", "VizWiz", "OCRBench", "DocVQA", "ChartQA", "RefCOCO",
    "MVBench", "VideoMME",
)  # fmt: skip
METHODS = {
    "cdpruner", "divprune", "visionzip", "vispruner", "fastv", "pyramiddrop", "sparsevlm", "holov", "dart",
    "prumerge_plus", "hiprune", "mmtok", "prunevid", "fastvid", "holitom", "holitom-inner", "dycoke", "vidcom2",
}  # fmt: skip
ONE = {
    "method": "cdpruner",
    "model": "llava-1.5-7b",
    "source": "a table",
    "tolerance": 1.0,
    "note": "",
    "dense": {"GQA": 60.0, "MME": 1500.0},
    "budgets": [{"policy": "cdpruner(keep=64)", "expected": {"GQA": 57.0, "MME": 1470.0}}],
}


def own(tmp_path, **changes):
    given = {key: value for key, value in {**ONE, **changes}.items() if value is not None}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(given))
    return file


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_would_run(name):
    recipe = recipes.read(name)
    recipes.check(recipe)
    assert recipe.name == f"{recipe.method}-{recipe.model}"
    assert "arXiv" in recipe.source
    assert all(one.policy.startswith(recipe.method.split("-")[0]) for one in recipe.rows)


def test_every_method_has_a_recipe():
    assert {recipes.read(name).method for name in recipes.names()} == METHODS


def test_published_numbers_are_in_range():
    for recipe in map(recipes.read, recipes.names()):
        tables = [recipe.dense, *(row.expected for row in recipe.rows)]
        for name, value in (pair for values in tables for pair in values.items()):
            assert 0 < value <= (2800 if name.startswith("MME") else 1000 if name == "OCRBench" else 100)
        for row in recipe.rows:
            assert row.expected.keys() == recipe.dense.keys()
            assert (row.expected_relative is None) == bool(recipe.dense)


@pytest.mark.parametrize("name", recipes.benchmarks())
def test_every_benchmark_is_in_lmms_eval(name):
    checking.resolve(recipes.benchmarks()[name])


def test_public_benchmarks_have_a_command_each():
    for name in (*PUBLIC, *recipes.suites()):
        words = shlex.split(recipes.command(name, "fastv(keep=0.5)"))
        assert words[:3] == ["tokenprune", "eval", "--base"]
        tasks = words[words.index("--tasks") + 1].split(",")
        assert tasks == [recipes.benchmarks()[one].task for one in recipes.suites().get(name, (name,))]
        assert words[words.index("--policy") + 1] == "fastv(keep=0.5)"


def test_the_command_says_what_the_recipe_does():
    recipe = recipes.read("cdpruner-llava-next-7b")
    (line,) = recipes.commands(recipe)
    assert line == (
        "tokenprune eval --base llava_hf --base-args pretrained=llava-hf/llava-v1.6-vicuna-7b-hf,dtype=float16"
        " --policy \"cdpruner(keep=128, per='crop')\" --policy \"cdpruner(keep=64, per='crop')\""
        " --policy \"cdpruner(keep=32, per='crop')\""
        " --tasks gqa,scienceqa_img,textvqa_val,pope,mme,mmbench_en_dev_static --out runs/cdpruner-llava-next-7b"
    )


def test_a_command_is_what_a_shell_reads():
    for name in recipes.names():
        recipe = recipes.read(name)
        words = shlex.split(recipes.commands(recipe)[0])
        given = [words[i + 1] for i, word in enumerate(words) if word == "--policy"]
        assert given == [row.policy for row in recipe.rows]
    assert shlex.split(reading._quoted('a(b="$c")')) == ['a(b="$c")']


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dense": {"GQX": 60.0}}, "mine.yaml: benchmark 'GQX' is unknown \\(did you mean 'GQA'\\?\\)"),
        ({"model": "llava-1.5"}, "mine.yaml: model 'llava-1.5' is unknown \\(did you mean 'llava-1.5-7b'\\?\\)"),
        ({"dense": {"GQA": 60.0}}, "benchmark 'MME' is not among GQA: add it there"),
        ({"dense": {"GQA": 160.0, "MME": 1.0}}, "GQA=160.0 is no number in \\(0, 100\\]"),
        ({"dense": {"GQA": "60", "MME": 1.0}}, "GQA='60' is no number"),
        ({"dense": [60.0]}, "dense=\\[60.0\\] is a list"),
        ({"dense": None}, "give either dense, values of the unpruned model, or benchmarks"),
        ({"dense": None, "benchmarks": ["GQA", "MME"]}, "has expected values, which need those of dense, too"),
        ({"source": None}, "mine.yaml lacks source"),
        ({"source": " "}, "source is empty: say which table"),
        ({"tolerance": 0}, "tolerance=0.0 is not above 0"),
        ({"tolerances": 1}, "unknown key 'tolerances' \\(did you mean 'tolerance'\\?\\)"),
        ({"budgets": [{"policy": "cdpruner(keep=64)"}]}, "needs either expected or expected_relative"),
        ({"budgets": [{"policy": "cdpruner(keep=64)", "expected": 57.0}]}, "expected=57.0 has to be benchmarks"),
        ({"budgets": ["cdpruner"]}, "a budget is a str"),
    ],
)
def test_a_wrong_recipe_is_told_so(changes, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence) as caught:
        recipes.read(own(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ("cdprunr(keep=64)", "cdpruner"),
        ("cdpruner(kep=64)", "keep"),
        ("cdpruner(keep=64", "cannot be read"),
        ("cdpruner", "mine: policy='cdpruner' leaves a budget open: write name\\(keep=...\\)"),
    ],
)
def test_a_wrong_policy_is_refused(policy, sentence, tmp_path):
    recipe = recipes.read(own(tmp_path, budgets=[{"policy": policy, "expected_relative": 99.0}]))
    with pytest.raises(TokenPruneError, match=sentence):
        recipes.check(recipe)


def test_a_wrong_task_metric_or_base_is_refused(tmp_path, monkeypatch):
    def one(task="gqa", metric="exact_match"):
        return recipes.Benchmark("GQA", task, (metric,), 100, "llava-1.5-7b")

    checking.resolve(one())
    with pytest.raises(InputError, match="GQA: task 'gqaa' is none of lmms-eval \\(did you mean 'gqa'\\?\\)"):
        checking.resolve(one(task="gqaa"))
    with pytest.raises(
        InputError, match="task 'gqa' has no metric 'exact_mach,none' \\(did you mean 'exact_match,none'"
    ):
        checking.resolve(one(metric="exact_mach"))
    with pytest.raises(InputError, match="has no metric 'exact_match,flexible-extract'"):
        checking.resolve(one(metric="exact_match,flexible-extract"))
    models = {"llava-1.5-7b": {"base": "lava_hf", "base_args": {}}}
    monkeypatch.setattr(reading, "_models", lambda: models)
    with pytest.raises(InputError, match="base='lava_hf' is no model of lmms-eval \\(did you mean 'llava_hf'\\?\\)"):
        recipes.check(recipes.read(own(tmp_path)))


def test_a_wrong_name_or_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="did you mean 'fastv-llava-1.5-7b'"):
        recipes.read("fastv-llava-1.5")
    with pytest.raises(InputError, match="suite 'GQ' is unknown \\(did you mean 'GQA'\\?\\)"):
        recipes.command("GQ")
    with pytest.raises(InputError, match="missing.yaml' cannot be read \\(No such file"):
        recipes.read(tmp_path / "missing.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(InputError, match="broken.yaml' cannot be read") as caught:
        recipes.read(tmp_path / "broken.yaml")
    assert "\n" not in str(caught.value)


def test_without_lmms_eval_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmms_eval.tasks", None)
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    for looked_up in (checking._manager, checking._bases):
        with pytest.raises(InputError, match="pip install tokenprune-vlm\\[eval\\]"):
            looked_up.__wrapped__()


def result(gqa, mme, limit=None, policy="none", offset=0):
    tasks = {"gqa": {"exact_match,none": gqa}, "mme": {"mme_perception_score,none": mme}}
    return {"settings": {"policy": policy, "limit": limit, "offset": offset}, "results": tasks}


def test_retention_is_compared(tmp_path):
    recipe = recipes.read(own(tmp_path))
    pruned = result(0.55, 1450.0)
    rows = recipes.compared(recipe, {"none": result(0.58, 1480.0), "cdpruner(keep=64)": pruned})
    assert [row["benchmark"] for row in rows] == ["GQA", "MME", "mean"]
    gqa, mme, mean = rows
    assert (gqa["expected"], gqa["measured"], gqa["expected_retention"]) == (57.0, pytest.approx(55.0), 95.0)
    assert gqa["retention"] == pytest.approx(100 * 55 / 58)
    assert gqa["difference"] == pytest.approx(100 * 55 / 58 - 95)
    assert (gqa["within"], mme["within"], mean["within"]) == (True, True, True)
    assert mean["retention"] == pytest.approx((100 * 55 / 58 + 100 * 1450 / 1480) / 2)
    without_dense = recipes.compared(recipe, {"cdpruner(keep=64)": pruned})
    assert without_dense[0]["retention"] == pytest.approx(100 * 55 / 60)
    assert without_dense[0]["within"] is False
    assert "| cdpruner(keep=64) | GQA | 57.0 | 55.0 | 95.0 | 91.7 | **no** |" in recipes.table(without_dense)


def test_what_cannot_be_judged_is_not(tmp_path):
    recipe = recipes.read(own(tmp_path, differs={"GQA": "another prompt"}))
    pruned, dense = result(0.57, 1470.0), result(0.6, 1500.0)
    gqa, mme, mean = recipes.compared(recipe, {"cdpruner(keep=64)": pruned})
    assert (gqa["retention"], gqa["within"], mme["within"], mean["within"]) == (None, None, True, None)
    assert recipes.compared(recipe, {"none": dense, "cdpruner(keep=64)": pruned})[0]["within"] is True
    for part in ({"limit": 8}, {"offset": 8}):
        some = recipes.compared(recipe, {"none": dense, "cdpruner(keep=64)": result(0.57, 1470.0, **part)})
        assert [row["within"] for row in some] == [None] * 3
        assert some[0]["difference"] == pytest.approx(0)
        some = recipes.compared(recipe, {"none": result(0.6, 1500.0, **part), "cdpruner(keep=64)": pruned})
        assert [row["within"] for row in some] == [None] * 3
    assert {row["measured"] for row in recipes.compared(recipe, {})} == {None}


def test_where_only_the_mean_is_published_the_mean_is_compared(tmp_path):
    budgets = [{"policy": "cdpruner(keep=64)", "expected_relative": 96.0}]
    recipe = recipes.read(own(tmp_path, dense=None, benchmarks=["GQA", "MME"], budgets=budgets))
    measured = {"none": result(0.6, 1500.0), "cdpruner(keep=64)": result(0.57, 1470.0)}
    rows = recipes.compared(recipe, measured)
    assert [row["within"] for row in rows] == [None, None, True]
    assert rows[-1]["difference"] == pytest.approx((95 + 98) / 2 - 96)


def test_a_group_counts_as_the_mean_of_its_tasks():
    mvbench = recipes.benchmarks()["MVBench"]
    leaves = {"mvbench_a": {"mvbench_accuracy,none": 50.0}, "mvbench_b": {"mvbench_accuracy,none": 60.0}}
    assert mvbench.value({"mvbench": {"alias": "mvbench"}, **leaves}) == 55.0
    assert mvbench.value({}) is None
    total = recipes.benchmarks()["MME-total"]
    assert total.value({"mme": {"mme_perception_score,none": 1500.0, "mme_cognition_score,none": 300.0}}) == 1800.0


def test_the_module_lists_checks_and_compares(tmp_path, monkeypatch, capsys):
    def ran(*words):
        monkeypatch.setattr(sys, "argv", ["recipes", *words])
        module.main()
        return capsys.readouterr().out

    listed = ran()
    assert all(f"# {name}: " in listed for name in recipes.names())
    assert "general" in listed
    assert ran("GQA").startswith("tokenprune eval --base llava_hf")
    assert ran("fastv-llava-1.5-7b", "--check") == "fastv-llava-1.5-7b: all names are known\n"
    for name, facts in {"none": result(0.6, 1500.0), "a": result(0.57, 1470.0, policy="cdpruner(keep=64)")}.items():
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "results.json").write_text(json.dumps(facts))
    assert "| GQA | 57.0 | 57.0 | 95.0 | 95.0 | yes |" in ran(str(own(tmp_path)), "--results", str(tmp_path / "runs"))
    with pytest.raises(SystemExit):
        ran("fastv-llava", "--check")
    assert "did you mean 'fastv-llava-1.5-7b'" in capsys.readouterr().err
    (tmp_path / "runs" / "a" / "results.json").write_text("{")
    with pytest.raises(InputError, match="a/results.json' cannot be read: run that configuration again"):
        recipes.measured(tmp_path / "runs")
    with pytest.raises(InputError, match="holds no \\*/results.json"):
        recipes.measured(tmp_path)


@pytest.mark.parametrize(
    "foreign",
    [
        [],
        {"results": {"gqa": {"exact_match,none": 0.6}}, "config": {"model": "llava_hf"}},
        {"settings": {"limit": None}, "results": {}},
        {"settings": {"policy": "none"}},
    ],
    ids=["list", "lmms-eval", "no policy", "no results"],
)
def test_results_of_something_else_are_refused(foreign, tmp_path):
    for name, facts in {"a": result(0.6, 1500.0), "b": foreign}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="b/results.json' is no result of tokenprune eval: move it out"):
        recipes.measured(tmp_path)


def test_rows_name_policies_as_runs_do():
    for recipe in map(recipes.read, recipes.names()):
        texts = [specs.text(specs.policies(row.policy)) for row in recipe.rows]
        assert len(set(texts)) == len(texts)
