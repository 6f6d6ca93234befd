"""The short scripts, and the notebook, whose saved outputs must be those it prints."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from tokenprune import registry

DEMOS = Path(__file__).parents[2] / "demos"
WHOLE = re.compile(r"\d+")


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a script as a user does, in an empty folder; answers what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_POLICIES", dict(registry._POLICIES))

    def run(name, *arguments, status=0):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(DEMOS / name), run_name="__main__")
            found = 0
        except SystemExit as end:
            found = end.code or 0
        said = capsys.readouterr()
        assert found == status, said.err
        return said.out if status == 0 else said.err

    return run


def test_quickstart_answers_with_ever_fewer_tokens(run):
    lines = run("quickstart.py").splitlines()
    assert [re.search(r"by (\d+) of 256", line).group(1) for line in lines] == ["256", "64", "13"]
    assert all(line.startswith("how many circles are there? zero") for line in lines)
    assert len((DEMOS / "quickstart.py").read_text().splitlines()) < 20


def test_video_answers_and_draws(run, tmp_path):
    lines = run("video.py").splitlines()
    assert lines == [
        "which way does the purple circle move? up, by 512 of 512 visual tokens",
        "which way does the purple circle move? up, by 128 of 512 visual tokens",
        "wrote video.png",
    ]
    with Image.open(tmp_path / "video.png") as drawn:
        assert drawn.width > 1000


def test_video_says_what_is_wrong_in_one_sentence(run):
    assert run("video.py", "--video", "no.mp4", status=2).count("\n") == 1
    assert "is not registered" in run("video.py", "--policy", "vidcom3", status=2)


def test_stages_together_cost_less_than_each_alone(run):
    rows = [re.findall(r"[\w ]*\w%?", line) for line in run("compose_stages.py").splitlines() if line.startswith("│")]
    shares = {row[0].strip(): [int(cell.strip().rstrip("%")) for cell in row[1:]] for row in rows}
    assert list(shares) == ["dense", "vision tower", "projector", "language model", "all three"]
    assert shares["dense"][1:] == [100] * 4
    for alone in ("vision tower", "projector", "language model"):
        assert all(both <= one for both, one in zip(shares["all three"][1:], shares[alone][1:], strict=True))
    assert shares["dense"][0] >= 60


def test_a_policy_of_ones_own_is_used(run):
    found = dict(re.findall(r"^(\w+): (\d+) of 64", run("custom_policy.py"), re.M))
    assert list(found) == ["strongest", "uniform", "random"]
    assert min(map(int, found.values())) > 30


def test_requests_are_served_in_batches_of_their_kind(run):
    printed = run("serve_many.py", "--count", 9, "--size", 2, "--rounds", 1)
    assert re.search(r"^exact: 3 of 3 right$", printed, re.M)
    assert re.search(r"^pruned: \d of 6 right$", printed, re.M)
    assert "56 of 512 visual tokens in 2 rows" in printed
    assert re.search(r"^[\d.]+ times as many requests a second", printed, re.M)


def test_the_notebook_prints_what_is_saved_in_it(capsys):
    """Counts may differ by two answers: other processors round otherwise."""
    cells = [one for one in json.loads((DEMOS / "tour.ipynb").read_text())["cells"] if one["cell_type"] == "code"]
    assert len(cells) >= 5
    scope = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), scope)
        saved = "".join("".join(one["text"]) for one in cell["outputs"] if one["output_type"] == "stream")
        printed = capsys.readouterr().out
        assert WHOLE.sub("#", printed) == WHOLE.sub("#", saved)
        assert [int(n) for n in WHOLE.findall(printed)] == pytest.approx([int(n) for n in WHOLE.findall(saved)], abs=2)


def test_the_notebook_shows_pictures_without_being_run():
    cells = json.loads((DEMOS / "tour.ipynb").read_text())["cells"]
    shown = [one for cell in cells for one in cell.get("outputs", []) if "image/png" in one.get("data", {})]
    assert len(shown) == 3
