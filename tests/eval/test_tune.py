"""The race, on candidates whose accuracies and times are known."""

import json

import numpy as np
import pytest

from tokenprune.errors import InputError
from tokenprune.eval.tune.loss import MaxDrop
from tokenprune.eval.tune.search import DENSE, Plan, Refused, search
from tokenprune.eval.tune.state import State, summary

SIZE = 1200  # documents of the made-up task


class World:
    """Documents that the dense model gets right with probability 0.9. A candidate loses a share of them, wins another.

    Attributes:
        asked: (candidate, offset, documents) in turn.
    """

    def __init__(self, losses, *, seed=0, refused=(), stop=None, tasks=1):
        rng = np.random.default_rng(seed)
        self.values = {DENSE: (rng.random((tasks, SIZE)) < 0.9).astype(float)}
        for text, (lost, won) in losses.items():
            drawn, dense = rng.random((tasks, SIZE)), self.values[DENSE]
            self.values[text] = np.where(dense == 1, drawn >= lost / 0.9, drawn < won / 0.1).astype(float)
        self.refused, self.stop, self.asked = refused, stop, []

    def __call__(self, text, offset, count):
        if len(self.asked) == self.stop:
            raise KeyboardInterrupt
        self.asked.append((text, offset, count))
        if text in self.refused:
            raise Refused(f"{text} cannot be served.")
        return self.values[text][:, offset : offset + count]


def many(seed):
    """Times and true losses of 30 candidates: the faster, the more is lost; a few lose more than others so fast.

    With 5 % of the dense score allowed, candidates up to a time of 0.4 lose 12 % and more, the others less than 2 %, or
    much: the fastest that is allowed is p13, at 0.43.
    """
    rng = np.random.default_rng(seed)
    times = {f"p{i}": round(0.04 + 0.03 * i, 2) for i in range(30)}
    losses = {
        text: (0.12 + 0.6 * (0.41 - time), 0.01) if time < 0.42 else (0.015, 0.008) for text, time in times.items()
    }
    for text in rng.choice([f"p{i}" for i in range(14, 30)], 8, replace=False):
        losses[text] = (0.3, 0.0)
    order = rng.permutation(list(times))
    return {text: times[text] for text in order}, losses


def plan(samples=400, heldout=400, drop="5%", confidence=None):
    return Plan(samples, heldout, MaxDrop.read(drop), confidence)


@pytest.mark.parametrize("confidence", [None, 0.9])
def test_the_fastest_allowed_is_found_for_less_than_half_of_the_documents(confidence):
    hits, spent = 0, []
    for seed in range(100):
        times, losses = many(seed)
        world = World(losses, seed=seed)
        outcome = search(times, world, plan(confidence=confidence))
        hits += outcome.chosen is not None and outcome.chosen.text == "p13"
        spent.append(outcome.spent / outcome.exhaustive)
        grown = {}
        for text, offset, count in world.asked:
            if text != DENSE and not offset:
                grown[text] = max(grown.get(text, 0), count)
        assert sum(grown.values()) == outcome.spent
    assert hits >= 95
    assert max(spent) < 0.3


def test_what_is_told_is_what_was_measured():
    times, losses = many(3)
    world = World(losses, seed=3)
    outcome = search(times, world, plan())
    dense = world.values[DENSE]
    assert outcome.dense == dense[:, :400].mean()
    assert outcome.dense_heldout == dense[:, 400:800].mean()
    assert [row.time for row in outcome.rows] == sorted(times.values())
    for row in outcome.rows:
        lost = dense - world.values[row.text]
        assert row.loss.mean == pytest.approx(lost[:, : row.loss.count].mean())
        assert row.loss.low < row.loss.mean < row.loss.high
        assert row.loss.allowed == pytest.approx(0.05 * outcome.dense)
        assert row.decision
    chosen = outcome.chosen
    assert chosen.decision == "chosen"
    assert chosen.loss.count == 400
    assert chosen.heldout.mean == pytest.approx((dense - world.values["p13"])[:, 400:800].mean())
    assert chosen.heldout.allowed == pytest.approx(0.05 * outcome.dense_heldout)


def test_nobody_leaves_for_being_slow_before_a_faster_one_is_chosen():
    """All fast ones are hopeless: the slowest but one is the answer, and no faster one was left undecided."""
    times = {f"p{i}": 0.1 + 0.1 * i for i in range(9)}
    losses = dict.fromkeys(times, (0.3, 0.0)) | {"p7": (0.0, 0.0), "p8": (0.0, 0.0)}
    outcome = search(times, World(losses), plan())
    assert outcome.chosen.text == "p7"
    assert {row.decision for row in outcome.rows[:7]} == {"loses clearly too much"}
    assert outcome.rows[8].decision == "not needed: a faster one is chosen"
    assert outcome.rows[8].loss.count == 50  # the survey's


