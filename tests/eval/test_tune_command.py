"""`tokenprune tune` on the embedded model, with answers that are made up; candidates; times."""

import json
import re

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from tokenprune.errors import InputError, InvalidArgumentError, UnknownPolicyError, UnsupportedPolicyError
from tokenprune.eval import shapes, specs
from tokenprune.eval.tune import backend, command
from tokenprune.eval.tune.candidates import KEEPS, POLICIES, candidates, is_baseline
from tokenprune.eval.tune.state import State

RIGHT = {"none": 1.0, "uniform(keep=0.5)": 1.0, "uniform(keep=0.11)": 0.5, "divprune(keep=0.5)": 1.0}
TIMES = {"uniform(keep=0.5)": 0.5, "uniform(keep=0.11)": 0.2, "divprune(keep=0.5)": 0.8}


@pytest.fixture(scope="module")
def loaded():
    return shapes.load()


class Stub:
    """A session whose tasks have so many documents, and whose answers are right as `right` says: a share of each ten.

    Attributes:
        asked: text, limit and offset of every evaluation.
    """

    def __init__(self, loaded, right=RIGHT, *, documents=100, failing=(), better=True, stop=None):
        self.model, self.processor = loaded
        self.right, self.documents, self.failing, self.better, self.stop = right, documents, failing, better, stop
        self.asked, self.closed = [], False

    def check(self, tasks):
        self.tasks = tasks

    def evaluate(self, made, tasks, folder, *, limit=None, offset=0):
        text = specs.text(made)
        if len(self.asked) == self.stop:
            raise KeyboardInterrupt
        self.asked.append((text, limit, offset))
        if text in self.failing:
            raise UnsupportedPolicyError(f"{text} is too much for a picture of this task.")
        documents = range(offset, min(offset + limit, self.documents))
        if limit == 2:  # the documents that are timed
            for i in documents:
                self.model.generate(**self.inputs(i), max_new_tokens=3, do_sample=False)
        folder.mkdir(parents=True, exist_ok=True)
        values = [float((i % 10 < 10 * self.right[text]) == self.better) for i in documents]
        lines = [{"doc_id": i, "accuracy": value, "notes": {}} for i, value in zip(documents, values, strict=True)]
        for task in tasks:
            (folder / f"samples_{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        known = {task: {"notes": True, "accuracy": self.better} for task in tasks}
        return {"samples": dict.fromkeys(tasks, len(lines)), "higher_is_better": known, "failures": []}

    def samples(self, folder, task):
        return [json.loads(line) for line in (folder / f"samples_{task}.jsonl").read_text().splitlines()]

    def inputs(self, i):
        picture = Image.new("RGB", (128, 128), (40 * i % 256, 80, 120))
        return self.processor(text=[shapes.prompt("what color?")], images=[picture], return_tensors="pt")

    def close(self):
        self.closed = True


GIVEN = ["--base", "made_up", "--tasks", "colors", "--policy", "uniform", "--policy", "divprune(keep=0.5)",
         "--keep", "0.5", "--keep", "0.11", "--samples", "40", "--heldout", "20", "--timed", "2"]  # fmt: skip


@pytest.fixture
def tune(monkeypatch, tmp_path):
    """(arguments, session) -> result of the command, whose times are `TIMES`."""
    app = typer.Typer()
    app.command()(command.tune)

    def run(arguments, session):
        monkeypatch.setattr(command, "_session", lambda base, base_args, names, *_: (session, names))
        monkeypatch.setattr(backend, "times", lambda session, texts, *_: {text: TIMES[text] for text in texts})
        return CliRunner().invoke(app, [*GIVEN, "--out", str(tmp_path / "out"), *arguments])

    return run


def test_the_line_to_paste(tune, loaded, tmp_path):
    session = Stub(loaded)
    result = tune([], session)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == "tokenprune.wrap(model, Uniform(keep=0.5))"
    assert re.search(r"uniform\(keep=0\.11\) +0\.200 +\+0\.5000 \[.*\] +10 +loses clearly too much", result.stdout)
    assert re.search(r"uniform\(keep=0\.5\) +0\.500 +\+0\.0000 \[-0\.0876, \+0\.0876\] +40 +chosen", result.stdout)
    assert "divprune(keep=0.5)  0.800" in result.stdout
    assert "held-out check, first of at most 3: uniform(keep=0.5) loses +0.0000" in result.stdout
    assert "The interval reaches beyond what is allowed" in result.stdout
    assert "It is a baseline, which looks at nothing" in result.stdout
    assert session.closed
    found = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert found["result"]["chosen"] == "uniform(keep=0.5)"
    assert found["times"] == TIMES
    assert sorted(path.name for path in (tmp_path / "out" / "runs").iterdir()) == [
        "divprune_keep=0.5", "none", "none_heldout", "uniform_keep=0.11", "uniform_keep=0.5",
        "uniform_keep=0.5_heldout",
    ]  # fmt: skip


def test_a_search_stopped_anywhere_goes_on(tune, loaded, tmp_path):
    whole = Stub(loaded)
    expected = tune(["--out", str(tmp_path / "whole")], whole).stdout
    for stop in range(len(whole.asked)):
        out = ["--out", str(tmp_path / f"{stop}")]
        assert tune(out, Stub(loaded, stop=stop)).exit_code == 130
        again = Stub(loaded)
        assert tune(out, again).stdout == expected
        assert again.asked == whole.asked[stop:]


def test_other_settings_need_another_folder_or_fresh(tune, loaded):
    assert tune([], Stub(loaded)).exit_code == 0
    session = Stub(loaded)
    result = tune(["--max-drop", "2%"], session)
    assert result.exit_code == 2
    assert "holds a search with max_drop='1%', not '2%': give another folder, or --fresh" in result.stderr
    assert session.asked == []
    assert tune(["--max-drop", "2%", "--fresh"], session).exit_code == 0
    assert session.asked


def test_nothing_within_names_the_closest(tune, loaded):
    right = RIGHT | {"uniform(keep=0.5)": 0.9, "divprune(keep=0.5)": 0.8}
    result = tune([], Stub(loaded, right))
    assert result.exit_code == 1
    assert "no candidate is within the allowed loss of 0.0100 (1 % of the dense score)" in result.stderr
    assert "the closest is uniform(keep=0.5), which loses" in result.stderr
    assert "wrap" not in result.stdout


def test_held_out_failures_are_told_and_the_next_is_offered(tune, loaded):
    session = Stub(loaded)
    plain = session.evaluate

    def worse(made, tasks, folder, *, limit, offset=0):
        session.right = RIGHT | ({"uniform(keep=0.5)": 0.5} if offset else {})
        return plain(made, tasks, folder, limit=limit, offset=offset)

    session.evaluate = worse
    result = tune([], session)
    assert result.exit_code == 0
    assert "first of at most 3: uniform(keep=0.5) loses +0.5000" in result.stdout
    assert "It fails." in result.stdout
    assert "second of at most 3: divprune(keep=0.5) loses +0.0000" in result.stdout
    assert "It is the second that was checked" in result.stdout
    assert result.stdout.splitlines()[-1] == "tokenprune.wrap(model, DivPrune(keep=0.5))"


def test_refused_candidates_are_listed(tune, loaded):
    session = Stub(loaded, failing=("uniform(keep=0.5)",))
    result = tune(["--policy", "resize(keep=0.3)", "--policy", "resize(keep=0.4)"], session)
    assert "refused: resize(keep=0.3), resize(keep=0.4): policy='resize' works at stage 'processor'" in result.stdout
    assert "refused: uniform(keep=0.5): uniform(keep=0.5) is too much for a picture of this task." in result.stdout
    assert result.stdout.splitlines()[-1] == "tokenprune.wrap(model, DivPrune(keep=0.5))"


def test_a_metric_that_falls_is_turned_round(tune, loaded):
    result = tune(["--max-drop", "0.01"], Stub(loaded, RIGHT | {"none": 0.9}, better=False))
    assert result.exit_code == 0, result.output
    assert "the dense model scores 0.1000" in result.stdout
    assert result.stdout.splitlines()[-1] == "tokenprune.wrap(model, Uniform(keep=0.5))"


def test_a_dense_model_that_is_never_right_gets_a_sentence(tune, loaded):
    result = tune([], Stub(loaded, RIGHT | {"none": 0.0}))
    assert result.exit_code == 2
    assert "the dense model scores 0 on each of 20 documents of 'colors': there is no loss to measure" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max-drop", "much"], "max-drop='much' is no allowed loss"),
        (["--max-drop", "-1%"], "max-drop='-1%' is no allowed loss"),
        (["--policy", "unifrom"], "did you mean 'uniform'?"),
        (["--policy", "none"], "policy='none' is the dense model"),
        (["--keep", "half"], "keep='half' is no number"),
        (["--keep", "1.5"], "keep=1.5"),
        (["--confidence", "95"], "confidence=95.0 is not between 0.5 and 1"),
        (["--tasks", ","], "tasks='' is empty"),
        (["--base", ""], "base='' is empty"),
    ],
)
def test_bad_arguments_get_a_sentence_before_anything_is_loaded(tune, loaded, tmp_path, arguments, sentence):
    session = Stub(loaded)
    result = tune(arguments, session)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert session.asked == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--samples", "90"], "tasks have fewer than 110 documents, which samples=90 and heldout=20 take: lower them."),
        (["--metric", "acuracy"], "metric='acuracy' is no number for every document of 'colors' (did you mean"),
        (["--metric", "notes"], "metric='notes' is no number for every document of 'colors': give one of accuracy."),
    ],
)
def test_what_the_task_does_not_have_gets_a_sentence(tune, loaded, arguments, sentence):
    session = Stub(loaded)
    result = tune(arguments, session)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert session.closed


