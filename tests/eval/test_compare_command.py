"""`tokenprune compare`: runs, benches and both; one sentence for what it cannot use."""

import errno
import json
import re

import pytest
import typer
from typer.testing import CliRunner

from tests.eval.compare_folders import answers, bench_file, bench_row, run_folder
from tokenprune.eval import files
from tokenprune.eval.compare.benches import bare, key
from tokenprune.eval.compare.command import compare

KINDS = [("color", "count")[i % 2] for i in range(20)]

app = typer.Typer()
app.command()(compare)

CDPRUNER = ("cdpruner", "64", "tokenprune.wrap(model, CDPruner(keep=64))")
RANDOM = ("random", "0.25", "tokenprune.wrap(model, Random(keep=0.25))")
UNIFORM = ("uniform", "8", "tokenprune.wrap(model, Uniform(keep=8))")


def said(*arguments, code=0):
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else " ".join(result.stderr.split())


@pytest.fixture
def folder(tmp_path):
    """Of three runs."""
    run_folder(tmp_path / "runs" / "b_dense", answers([1] * 20, kept=256, kinds=KINDS))
    right = {"a_cdpruner": ("cdpruner(keep=64)", "64", 18), "c_random": ("random(keep=0.25)", "0.25", 8)}
    for name, (policy, keep, count) in right.items():
        rights = [1] * count + [0] * (20 - count)
        run_folder(tmp_path / "runs" / name, answers(rights, kept=64, kinds=KINDS), policy=policy, keep=keep)
    return tmp_path / "runs"


def test_runs_of_a_folder_against_its_dense_one(folder, tmp_path):
    out = [tmp_path / "new" / name for name in ("x.json", "x.md")]
    text = said(folder, "--out", out[0], "--out", out[1])
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [re.split(r"\s*\|\s*", line)[1:5] for line in lines[2:]] == [
        ["none", "", "256/256", "100.0"],
        ["cdpruner(keep=64)", "64", "64/256", "90.0"],
        ["random(keep=0.25)", "0.25", "64/256", "40.0"],
    ]
    assert "| 0.500 | 0.500 |" in lines[3]
    assert "| <0.001 | <0.001 |" in lines[4]
    assert out[1].read_text() == text
    rows = json.loads(out[0].read_text())["tasks"]["shapes"]["rows"]
    assert [row["value"] for row in rows] == [1, 0.9, 0.4]
    assert rows[2]["against"]["groups"][0]["n"] == 10
    assert rows[0]["against"] is None


def test_errors_and_idle_policies_are_in_the_json(folder, tmp_path):
    rights = answers([1] * 20, kept=256, kinds=KINDS)
    run_folder(folder / "d_pool", rights, policy="pool", failures=["RuntimeError: out of memory"])
    text = said(folder, "--out", tmp_path / "x.json")
    notes = json.loads((tmp_path / "x.json").read_text())["notes"]
    for note in (
        "1 answers of pool are empty because of errors, and count as such; the first: RuntimeError: out of memory.",
        "pool left the language model all visual tokens of shapes.",
    ):
        assert note in notes
        assert note in text


def test_the_first_argument_is_what_others_are_compared_to(folder):
    text = said(folder / "c_random", folder / "a_cdpruner", folder / "b_dense")
    assert [line.split(" |")[0] for line in text.splitlines() if line.startswith("| ")][2:] == [
        "| random(keep=0.25)", "| cdpruner(keep=64)", "| none",
    ]  # fmt: skip
    assert "+50.0 [" in text


def test_the_same_policy_twice_is_told_apart_by_folder(folder, tmp_path):
    other = run_folder(tmp_path / "again", answers([1] * 20, kinds=KINDS), policy="cdpruner(keep=64)", keep="64")
    assert f"| cdpruner(keep=64) ({other}) |" in said(folder / "a_cdpruner", other, "--by", "kind")


def test_benches_beside_each_other(tmp_path):
    one = bench_file(tmp_path / "one.json", [bench_row(*CDPRUNER, 2.0, overhead=1.25), bench_row(*RANDOM, 3.0)])
    rows = [bench_row(*CDPRUNER, 0.8, ms=5.0), bench_row(*UNIFORM, 4.0, batch=4)]
    two = bench_file(tmp_path / "two.json", rows, device="another")
    text = said(one, two)
    assert "| cdpruner | 64 | 1 | 64/256 | 10.0 | 2.00x | 1.25x | 64/256 | 5.0 | 0.80x |  | 0.50x |" in text
    assert "| cdpruner | 64 | 1 | 64/256 | 20.0 | 2.00x | 64/256 | 10.0 | 0.80x | 0.50x |" in text
    assert f"- A: {one}: shape tiny, dtype float32, device CPU of a test (torch 2.0)" in text
    assert f"- B: {two}: shape tiny, dtype float32, device another" in text
    assert f"Only in {one}: random keep 0.25 at batch 1." in text
    assert f"Only in {two}: uniform keep 8 at batch 4." in text


