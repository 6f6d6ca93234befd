"""`tokenprune bench`: files, and bad input as one sentence."""

import json
import shlex

import pytest
import torch
import typer
from typer.testing import CliRunner

from tokenprune.eval import files, shapes
from tokenprune.eval.bench.command import bench
from tokenprune.eval.bench.measure import Bench

app = typer.Typer()
app.command()(bench)
SMALL = ["--shape", "llava-1.5-7b", "--scale", "0.05", "--device", "cpu", "--text", "8", "--new", "2", "--rounds", "2"]
EARLIER = [*SMALL, "--new", "1", "--rounds", "1", "--policy", "random"]


def run(*arguments):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def sentence(result):
    """What is on stderr, whitespace of the progress bar left out."""
    assert result.exit_code == 2, result.output
    return result.stderr.strip()


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("earlier")
    assert run(*EARLIER, "--out", folder).exit_code == 0
    return folder / "bench_llava-1.5-7b.json"


def test_files(tmp_path):
    given = ["--policy", "random", "--policy", "fastv(keep=16)", "--keep", "64", "--keep", "0.5"]
    out = run(*SMALL, *given, "--batch", 2, "--batch", 1, "--seed", 3, "--out", tmp_path, "--plot")
    assert out.exit_code == 0, out.output
    result = json.loads((tmp_path / "bench_llava-1.5-7b.json").read_text())
    rows = [(row["policy"], row["keep"], row["batch"], row["kept"]) for row in result["rows"]]
    policies = [("dense", "", 576), ("random", "64", 64), ("random", "0.5", 288), ("fastv", "16", 16)]
    assert rows == [(name, keep, batch, kept) for batch in (2, 1) for name, keep, kept in policies]
    assert result["versions"].keys() >= {"torch", "transformers", "tokenprune", "python"}
    expected = {"dtype": "float32", "attention": "sdpa", "seed": 3, "rounds": 2, "scale": 0.05, "batches": [2, 1]}
    assert {name: result[name] for name in expected} == expected
    assert all(len(row["seconds"]["ttft"]) == 2 for row in result["rows"])
    assert all(row["overhead"] and row["oracle_difference"] < 1e-3 for row in result["rows"] if row["keep"])
    assert all(row["kv_bytes"] and row["peak_bytes"] is None for row in result["rows"])
    text = (tmp_path / "bench_llava-1.5-7b.md").read_text()
    assert text.count("| random | 64 |") == 4
    assert "--policy 'fastv(keep=16)' --keep 64 --keep 0.5 --batch 2 --batch 1" in text
    assert (tmp_path / "bench_llava-1.5-7b.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint(tmp_path):
    given = ["--policy", "trim", "--keep", "0.25", "--text", "12", "--new", "1", "--rounds", "1", "--device", "cpu"]
    out = run("--model", shapes.CHECKPOINT, "--dtype", "float32", *given, "--out", tmp_path)
    assert out.exit_code == 0, out.output
    result = json.loads((tmp_path / f"bench_{shapes.CHECKPOINT.name}.json").read_text())
    assert result["weights"] == "the checkpoint's"
    assert [row["kept"] for row in result["rows"]] == [256, 64]
    assert result["rows"][1]["overhead"] is not None


def test_the_command_in_the_result_gives_it_again(tmp_path):
    given = ["--policy", "random(seed=1)", "--keep", "8", "--seed", "5"]
    assert run(*SMALL, *given, "--out", tmp_path).exit_code == 0
    file = tmp_path / "bench_llava-1.5-7b.json"
    first = json.loads(file.read_text())
    again = shlex.split(first["command"].removeprefix("tokenprune bench "))
    assert run(*again, "--out", tmp_path).exit_code == 0
    second = json.loads(file.read_text())
    assert first["command"] == second["command"]
    assert {**first, "rows": 0} == {**second, "rows": 0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "shape and model are both missing"),
        (["--shape", "llava-1.5-7b", "--model", "x"], "shape and model are both given"),
        (["--shape", "llava-1.5"], "did you mean 'llava-1.5-7b'?"),
        (["--model", "x", "--scale", "0.5"], "scale=0.5 is about shapes"),
        ([*SMALL, "--scale", "0"], "scale=0.0 is outside (0, 1]"),
        ([*SMALL, "--policy", "cdprunr"], "did you mean 'cdpruner'?"),
        ([*SMALL, "--keep", "much"], "keep='much' is no number"),
        ([*SMALL, "--keep", "577"], "keep=577 is above the 576 visual tokens"),
        ([*SMALL, "--policy", "random(keep"], "cannot be read"),
        ([*SMALL, "--policy", "resize"], "works at stage 'processor'"),
        ([*SMALL, "--dtype", "float"], "dtype='float' is not one of auto"),
        ([*SMALL, "--device", "cuda:77"], "device='cuda:77' cannot be used"),
        ([*SMALL, "--attention", "flash"], "attention='flash' is not one of sdpa"),
        ([*SMALL, "--image", "x.png"], "is for checkpoints"),
        (["--model", "/no/model"], "model='/no/model' is neither"),
    ],
)
def test_bad_input(arguments, words, tmp_path):
    said = sentence(run(*arguments, "--out", tmp_path))
    assert said.startswith("error: ")
    assert words in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_out_is_tried_before_anything_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenprune.eval.bench.command._subject", lambda *a, **k: pytest.fail("built"))
    file = tmp_path / "file"
    file.touch()
    assert "cannot be written to" in sentence(run(*SMALL, "--out", file))