def test_no_candidate_left_gets_a_sentence(loaded, tmp_path, monkeypatch):
    app = typer.Typer()
    app.command()(command.tune)
    monkeypatch.setattr(command, "_session", lambda base, base_args, names, *_: (Stub(loaded), names))
    given = ["--base", "x", "--tasks", "colors", "--policy", "resize", "--timed", "2", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert "the model can serve none of 6 candidates: policy='resize' works at stage 'processor'" in result.stderr


def test_candidates_are_policies_with_every_budget():
    found = candidates(POLICIES, KEEPS)
    assert len(found) == len(set(found)) == len(POLICIES) * len(KEEPS)
    assert found[:2] == ["cdpruner(keep=0.5)", "cdpruner(keep=0.35)"]
    assert [specs.text(specs.policies(text)) for text in found] == found
    assert candidates(["cdpruner(keep=64)", "tome(r=8)+divprune", "cdpruner"], ["64"]) == [
        "cdpruner(keep=64)",
        "tome(r=8)+divprune(keep=64)",
    ]
    assert {text for text in found if is_baseline(text)} == set(candidates(["random", "uniform"], KEEPS))


def test_compositions_have_less_at_every_stage():
    assert candidates(["divprune", "uniform", "fastv"], ["0.25", "64"], compose=True) == [
        "divprune(keep=0.25)", "divprune(keep=64)",
        "tome(r=8)+divprune(keep=0.25)", "tome(r=8)+divprune(keep=64)",
        "divprune(keep=0.25)+fastv(keep=0.125)", "divprune(keep=64)+fastv(keep=32)",
        "uniform(keep=0.25)", "uniform(keep=64)", "fastv(keep=0.25)", "fastv(keep=64)",
    ]  # fmt: skip


def test_candidates_that_cannot_be_get_a_sentence():
    with pytest.raises(UnknownPolicyError, match="cdprunner"):
        candidates(["cdprunner"], ["0.5"])
    with pytest.raises(InvalidArgumentError, match="2 policies state no budget"):
        candidates(["tome+divprune"], ["0.5"])


def test_what_is_timed_is_the_first_token_of_real_calls(loaded):
    session = Stub(loaded)
    calls = backend.seen(session, ["colors"], 2)
    assert "generate" not in session.model.__dict__
    assert len(calls) == 2
    assert all("pixel_values" in kwargs and kwargs["max_new_tokens"] == 3 for _, kwargs in calls)
    made, lengths = [], []
    generate = type(session.model).generate

    def counted(*args, **kwargs):
        answer = generate(session.model, *args, **kwargs)
        made.append(answer.shape[1] - kwargs["input_ids"].shape[1])
        return answer

    session.model.generate = counted
    handle = session.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args: lengths.append(args[0].shape[1])
    )
    try:
        texts = ["uniform(keep=0.5)", "divprune(keep=0.11)"]
        told = []
        found = backend.times(session, texts, calls, 2, told.append)
    finally:
        handle.remove()
        del session.model.generate
    assert list(found) == texts
    assert all(value > 0 for value in found.values())
    assert told == [texts]
    assert made == [1] * (3 * 3 * 2)  # rounds with the one left out, times dense and two, times calls
    assert lengths[:6] == [260, 260, 132, 132, 32, 32]  # in turns