def test_accuracy_and_time_are_joined(folder, tmp_path):
    rows = [bench_row(*RANDOM, 1.5), bench_row(*CDPRUNER, 1.5, overhead=1.1), bench_row(*UNIFORM, 4.0, kept=8)]
    bench = bench_file(tmp_path / "bench.json", [*rows, bench_row(*CDPRUNER, 0.7, batch=8)])
    run_folder(folder / "d", answers([1] * 20, kept=32, kinds=KINDS), policy="divprune(keep=32)", keep="32")
    picture, out = tmp_path / "plot.png", tmp_path / "x.json"
    text = said(folder, bench, "--plot", picture, "--out", out)
    text = text[text.index("### Accuracy and TTFT, batch 1") :]
    assert [line for line in text.splitlines() if line.startswith("| ")][2:] == [
        "| cdpruner(keep=64) | 64 | 64/256 | 64/256 | 1.50x | 1.10x | **90.0** |",
        "| random(keep=0.25) | 0.25 | 64/256 | 64/256 | 1.50x |  | 40.0 |",
        "| none |  | 256/256 | 256/256 | 1.00x |  | **100.0** |",
    ]
    assert f"Runs that {bench} has no line for: divprune(keep=32)." in text
    assert f"Lines of {bench} without a run: uniform keep 8." in text
    assert f"{bench} has batch 8, too" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    points = json.loads(out.read_text())["pareto"][0]["points"]
    assert [(one["policy"], one["speedup"], one["front"]) for one in points] == [
        ("cdpruner(keep=64)", 1.5, ["shapes"]), ("random(keep=0.25)", 1.5, []), ("none", 1, ["shapes"]),
    ]  # fmt: skip
    other = said(folder / "a_cdpruner", bench, "--batch", 8, "--time", "end_to_end")
    assert "| cdpruner(keep=64) | 64 | 64/256 | 64/256 | 0.70x |  | **90.0** |" in other


def test_a_budget_that_is_another_share_is_said(folder, tmp_path):
    row = {**bench_row(*CDPRUNER, 2.0), "total": 576}
    text = said(folder, bench_file(tmp_path / "bench.json", [row]))
    assert "cdpruner(keep=64) keeps 25% of the visual tokens in its run, 11% in the bench" in text


@pytest.mark.parametrize(("text", "line", "without"), [
    ("none", "dense", "none"),
    ("cdpruner(keep=64, theta=0.25)", "tokenprune.wrap(model, CDPruner(keep=64, theta=0.25))", "cdpruner(theta=0.25)"),
    ("tome(r=8)+random(keep=0.5)", "tokenprune.wrap(model, [ToMe(r=8), Random(keep=0.5)])", "tome(r=8)+random"),
    ("of_somebody(keep=3)", "of_somebody(keep=3)", "of_somebody(keep=3)"),
])  # fmt: skip
def test_policies_are_known_by_their_line(text, line, without):
    assert key(text) == line
    assert bare(text) == without


def test_what_cannot_be_used_is_one_sentence(folder, tmp_path):
    bench = bench_file(tmp_path / "bench.json", [bench_row(*UNIFORM, 2.0)])
    a, b = folder / "a_cdpruner", folder / "b_dense"
    assert "is one thing alone: give another" in said(a, code=2)
    assert "is one thing alone" in said(bench, code=2)
    assert "does not exist" in said(a, tmp_path / "missing", code=2)
    assert "is given twice" in said(a, b, folder / "." / "a_cdpruner", code=2)
    assert "holds no results.json" in said(a, tmp_path, code=2)
    assert "metric='exact_mach' is in no document of these runs (did" in said(a, b, "--metric", "exact_mach", code=2)
    assert "out='x.txt' does not end in .json or .md" in said(a, b, "--out", "x.txt", code=2)
    assert "plot='x.pdf' does not end in .png" in said(a, b, "--plot", "x.pdf", code=2)
    other = bench_file(tmp_path / "other.json", [])
    assert "has no run to draw" in said(bench, other, "--plot", "x.png", code=2)
    assert "time='tft' is not one of ttft, end_to_end (did you mean 'ttft'?)" in said(b, bench, "--time", "tft", code=2)
    assert "batch=3 is not in" in said(b, bench, "--batch", 3, code=2)
    assert "no run has the policy and budget of a line" in said(a, bench, code=2)


def test_other_json_is_no_bench(folder, tmp_path):
    file = tmp_path / "x.json"
    for text, why in (
        ("{", "cannot be read as JSON"),
        ('{"rows": [1]}', "it has no device or no rows"),
        ('{"device": "x", "rows": []}', "it has no device or no rows"),
        ('{"device": "x", "rows": [{"policy": "a", "batch": 1, "kept": 1}]}', "row 1 has no usable total"),
        ('{"device": "x", "rows": [3]}', "row 1 has no usable policy"),
        ('{"device": "x", "rows": [{"policy": "a", "batch": 1, "kept": 1, "total": 1}]}', "no usable ttft_speedup"),
        (json.dumps({"device": "x", "rows": [bench_row(*UNIFORM, 1.0)] * 2}), "holds uniform keep 8 at batch 1 twice"),
    ):
        file.write_text(text)
        assert why in said(folder, file, code=2)


def test_a_full_disk_is_one_sentence_below_the_table(folder, tmp_path, monkeypatch):
    def full(file, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(files, "replaced", full)
    result = CliRunner().invoke(app, [str(folder), "--out", str(tmp_path / "x.md")])
    assert result.exit_code == 2
    assert "| cdpruner(keep=64) |" in result.stdout
    assert "x.md' could not be written (No space left on device): the tables above" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_picture_that_cannot_be_written_leaves_the_earlier_one(folder, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def full(figure, file, **options):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    picture = tmp_path / "plot.png"
    picture.write_bytes(b"earlier")
    monkeypatch.setattr(Figure, "savefig", full)
    assert "could not be written" in said(folder, "--plot", picture, code=2)
    assert picture.read_bytes() == b"earlier"
    assert not (tmp_path / "plot.part").exists()