def test_documents_are_nested_and_the_held_out_ones_are_behind_them():
    world = World({"a": (0.2, 0.0), "b": (0.0, 0.0)})
    search({"b": 0.5, "a": 0.2}, world, plan(200, 100, "1%"))
    assert world.asked[:2] == [(DENSE, 200, 100), (DENSE, 0, 200)]
    assert [(offset, count) for text, offset, count in world.asked if text == "b"] == [
        (0, 25), (0, 50), (0, 100), (0, 200), (200, 100),
    ]  # fmt: skip
    assert all(offset == 0 for text, offset, _ in world.asked if text == "a")


def test_no_loss_allowed():
    world = World({"equal": (0.0, 0.0), "better": (0.0, 0.05), "hardly worse": (0.01, 0.0)})
    outcome = search({"hardly worse": 0.2, "equal": 0.3, "better": 0.4}, world, plan(drop="0"))
    assert outcome.chosen.text == "equal"
    assert outcome.chosen.loss.mean == outcome.chosen.loss.allowed == 0
    assert outcome.rows[0].decision.startswith("loses")


def test_all_lose_too_much():
    outcome = search({"a": 0.2, "b": 0.3}, World({"a": (0.5, 0.0), "b": (0.3, 0.0)}), plan())
    assert outcome.chosen is None
    assert outcome.checks == []
    assert outcome.closest.text == "b"
    assert outcome.spent == 100


def test_nobody_faster_than_the_dense_model_is_asked():
    world = World({"a": (0.0, 0.0), "b": (0.0, 0.0)})
    outcome = search({"a": 1.0, "b": 1.3}, world, plan())
    assert outcome.chosen is outcome.closest is None
    assert {text for text, *_ in world.asked} == {DENSE}
    assert {row.decision for row in outcome.rows} == {"not faster than the dense model"}


def spoiled(world, *texts):
    """Candidates that are right on calibration documents alone."""
    for text in texts:
        world.values[text][:, 400:] = 0
    return world


def test_who_fails_on_held_out_documents_is_followed_by_the_next():
    times = {f"p{i}": 0.1 + 0.1 * i for i in range(6)}
    losses = dict.fromkeys(times, (0.0, 0.0))
    outcome = search(times, spoiled(World(losses), "p0", "p1"), plan())
    assert [row.text for row in outcome.checks] == ["p0", "p1", "p2"]
    assert [row.heldout.within for row in outcome.checks] == [False, False, True]
    assert outcome.chosen.text == "p2"
    outcome = search(times, spoiled(World(losses), "p0", "p1", "p2"), plan())
    assert len(outcome.checks) == 3
    assert outcome.chosen is None
    assert outcome.rows[3].decision == "not looked at: 3 failed on held-out documents"


def test_a_confidence_asks_for_proof():
    """No difference on 100 documents shows a loss of 1 % neither way; on 1000 it does."""
    times = {"a": 0.5}
    few, more = (World({"a": (0.0, 0.0)}) for _ in range(2))
    assert search(times, few, plan(100, 100, "0.01")).chosen.text == "a"
    outcome = search(times, more, plan(100, 100, "0.01", 0.95))
    assert outcome.rows[0].decision == "not shown to be within"
    outcome = search(times, World({"a": (0.0, 0.0)}), plan(600, 600, "0.01", 0.95))
    assert outcome.chosen.text == "a"
    assert outcome.chosen.loss.bound < outcome.chosen.heldout.bound < 0.01  # one of three checks


def test_what_loses_more_than_allowed_is_seldom_told_with_confidence():
    """Forty candidates just outside, all as good in the end: with 0.9, at most one search in ten may tell one."""
    times = {f"p{i}": 0.1 + 0.02 * i for i in range(40)}
    told = [0, 0]
    for seed in range(100):
        for which, confidence in enumerate((None, 0.9)):
            world = World(dict.fromkeys(times, (0.06, 0.0)), seed=seed)
            told[which] += search(times, world, plan(300, 300, "0.05", confidence)).chosen is not None
    assert told[1] <= 10
    assert told[0] > told[1]


def test_equal_times_go_by_the_survey():
    world = World({"a": (0.03, 0.0), "b": (0.0, 0.0)})
    assert search({"a": 0.301, "b": 0.304}, world, plan()).chosen.text == "b"


def test_what_cannot_be_served_says_why_and_the_race_goes_on():
    world = World({"a": (0.0, 0.0), "b": (0.0, 0.0)}, refused=("a",))
    outcome = search({"a": 0.2, "b": 0.3}, world, plan())
    assert outcome.rows[0].decision == "refused: a cannot be served."
    assert outcome.chosen.text == "b"