def test_full_disk_loses_nothing(tmp_path, monkeypatch):
    def full(file, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "replaced", full)
    result = run(*SMALL, "--policy", "random", "--out", tmp_path)
    assert "could not take all results (No space left on device)" in sentence(result)
    assert "| random | 0.25 | 144/576 |" in result.stdout


def test_too_little_memory(tmp_path, monkeypatch):
    def short(cache):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("tokenprune.eval.bench.measure.cached", short)
    assert "batch=1 does not fit into the memory" in sentence(run(*SMALL, "--policy", "random", "--out", tmp_path))


def test_a_later_batch_size_that_fails_loses_nothing(tmp_path, monkeypatch):
    measure, file = Bench.measure, tmp_path / "bench_llava-1.5-7b.json"
    found = []

    def short(self, rows, *others):
        if rows[0].batch == 2:
            found.append(json.loads(file.read_text())["rows"])  # what a run that is killed here leaves
            assert "## Batch 1\n" in file.with_suffix(".md").read_text()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return measure(self, rows, *others)

    monkeypatch.setattr(Bench, "measure", short)
    out = run(*SMALL, "--policy", "random", "--batch", 1, "--batch", 2, "--out", tmp_path, "--plot")
    assert "error: batch=2 does not fit into the memory" in sentence(out)
    result = json.loads(file.read_text())
    assert [(row["policy"], row["batch"]) for row in result["rows"]] == [("dense", 1), ("random", 1)]
    assert found == [result["rows"]]
    assert out.stdout == file.with_suffix(".md").read_text()
    assert "| random | 0.25 | 144/576 |" in out.stdout
    assert "## Batch 2\n\nNot measured: the run ended before.\n" in out.stdout
    assert file.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--scale", "0.06"], "scale=0.05, and here it is 0.06"),
        (["--batch", "2"], "batch=1, and here it is 2"),
        (["--dtype", "bfloat16"], "dtype=float32, and here it is bfloat16"),
        (["--policy", "fastv"], "policy=random, and here it is random fastv"),
        (["--threads", "1"], "threads=default, and here it is 1"),
    ],
)
def test_results_of_other_settings_are_kept(changes, words, earlier, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(Bench, "measure", lambda *a: pytest.fail("measured"))
    before = earlier.read_text()
    try:
        said = sentence(run(*EARLIER, *changes, "--out", earlier.parent))
    finally:
        torch.set_num_threads(threads)
    assert f"holds a bench_llava-1.5-7b.json with {words}: give another --out, or --fresh" in said
    assert len(said.splitlines()) == 1
    assert earlier.read_text() == before


def test_results_of_another_machine_are_kept(earlier, tmp_path):
    other = {**json.loads(earlier.read_text()), "device": "NVIDIA H200"}
    (tmp_path / earlier.name).write_text(json.dumps(other))
    assert "with machine=NVIDIA H200, and here it is" in sentence(run(*EARLIER, "--out", tmp_path))


@pytest.mark.parametrize("foreign", ["{", "[]", "{}", '{"command": 1, "device": ""}'])
def test_fresh_overwrites(foreign, earlier, tmp_path):
    file = tmp_path / earlier.name
    file.write_text(foreign)
    assert "that is no result of tokenprune bench" in sentence(run(*EARLIER, "--out", tmp_path))
    assert file.read_text() == foreign
    if foreign == "{":
        assert run(*EARLIER, "--out", tmp_path, "--fresh").exit_code == 0
        assert run(*EARLIER, "--seed", 1, "--out", tmp_path, "--fresh").exit_code == 0
        assert json.loads(file.read_text())["seed"] == 1
