"""Run folders are compared document by document; what cannot be compared is refused or said."""

import json
import math

import pytest

from tests.eval.compare_folders import answers, line, run_folder
from tokenprune.errors import InputError, InvalidArgumentError
from tokenprune.eval import compare
from tokenprune.eval.compare.measures import compared
from tokenprune.eval.compare.runs import found

CDPRUNER = "cdpruner(keep=64)"


def pair(tmp_path, first, second, **settings):
    a = run_folder(tmp_path / "a", first, **settings)
    b = run_folder(tmp_path / "b", second, policy=CDPRUNER, keep="64", **settings)
    return [compare.read(a), compare.read(b)]


def against(runs, **options):
    return compared(runs, **options).tasks[0].rows[1].against


def test_difference_and_p_by_hand(tmp_path):
    # 10 gained, 2 lost, 8 right in both
    runs = pair(tmp_path, answers([0] * 10 + [1] * 2 + [1] * 8), answers([1] * 10 + [0] * 2 + [1] * 8, kept=64))
    task = compared(runs).tasks[0]
    found = task.rows[1].against
    assert (task.metric, task.n, task.test, task.percent) == ("exact_match", 20, "McNemar", True)
    assert [row.value for row in task.rows] == [0.5, 0.9]
    assert found.difference == pytest.approx(0.4)
    assert found.low < 0.4 < found.high
    assert found.p == found.holm == pytest.approx(158 / 4096)
    assert found.agreement == 8 / 20
    assert task.rows[1].visual == (64, 256)
    assert task.rows[0].visual is None


def test_agreement_without_and_with_blanks_and_case(tmp_path):
    runs = pair(
        tmp_path,
        [line(i, 1, answer=text) for i, text in enumerate(["Yes", "no", "red", "2"])],
        [line(i, 1, answer=text) for i, text in enumerate([" yes\n", "no", "blue", "2"])],
    )
    assert (against(runs).agreement, against(runs).raw) == (0.75, 0.5)
    assert "75.0 (raw 50.0)" in compare.table(runs)


def test_choices_that_were_scored_agree_by_the_likeliest(tmp_path):
    def scored(*likelihoods):
        return [[one, False] for one in likelihoods]

    first = [line(0, 1) | {"filtered_resps": scored(-1.0, -2.0)}, line(1, 1) | {"filtered_resps": scored(-1.0, -2.0)}]
    second = [line(0, 1) | {"filtered_resps": scored(-1.5, -2.5)}, line(1, 1) | {"filtered_resps": scored(-3.0, -2.0)}]
    assert against(pair(tmp_path, first, second)).agreement == 0.5


def test_the_worst_type_of_question(tmp_path):
    kinds = ["color"] * 10 + ["count"] * 20 + ["shape"] * 5
    first = answers([1] * 35, kinds=kinds)
    second = answers([1] * 10 + [0] * 12 + [1] * 8 + [0] + [1] * 4, kinds=kinds)
    groups = against(pair(tmp_path, first, second)).groups
    assert [(one.name, one.n) for one in groups] == [("count", 20), ("shape", 5), ("color", 10)]
    assert groups[0].difference == pytest.approx(-0.6)
    assert groups[0].p == pytest.approx(2 / 2**12)
    assert groups[0].holm == pytest.approx(3 * 2 / 2**12)
    assert "count −60.0 * (n 20)" in compare.table([compare.read(tmp_path / "a"), compare.read(tmp_path / "b")])


def test_the_field_of_types_is_found_or_named(tmp_path):
    def documents(rights):
        return [line(i, one, kind=f"every {i}", category="ab"[i % 2], place=i % 3) for i, one in enumerate(rights)]

    runs = pair(tmp_path, documents([1] * 60), documents([1, 0] * 30))
    assert compared(runs).tasks[0].by == "category"  # kind has 60 values
    assert [one.name for one in against(runs).groups] == ["b", "a"]
    assert [one.n for one in against(runs, by="place").groups] == [20, 20, 20]
    assert len(against(runs, by="kind").groups) == 60
    with pytest.raises(InvalidArgumentError, match=r"by='plac'.*did you mean 'place'"):
        compared(runs, by="plac")


def test_numbers_go_to_the_bootstrap_and_less_may_be_better(tmp_path):
    first = [line(i, 0.25 * (i % 4), kind="ab"[i % 2], metric="wer") for i in range(40)]
    second = [line(i, 0.25 * (i % 4) + 0.5 * (i % 2), kind="ab"[i % 2], metric="wer") for i in range(40)]
    runs = pair(tmp_path, first, second, better=False)
    task = compared(runs).tasks[0]
    assert (task.test, task.falling, task.percent) == ("bootstrap", True, False)
    found = task.rows[1].against
    assert found.difference == pytest.approx(0.25)
    assert found.p < 0.001
    assert (found.groups[0].name, found.groups[0].difference) == ("b", 0.5)
    assert "less is better" in compare.table(runs)