def test_candidates_are_tried_and_the_model_is_given_back(loaded):
    session = Stub(loaded)
    call = backend.seen(session, ["colors"], 2)[0]
    before = set(session.model.__dict__)
    refused = backend.served(
        session, ["uniform(keep=0.5)", "resize(keep=0.5)", "uniform(keep=64)+fastv(keep=32)"], call
    )
    assert list(refused) == ["resize(keep=0.5)"]
    assert set(session.model.__dict__) == before
    with torch.no_grad():
        assert session.model(**session.inputs(0)).logits.shape[1] == 260


def test_a_task_without_pictures_gets_a_sentence(loaded):
    session = Stub(loaded)
    session.inputs = lambda i: {"input_ids": torch.tensor([[1, 2, 3]])}
    with pytest.raises(InputError, match="tasks='colors' make no call of generate with pictures"):
        backend.seen(session, ["colors"], 2)


def test_an_offset_behind_the_last_document_is_told_as_too_few(tune, loaded):
    session = Stub(loaded)
    plain = session.evaluate

    def evaluate(made, tasks, folder, *, limit, offset=0):
        if offset >= session.documents:
            raise InputError("base='x' fails on colors (ValueError: task.build_requests() did not find any docs!).")
        return plain(made, tasks, folder, limit=limit, offset=offset)

    session.evaluate = evaluate
    result = tune(["--samples", "100"], session)
    assert result.exit_code == 2
    assert "tasks have fewer than 120 documents" in result.stderr