def test_the_front_is_of_those_that_nobody_beats():
    times = {"fast": 0.1, "dominated": 0.2, "good": 0.3, "best": 0.4}
    losses = {"fast": (0.3, 0.0), "dominated": (0.6, 0.0), "good": (0.1, 0.0), "best": (0.0, 0.02)}
    outcome = search(times, World(losses), plan(drop="0"))
    assert [row.text for row in outcome.front] == ["fast", "good", "best"]


def test_tasks_count_alike():
    world = World({"a": (0.0, 0.0)}, tasks=2)
    world.values["a"][1] = 0
    outcome = search({"a": 0.5}, world, plan())
    assert outcome.rows[0].loss.mean == pytest.approx(world.values[DENSE][1, :50].mean() / 2)
    assert outcome.spent == 100


@pytest.mark.parametrize("samples", [900, 1300])
def test_too_few_documents_get_a_sentence(samples):
    with pytest.raises(
        InputError, match=rf"fewer than {samples + 400} documents, which samples={samples} and heldout=400 take"
    ):
        search({"a": 0.5}, World({"a": (0.0, 0.0)}), plan(samples))


@pytest.mark.parametrize("samples", [1, 2, 3, 9])
def test_few_documents_are_enough_to_run(samples):
    world = World({"a": (0.0, 0.0)})
    outcome = search({"a": 0.5}, world, plan(samples, 1))
    assert outcome.chosen.text == "a"
    assert outcome.chosen.loss.count == outcome.spent == samples


SETTINGS = {"base": "made up", "samples": 400}


def run(folder, *, stop=None):
    """One start of a search with a state; (outcome, world)."""
    times, losses = many(1)
    world = World(losses, seed=1, refused=("p12",), stop=stop)
    state = State(folder, SETTINGS)
    if not state.times:
        state.measured(times, {})
    return search(state.times, state.remembering(world), plan(), state.noting()), world


def test_a_search_stopped_anywhere_ends_as_if_it_had_not_been(tmp_path):
    whole, world = run(tmp_path / "whole")
    expected = (tmp_path / "whole" / "tune.json").read_text()
    for stop in range(len(world.asked)):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, stop=stop)
        again, rest = run(folder)
        assert summary(again) == summary(whole)
        assert (folder / "tune.json").read_text() == expected
        assert rest.asked == world.asked[stop:]  # nothing twice


def test_a_search_stopped_again_and_again_ends(tmp_path):
    starts = 0
    while True:
        starts += 1
        try:
            outcome, _ = run(tmp_path, stop=1)
            break
        except KeyboardInterrupt:
            continue
    whole, world = run(tmp_path / "whole")
    assert summary(outcome) == summary(whole)
    assert starts == len(world.asked)


def test_a_search_that_is_done_asks_nothing(tmp_path):
    first, _ = run(tmp_path)
    again, world = run(tmp_path)
    assert world.asked == []
    assert summary(again) == summary(first)
    result = json.loads((tmp_path / "tune.json").read_text())["result"]
    assert result["chosen"] == "p13"
    assert result["checked"] == ["p13"]


def test_other_settings_get_a_sentence_and_fresh_forgets(tmp_path):
    run(tmp_path)
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("kept")
    before = (tmp_path / "tune.json").read_text()
    with pytest.raises(InputError, match="with samples=400, not 300: give another folder, or --fresh"):
        State(tmp_path, {**SETTINGS, "samples": 300})
    assert (tmp_path / "tune.json").read_text() == before
    state = State(tmp_path, {**SETTINGS, "samples": 300}, fresh=True)
    assert state.times == {}
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": {}}'])
def test_a_damaged_file_gets_a_sentence(tmp_path, text):
    (tmp_path / "tune.json").write_text(text)
    with pytest.raises(InputError, match="no search that can be gone on with: give another folder or --fresh"):
        State(tmp_path, SETTINGS)


def test_a_full_disk_gets_a_sentence_and_loses_nothing(tmp_path, monkeypatch):
    state = State(tmp_path, SETTINGS)
    state.measured({"a": 0.5}, {})
    before = (tmp_path / "tune.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tokenprune.eval.tune.state.replaced", full)
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            search(state.times, state.remembering(World({"a": (0.0, 0.0)})), plan(), state.noting())
    assert (tmp_path / "tune.json").read_text() == before
    state = State(tmp_path, SETTINGS)
    assert search(state.times, state.remembering(World({"a": (0.0, 0.0)})), plan()).chosen.text == "a"