def test_scores_in_dicts_count_and_other_things_are_named(tmp_path):
    def documents(scores):
        return [
            line(i, one, metric="plain") | {"gpt": {"answer": "x"}, "rated": {"score": one, "id": i}}
            for i, one in enumerate(scores)
        ]

    def gpt_first(scores):
        return [{**{k: v for k, v in one.items() if k != "plain"}} for one in documents(scores)]

    runs = pair(tmp_path, gpt_first([1, 2, 3]), gpt_first([1, 1, 1]))
    result = compared(runs)
    assert result.tasks[0].metric == "rated"
    assert result.tasks[0].rows[1].against.difference == pytest.approx(-1)
    assert any("metric gpt is left out" in one for one in result.notes)
    with pytest.raises(InvalidArgumentError, match="metric='gpt' of task 'shapes' has no number per document"):
        compared(runs, metric="gpt")
    with pytest.raises(InvalidArgumentError, match="metric='rate'.*did you mean 'rated'"):
        compared(runs, metric="rate")


def test_without_any_number_answers_are_compared_alone(tmp_path):
    runs = pair(tmp_path, [line(0, [1, 2]), line(1, "x")], [line(0, [1, 2]), line(1, "x", answer="other")])
    task = compared(runs).tasks[0]
    assert task.metric == ""
    assert math.isnan(task.rows[1].value)
    assert task.rows[1].against.agreement == 0.5
    assert "50.0" in compare.table(runs)
    json.dumps(compare.table(runs))


def test_documents_without_the_metric_are_left_out_of_it(tmp_path):
    def documents(rights):
        some = [line(i, one, metric="first") for i, one in enumerate(rights[:4])]
        return some + [line(i + 4, one, metric="second") for i, one in enumerate(rights[4:])]

    runs = pair(tmp_path, documents([1] * 10), documents([0] * 4 + [1] * 6))
    task = compared(runs).tasks[0]
    assert (task.metric, task.n, task.scored) == ("first", 10, 4)
    assert task.rows[1].value == 0
    assert compared(runs, metric="second").tasks[0].rows[1].value == 1


def test_several_runs_are_corrected_together(tmp_path):
    first = run_folder(tmp_path / "dense", answers([1] * 20))
    others = [
        run_folder(tmp_path / f"p{lost}", answers([0] * lost + [1] * (20 - lost)), policy=f"divprune(keep={lost})")
        for lost in (6, 8, 7)
    ]
    rows = compared([compare.read(one) for one in [first, *others]]).tasks[0].rows
    assert rows[0].against is None
    assert [row.against.p for row in rows[1:]] == pytest.approx([2 / 64, 2 / 256, 2 / 128])
    assert [row.against.holm for row in rows[1:]] == pytest.approx([2 / 64, 3 * 2 / 256, 2 * 2 / 128])
    single = compared([compare.read(one) for one in [first, others[0]]]).tasks[0].rows[1].against
    assert single.holm == single.p


def test_tasks_are_corrected_together_and_summed_up(tmp_path):
    runs = pair(
        tmp_path,
        {"one": answers([1] * 20), "two": answers([1] * 10 + [0] * 10)},
        {"one": answers([1] * 10 + [0] * 10), "two": answers([1] * 5 + [0] * 15)},
    )
    one, two = (task.rows[1].against for task in compared(runs).tasks)
    assert (one.holm, two.holm) == pytest.approx((2 * one.p, two.p))
    assert "| cdpruner(keep=64) | 64 | 50.0 | 25.0 | 50.0 |" in compare.table(runs)


def test_where_less_is_better_nothing_is_summed_up(tmp_path):
    def tasks(name, error):
        lines = {"one": answers([1, 1, 1, 0]), "two": [line(i, error, metric="wer") for i in range(4)]}
        folder = run_folder(tmp_path / name, lines)
        facts = json.loads((folder / "results.json").read_text())
        facts["higher_is_better"]["two"] = {"wer": False}
        (folder / "results.json").write_text(json.dumps(facts))
        return compare.read(folder)

    text = compare.table([tasks("a", 2.0), tasks("b", 8.0)])
    assert "|  | 75.0 | 8 | 100.0 |" in text


def test_only_common_documents_count_and_it_is_said(tmp_path):
    runs = pair(tmp_path, answers([1] * 10 + [0] * 10), answers([1] * 5), batch_size=1)
    task = compared(runs).tasks[0]
    assert (task.n, task.rows[0].value, task.rows[1].against.difference) == (5, 1, 0)
    assert any("compared on the 5 documents that all runs answered, of 20, 5" in one for one in compared(runs).notes)


def test_what_differs_besides_the_policy_is_said(tmp_path):
    a = run_folder(tmp_path / "a", {"one": answers([1, 0]), "two": answers([1])})
    b = run_folder(tmp_path / "b", {"one": answers([1, 0]), "three": answers([1])}, base_args={"pretrained": "y"})
    notes = compared([compare.read(a), compare.read(b)]).notes
    assert 'Not the policy alone differs: base_args is {"pretrained": "x"} or {"pretrained": "y"}.' in notes
    assert "Not compared, since not every run has it: two, three." in notes


