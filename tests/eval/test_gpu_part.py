"""The GPU part without a GPU: what becomes of parts, where waits are looked for, and goals of the bench."""

import json
import warnings
from contextlib import contextmanager

import pytest
import torch

from tokenprune import wrap
from tokenprune.adapters import lookup, supported
from tokenprune.eval.bench.build import from_shape
from tokenprune.eval.speed import events as device_events
from tokenprune.eval.speed import gpu
from tokenprune.eval.speed import selection as selection_speed
from tokenprune.eval.speed import waits as synchronisations
from tokenprune.eval.speed.bench_goals import figures, table
from tokenprune.eval.speed.gpu import Part, parts
from tokenprune.eval.speed.policies import policies
from tokenprune.policies import Random
from tokenprune.stages.parts import find_parts

GOOD = Part("good", 1, ("this",))
BAD = Part("bad", 1, ("json.tool", "--indent", "x"))


@pytest.fixture
def cuda(monkeypatch):
    """As if there were one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "where", lambda device: {"device": "some GPU", "versions": {"cuda": "13.0"}})


@pytest.mark.parametrize("main", [gpu.main, synchronisations.main])
def test_without_a_gpu_it_is_said_in_a_sentence(main, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        main(["--out", str(tmp_path / "x")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip().endswith("a machine with a GPU" + ("." if main is gpu.main else ""))
    assert not (tmp_path / "x").exists()


def test_a_part_that_fails_stops_no_other(cuda, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "parts", lambda: (BAD, GOOD))
    with pytest.raises(SystemExit) as ended:
        gpu.main(["--out", str(tmp_path)])
    assert ended.value.code == 1
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert [(row["part"], row["state"]) for row in result["parts"]] == [("bad", "failed"), ("good", "done")]
    assert "invalid int value: 'x'" in result["parts"][0]["said"]
    assert "said" not in result["parts"][1]
    assert "| bad | failed |" in (tmp_path / "gpu.md").read_text()


def test_all_done_is_no_error(cuda, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "parts", lambda: (BAD, GOOD))
    gpu.main(["--out", str(tmp_path), "--part", "good"])
    assert [row["part"] for row in json.loads((tmp_path / "gpu.json").read_text())["parts"]] == ["good"]


def test_a_part_ends_with_its_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text("import time\n\ntime.sleep(60)\n")
    row = gpu.ran(Part("slow", 1, ("slow",)), tmp_path, 1.0)
    assert (row["state"], row["limit"]) == ("out of time", 1.0)


def test_time_that_is_left_goes_to_the_next(cuda, tmp_path, monkeypatch):
    limits = []

    def ran(part, out, limit):
        limits.append(limit)
        return {"part": part.name, "state": "done", "seconds": 0.0, "limit": limit}

    monkeypatch.setattr(gpu, "ran", ran)
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: 0.0)
    gpu.run([Part("a", 1, ()), Part("b", 3, ())], tmp_path, 10)
    assert limits == [150, 600]


def test_figures_are_of_this_run(tmp_path):
    file = tmp_path / "bench_llava-next-7b.json"
    file.write_text(json.dumps(bench([row(DENSE), row("random")])))
    written = file.stat().st_mtime
    assert len(gpu.figures(tmp_path, written)) > 0
    assert gpu.figures(tmp_path, written + 1) == []


def test_the_parts_fit_into_ten_minutes_and_say_what_the_commands_take(capsys):
    assert sum(part.minutes for part in parts()) <= 10.001
    assert {part.words[0] for part in parts() if part.words[0] != "tokenprune"} == {
        f"tokenprune.eval.{name}" for name in ("speed.selection", "speed.waits", "speed.rows", "vision_speed")
    }
    benches = [part.words for part in parts() if part.words[:2] == ("tokenprune", "bench")]
    assert [words[words.index("--shape") + 1] for words in benches] == list(gpu.SHAPES)
    for words in benches:
        assert {words[i + 1] for i, word in enumerate(words) if word == "--policy"} >= set(policies())
        assert [words[i + 1] for i, word in enumerate(words) if word == "--batch"] == ["1", "8"]


def test_the_policies_without_training():
    assert {"cdpruner", "divprune", "mmtok", "fastv", "sparsevlm", "pyramiddrop"} <= set(policies())
    assert not {"none", "debiased", "tome", "dycoke", "resize"} & set(policies())


# Waits


def test_waits_are_those_that_torch_warns_of(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with device_events.waits() as places:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert modes == ["warn", 0]
    assert len(places) == 2
    assert all(place.startswith("test_gpu_part.py:") for place in places)


@pytest.fixture(scope="module")
def subject():
    return from_shape("llava-1.5-7b", scale=0.05, dtype="float32", device="cpu", attention="sdpa", text=16, seed=0)


@pytest.fixture
def watch(subject, monkeypatch):
    """A watch that notes what is called while it is on: the tower, a selection, a layer, the head."""
    watching, parts = [], find_parts(subject.model, lookup, supported())

    @contextmanager
    def watch():
        places = []
        watching.append(places)
        yield places
        watching.remove(places)

    def note(name):
        def noted(*_):
            for places in watching:
                places.append(name)

        return noted

    select = Random.select
    monkeypatch.setattr(Random, "select", lambda self, *given: (note("select")(), select(self, *given))[1])
    modules = {"tower": parts.outer.vision_tower, "layer": parts.decoder.layers[1], "head": subject.model.lm_head}
    hooks = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
    yield watch
    for hook in hooks:
        hook.remove()


def test_waits_are_looked_for_where_selections_are_made(subject, watch):
    parts = find_parts(subject.model, lookup, supported())
    with wrap(subject.model, "random", keep=8), torch.inference_mode():
        with synchronisations.spans(parts, watch) as found:
            subject.model(**subject.one)
    assert found == {"selection": ["select"], "decoder": ["layer"]}
    assert "get_image_features" not in vars(parts.outer)
    with torch.inference_mode():
        subject.model(**subject.one)
    assert found == {"selection": ["select"], "decoder": ["layer"]}


def test_waits_that_the_dense_model_has_not_miss_the_goal(subject, watch):
    rows = synchronisations.measure(subject, ["uniform", "random", "debiased"], 8, watch)
    assert [row["policy"] for row in rows] == ["dense", "uniform", "random", "debiased"]
    assert [row.get("added") for row in rows] == [0, 0, 1, None]
    assert [row["goals"] for row in rows[1:3]] == [
        [{"goal": "<= 0 added", "met": name != "random"}] for name in ("uniform", "random")
    ]
    result = {"rows": [{"shape": "s"} | row for row in rows], "keep": 8, "scale": 1, "device": "", "command": ""}
    text = synchronisations.table(result)
    assert "| s | random | 1 | 1 | 1 | select | <= 0 added: missed |" in text


# Goals of the bench

DENSE = "dense"


def row(policy, *, batch=1, overhead=1.0, gain=4.5, step=9.0, keep="320"):
    dense = policy == DENSE
    return {
        "policy": policy, "batch": batch, "keep": "" if dense else keep, "kept": 2928 if dense else 368,
        "overhead": None if dense or overhead is None else [overhead, overhead, 9.0],
        "ttft_speedup": [1.0 if dense else gain] * 3, "decode_ms_per_token": [10.0 if dense else step] * 3,
    }  # fmt: skip


def bench(rows, *, shape="llava-next-7b", scale=1, cuda=True):
    return {"shape": shape, "scale": scale, "versions": {"cuda": "13"} if cuda else {}, "rows": rows}


def test_figures_of_the_bench():
    merged = row("tome(r=12)+cdpruner", overhead=None, gain=4.9, keep="12 + 320")
    rows = [row(DENSE), row("a", overhead=1.04), row("b", overhead=1.07, gain=3.9, step=11.0), row("c"), merged]
    found = {one["figure"]: one for one in figures(bench(rows))}
    assert [(one["value"], one["policy"], one["met"]) for one in found.values()] == [
        (1.07, "b", False),
        (4.5, "a", True),
        (4.9, "tome(r=12)+cdpruner", False),
        (0.909, "b", False),
    ]
    assert (found["largest overhead"]["missed"], found["largest overhead"]["of"]) == (1, 3)
    assert "<= 1.05x the oracle: missed (1 of 3 policies miss)" in table(list(found.values()))


def test_a_cpu_has_another_goal_and_other_shapes_no_gain():
    found = list(figures(bench([row(DENSE), row("a", overhead=1.07)], shape="llava-1.5-7b", cuda=False)))
    assert [(one["figure"], one["met"]) for one in found] == [("largest overhead", True), ("slowest decoding", True)]
    assert found[0]["goal"] == "<= 1.1x the oracle"
    scaled = figures(bench([row(DENSE), row("a", batch=1)], scale=0.1))
    assert "best TTFT gain" not in {one["figure"] for one in scaled}


def test_a_gain_with_more_tokens_is_not_the_one_asked_for():
    found = figures(
        bench([row(DENSE), row("a", gain=3.0), row("b", gain=9.0, keep="0.5"), row("c", gain=8, keep="640")])
    )
    (best,) = [one for one in found if one["figure"] == "best TTFT gain"]
    assert (best["policy"], best["met"]) == ("a", False)


def test_every_batch_has_figures():
    rows = [row(name, batch=batch) for batch in (1, 8) for name in (DENSE, "a")]
    assert {one["batch"] for one in figures(bench(rows))} == {1, 8}


def test_where_says_the_machine_and_versions():
    found = selection_speed.where("cpu")
    assert found["versions"]["torch"] == torch.__version__
    assert "cores" in found["device"]
