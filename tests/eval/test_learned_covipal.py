"""The committed module of CoViPAL, and its comparison."""

import json

import pytest

from tokenprune import CoViPAL, Uniform, wrap
from tokenprune.eval import shapes
from tokenprune.eval.learned import covipal as comparison


@pytest.fixture(scope="module")
def result():
    patched = pytest.MonkeyPatch()
    patched.setattr(comparison, "KEEPS", (0.05, 0.02))
    patched.setattr(comparison, "SEEDS", 2)
    yield comparison.measure(shapes.PREDICTOR, 8, 6, 1)
    patched.undo()


def test_the_committed_module_is_better_than_even_places():
    model, processor = shapes.load()
    scenes = list(shapes.held_out(120))
    right = {}
    for policy in (CoViPAL(predictor=shapes.PREDICTOR, keep=0.05), Uniform(keep=0.05)):
        with wrap(model, policy):
            right[policy.name] = sum(found for found, _ in shapes.accuracy(model, processor, scenes, 40).values())
    assert right["covipal"] > right["uniform"] + 6


def test_the_committed_module_says_how_it_was_trained():
    facts = json.loads((shapes.PREDICTOR / "training.json").read_text())
    module = CoViPAL(predictor=shapes.PREDICTOR, keep=0.05).trained
    assert facts["data"] == "shapes"
    assert facts["parameters"] == module.parameters_count < 200_000
    assert facts["seconds"] < 30 * 60
    assert facts["base"] == module.base


def test_every_row_is_asked_everything(result):
    rows = {(cell["row"], cell["keep"]): cell for cell in result["rows"]}
    names = {"covipal", "covipal + fastv", "random", "uniform", "uniform + fastv", "zooprune, norm", "visionzip"}
    names |= {"divprune", "cdpruner"}
    assert rows.keys() == {(name, keep) for name in names for keep in (0.05, 0.02)} | {("dense", 1.0)}
    for (name, keep), cell in rows.items():
        assert [one["asked"] for one in cell["sets"].values()] == [8, 6]
        if "fastv" not in name and keep < 1:
            assert cell["tokens"] == round(256 * keep)
        told = {key for one in cell["sets"].values() for key in one if key.startswith("over ")}
        assert told == ({f"over {one}" for one in names if "covipal" not in one} if "covipal" in name else set())


def test_the_table_names_the_best_without_training(result):
    text = comparison.table(result)
    assert text.count("\n| covipal |") == 2
    assert text.count("over the best without training") == 4
    cells = [cell for cell in result["rows"] if cell["keep"] == 0.05]
    part = next(iter(result["sets"]))
    best = max((cell["sets"][part]["accuracy"], cell["row"]) for cell in cells if not cell["row"].startswith("covipal"))
    covipal = next(cell for cell in cells if cell["row"] == "covipal")["sets"][part]["accuracy"]
    words = comparison._over_best(next(cell for cell in cells if cell["row"] == "covipal"), cells, part)
    assert words.startswith(f"5% {100 * (covipal - best[0]):+.1f} [")
    assert "minutes" in text
    assert "of the dense prefill" in text
