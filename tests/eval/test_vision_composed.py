"""Stages together: plans spend what they may, reports say so, runs go on, and what is left is found."""

import json

import numpy as np
import pytest
import torch

from tokenprune import FastV, ToMe, Uniform, wrap
from tokenprune.eval import shapes, vision_composed, vision_plans, vision_weights
from tokenprune.eval.asking import encoded
from tokenprune.eval.inside import TEXT
from tokenprune.eval.shapes.language import processor
from tokenprune.eval.shapes.modeling import build
from tokenprune.eval.shapes.video_model import build as build_video
from tokenprune.eval.shapes.video_model import processor as video_processor
from tokenprune.eval.video_asking import encoded as encoded_clips
from tokenprune.eval.vision_composed import Mixed, priced
from tokenprune.eval.vision_plans import STEPS, Plan, composed_rows

ROWS = composed_rows(2, handed_on=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("composed")
    build(width=24, heads=3, vision_layers=5, text_layers=4).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return shapes.load(folder=folder)


@pytest.fixture(scope="module")
def batch(loaded):
    with torch.inference_mode():
        return next(encoded(*loaded, list(shapes.held_out(4))))


@pytest.fixture(scope="module")
def costs(loaded, batch):
    return priced(loaded[0], batch)


def test_costs_are_of_one_sample(costs):
    assert (costs.towers, costs.visual, costs.tower.total) == (1, 256, 256)
    shape, n = costs.shape, 256 + TEXT
    step = shape.flops(1) + 2 * 2 * shape.layers * shape.query * n  # scores and sums over n cached tokens
    assert costs.behind([(256, 4)]) == shape.flops(n) + STEPS * step
    assert costs.dense == costs.tower.flops()[0] + costs.behind([(256, 4)])


@torch.inference_mode()
@pytest.mark.parametrize("row", ROWS)
def test_every_plan_spends_what_it_may_and_reports_say_so(loaded, batch, costs, row):
    model, processor = loaded
    checked = 0
    for most in (0.75, 0.5, 0.3):
        for plan in ROWS[row][0].plans(most, costs, handed_on=True):
            ways = Mixed(model, processor, {most: plan}, costs)
            with ways.at(most, batch):
                ways.words(ways.encoded(batch, most))
                ways.kept(batch)
            dense, pruned = ways.spent[most]
            assert most - 0.03 < pruned / dense < most + 0.01, str(plan)  # prompts are not quite TEXT words
            checked += 1
    assert checked >= 1


@torch.inference_mode()
def test_restored_patches_are_all_read(loaded, batch, costs):
    seen = {}
    for restore in (False, True):
        plan = Plan(policies=(ToMe(r=32),), restore=restore)
        ways = Mixed(*loaded, {0.5: plan}, costs)
        with ways.at(0.5, batch):
            ways.words(ways.encoded(batch, 0.5))
            seen[restore] = ways.kept(batch)
    assert seen == {False: 96, True: 256}


def test_plans_say_what_runs(costs):
    plan = Plan(policies=(ToMe(r=8), Uniform(keep=64), FastV(layer=1, keep=20)))
    assert str(plan) == "r=8, 64 in front, 20 inside"
    assert str(next(ROWS["sparsevlm, plus"][0].plans(0.8, costs, handed_on=True))).count(", ") == 2


@torch.inference_mode()
def test_clips_are_restored_whatever_is_asked(tmp_path):
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    build_video(build(width=24, heads=3, vision_layers=5, text_layers=4)).save_pretrained(tmp_path)
    video_processor().save_pretrained(tmp_path)
    model, processor = shapes.load_video(folder=tmp_path)
    batch = next(encoded_clips(model, processor, list(shapes.held_out_clips(2))))
    costs = priced(model, batch)
    assert (costs.towers, costs.visual) == (8, 512)
    rows = composed_rows(2, handed_on=False)
    assert set(rows) < {name for name in ROWS if "restored" not in name}
    for row in ("tome", "tome + uniform"):
        plan = next(rows[row][0].plans(0.6, costs, handed_on=False))
        ways = Mixed(model, processor, {0.6: plan}, costs)
        with ways.at(0.6, batch):
            ways.words(ways.encoded(batch, 0.6))
            kept = ways.kept(batch)
        assert (kept < 512) == ("uniform" in row)
        dense, pruned = ways.spent[0.6]
        assert pruned / dense < 0.61


def test_the_plan_that_answers_most_is_chosen_and_the_first_of_equals(costs, monkeypatch):
    scores = iter([0.25, 0.75, 0.5, 0.75, 0.0, 0.0])
    asked = []

    def answers(ways, budgets, batches):
        (budget,) = budgets
        asked.append(ways[0].plans[budget])
        return {budget: (np.array([[next(scores)]]), 0)}

    monkeypatch.setattr(vision_composed, "answers", answers)
    bench, row = vision_composed.benches()["images"], ROWS["tome, restored + uniform"][0]
    found = vision_composed.chosen(row, 0.6, costs, bench, None, None, [])
    assert asked == list(row.plans(0.6, costs, handed_on=True))
    assert found == {"plan": asked[1], "tried": len(asked), "in_training": 0.75}
    assert vision_composed.chosen(ROWS["tome"][0], 0.6, costs, bench, None, None, [])["tried"] == 1
    assert vision_composed.chosen(ROWS["uniform"][0], 0.1, costs, bench, None, None, []) is None


@pytest.fixture
def command(folder, tmp_path, monkeypatch):
    """Runs the command with some options on the tiny model and gives back what it wrote."""
    load = shapes.load
    monkeypatch.setattr(shapes, "load", lambda: load(folder=folder), raising=False)
    monkeypatch.setattr(shapes, "CHECKPOINT", folder, raising=False)
    monkeypatch.setattr(vision_composed, "BUDGETS", (0.8, 0.6))
    monkeypatch.setattr(vision_plans, "MERGES", (16, 40))
    always = ["vision_composed", "--model", "images", "--samples", "5", "--tuning", "3", "--seeds", "2"]

    def run(*options):
        monkeypatch.setattr("sys.argv", [*always, "--out", str(tmp_path), *options])
        vision_composed.main()
        return json.loads((tmp_path / "vision_composed_images.json").read_text())

    return run


def test_the_command_writes_json_tables_and_a_plot_and_goes_on(command, tmp_path, monkeypatch, capsys):
    some = ("tome", "random-blocks", "uniform", "tome, restored + uniform")
    options = [word for name in some for word in ("--row", name)]
    first = command(*options)
    cells = {(cell["row"], cell["keep"]): cell for cell in first["rows"]}
    assert {row for row, _ in cells} == {"dense", *some}
    both = cells["tome, restored + uniform", 0.6]
    assert both["tried"] == 2
    assert both["best_alone"] in ("tome", "uniform")
    assert "over_best" in both["sets"]["scenes"]
    assert "over_random" in cells["tome", 0.6]["sets"]["scenes"]
    assert "over_random" not in cells["uniform", 0.8]["sets"]["scenes"]
    assert len(cells["random-blocks", 0.6]["right"]) == 2
    assert all(cell["flops"] < cell["keep"] + 0.01 for cell in cells.values())
    text = (tmp_path / "vision_composed_images.md").read_text()
    assert "| scenes | 80% | 60% |" in text
    assert f"| tome, restored + uniform: {both['plan']} | 60% |" in text
    assert (tmp_path / "vision_accuracy.png").stat().st_size > 10_000

    monkeypatch.setattr(vision_composed, "answers", None)
    assert command(*options) == first
    assert command("--plot-only") == first


@torch.inference_mode()
def test_what_is_left_in_the_tower_is_what_the_language_model_is_given(loaded, batch):
    model, _ = loaded
    read, decoder = [], model.model.language_model
    with decoder.register_forward_pre_hook(lambda m, a, k: read.append(k["inputs_embeds"].shape[1]), with_kwargs=True):
        words, kept = vision_weights.kept_patches(model, batch, ToMe(r=40))
    assert read == [batch.inputs["input_ids"].shape[1]], "all patches are restored where the words come from"
    assert [int(one.sizes.sum()) for one in kept] == [256] * 4
    assert {len(one.indices) for one in kept} == {len(one.rows) for one in kept} == {56}
    with wrap(model, ToMe(r=40), restore=False) as handle:
        features = model.get_image_features(pixel_values=batch.pixels).pooler_output
        model(**batch.given(), logits_to_keep=1)
        left = [unit.indices for unit in handle.report().units]
    for one, indices, row in zip(kept, left, features, strict=True):
        assert torch.equal(one.indices, indices)
        torch.testing.assert_close(one.rows, row[indices])
    assert words.shape == (4,)


def test_the_table_of_weights(folder, monkeypatch):
    load = shapes.load
    monkeypatch.setattr(shapes, "load", lambda: load(folder=folder), raising=False)
    monkeypatch.setattr(vision_weights, "MERGES", (40,))
    result = vision_weights.measure(3, vision_composed.Console(stderr=True))
    (row,) = result["rows"]
    assert row["kept"] == 56
    assert "| those left | " in vision_weights.table(result)