def test_the_embedded_model_through_lmms_eval(tmp_path):
    app = typer.Typer()
    app.command()(command.tune)
    given = ["--base", "embedded", "--tasks", "shapes", "--policy", "uniform(keep=0.02)", "--max-drop", "1%",
             "--samples", "8", "--heldout", "4", "--timed", "1", "--rounds", "1", "--out", str(tmp_path)]  # fmt: skip
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1, result.output
    assert re.search(r"uniform\(keep=0\.02\) ", result.stdout)
    found = json.loads((tmp_path / "tune.json").read_text())
    assert found["result"]["dense"] > 0.8
    dense = [
        json.loads(line) for line in (tmp_path / "runs" / "none" / "samples_shapes.jsonl").read_text().splitlines()
    ]
    assert found["values"]["none from 0"] == [[line["accuracy"] for line in dense]]
    assert [line["doc_id"] for line in dense] == list(range(8))


def test_a_search_without_an_answer_blocks_no_folder(tmp_path):
    State(tmp_path, {"metric": "foo"}).measured({"uniform(keep=0.5)": 0.5}, {})
    state = State(tmp_path, {"metric": "accuracy"})
    assert state.times == {}
    state.remembering(lambda *_: np.ones((1, 2)))("none", 0, 2)
    with pytest.raises(InputError, match="holds a search with metric='accuracy'"):
        State(tmp_path, {"metric": "foo"})


def test_a_mistyped_metric_can_be_corrected_in_the_same_folder(tune, loaded):
    assert "metric='foo' is no number" in tune(["--metric", "foo"], Stub(loaded)).stderr
    result = tune(["--metric", "accuracy"], Stub(loaded))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("elastic", "processes"), [(True, None), (False, 2)])
def test_several_processes_are_refused(tune, loaded, tmp_path, monkeypatch, elastic, processes):
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: elastic)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: processes is not None)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: processes)
    result = tune([], Stub(loaded))
    assert result.exit_code == 2
    assert "tune runs in one process" in result.stderr
    assert not (tmp_path / "out").exists()


def test_one_process_of_one_is_not_refused(tune, loaded, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    assert tune([], Stub(loaded)).exit_code == 0


def test_other_tasks_or_packages_are_another_search(tune, loaded, tmp_path, monkeypatch):
    assert tune([], Stub(loaded)).exit_code == 0
    (tmp_path / "more").mkdir()
    moved = tune(["--include-path", str(tmp_path / "more")], Stub(loaded))
    assert "holds a search with include_path=[]" in moved.stderr
    monkeypatch.setattr(command, "_versions", lambda: {"torch": "9"})
    assert "holds a search with versions=" in tune([], Stub(loaded)).stderr