def test_another_figure_of_the_harness_is_said(tmp_path):
    notes = compared(pair(tmp_path, answers([1, 0]), answers([1, 1]), reported=1520.25)).notes
    assert any("lmms-eval's own exact_match of none is 1520.2, which is no mean" in one for one in notes)
    assert compared(pair(tmp_path / "x", answers([1, 0]), answers([1, 1]))).notes == []


def test_nothing_depends_on_the_order_of_lines(tmp_path):
    kinds = [("color", "count")[i % 2] for i in range(50)]
    first, second = answers([1, 1, 0, 1, 0] * 10, kinds=kinds), answers([1, 0] * 25, kinds=kinds)
    plain = compare.table(pair(tmp_path / "x", first, second))
    assert compare.table(pair(tmp_path / "y", first[::-1], second[7:] + second[:7])) == plain


def test_other_documents_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no document that all 2 runs answered"):
        compared(pair(tmp_path / "x", answers([1] * 4)[:2], answers([1] * 4)[2:]))
    with pytest.raises(InputError, match="document 1 of task 'shapes' is not the same"):
        compared(pair(tmp_path / "y", [line(0, 1), line(1, 1)], [line(0, 1), line(1, 1, kind="other")]))
    with pytest.raises(InputError, match="no task is in all 2 runs"):
        compared(pair(tmp_path / "z", {"one": answers([1])}, {"two": answers([1])}))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        compare.read(tmp_path / "missing")
    with pytest.raises(InputError, match=r"holds no results\.json"):
        compare.read(tmp_path)
    with pytest.raises(InputError, match="nor do folders in it"):
        found(tmp_path)
    with pytest.raises(InputError, match="holds doc_id 0 twice"):
        compare.read(run_folder(tmp_path / "twice", [line(0, 1), line(1, 1), line(0, 0)]))
    broken = run_folder(tmp_path / "broken", answers([1, 1]))
    samples = broken / "samples_shapes.jsonl"
    samples.write_text(samples.read_text()[:-20])
    with pytest.raises(InputError, match=r"samples_shapes\.jsonl', line 2, is no document"):
        compare.read(broken)
    samples.write_text("\n")
    with pytest.raises(InputError, match="holds no document"):
        compare.read(broken)
    samples.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        compare.read(broken)
    for text, said in (
        ("{", "cannot be read as JSON"),
        ("[]", "a list where"),
        ("{}", "is not what `tokenprune eval`"),
    ):
        (broken / "results.json").write_text(text)
        with pytest.raises(InputError, match=said):
            compare.read(broken)


def test_a_folder_of_runs_has_the_dense_one_first(tmp_path):
    for name, policy in (("a_16", "random(keep=16)"), ("z", "none"), ("a_8", "random(keep=8)"), ("a_0.25", "pool")):
        run_folder(tmp_path / name, answers([1]), policy=policy)
    assert [run.folder.name for run in found(tmp_path)] == ["z", "a_0.25", "a_8", "a_16"]


def test_a_run_alone_has_a_table_too(tmp_path):
    run = compare.read(run_folder(tmp_path / "a", answers([1, 0, 1, 1], kept=256, kinds=["a", "b", "a", "b"])))
    assert "| none |  | 256/256 | 75.0 |" in compare.table([run])


def test_the_plot_is_written_at_once(tmp_path):
    runs = pair(tmp_path, answers([1, 0, 1, 1], kept=256), answers([1, 0, 0, 1], kept=64))
    file = tmp_path / "new" / "plot.png"
    compare.plot(runs, file)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert [one.name for one in file.parent.iterdir()] == ["plot.png"]


def test_errors_that_became_empty_answers_are_told(tmp_path):
    dense = run_folder(tmp_path / "a", answers([1, 1, 0]))
    failures = ["RuntimeError: out of memory.\nSee the manual.", "ValueError: other"]
    other = run_folder(tmp_path / "b", answers([1, 0, 0], kept=64), policy=CDPRUNER, failures=failures)
    runs = [compare.read(dense), compare.read(other)]
    assert [run.failures for run in runs] == [(), tuple(failures)]
    said = f"2 answers of {CDPRUNER} are empty because of errors, and count as such; the first: RuntimeError: "
    assert [note for note in compared(runs).notes if "errors" in note] == [f"{said}out of memory."]
    assert f"{said}out of memory.\n" in compare.table(runs)


def test_a_policy_that_removes_nothing_is_told(tmp_path):
    runs = pair(tmp_path, answers([1, 1], kept=256), answers([1, 1], kept=256))
    assert f"{CDPRUNER} left the language model all visual tokens of shapes." in compared(runs).notes
    assert not [note for note in compared(runs).notes if note.startswith("none left")]
