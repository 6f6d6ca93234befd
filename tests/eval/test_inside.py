import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from tokenprune import DecoderShape
from tokenprune.eval import accuracy, events, pareto_inside, shapes, trends, weights_inside
from tokenprune.eval.asking import Stacked, encoded, way
from tokenprune.eval.inside import CONTROLS, FRONTS, TEXT, inside_rows, with_schedule
from tokenprune.eval.rows import configurations
from tokenprune.eval.shapes.language import processor
from tokenprune.eval.shapes.modeling import build

SHAPE = DecoderShape(layers=4, hidden=128, intermediate=384, query=128, key_value=128, dtype_bytes=4)
KEEPS = (0.5, 0.25, 0.11, 0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random copy of the embedded model with all of its decoder's layers."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("deep")
    build(width=24, heads=3, vision_layers=1, text_layers=4).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return shapes.load(folder=folder)


@pytest.fixture(scope="module")
def batch(loaded):
    samples = list(shapes.held_out(6))
    with torch.inference_mode():
        return next(encoded(*loaded, samples))


ROWS = inside_rows(2)


def stretches(counts, drops):
    return [(n, end - start) for n, (start, end) in zip(counts, pairwise((0, *drops, 4)), strict=True)]


@pytest.mark.parametrize("row", ROWS)
def test_counts_cost_no_more_than_one_in_front_and_hardly_less(row):
    one = ROWS[row][0]
    for keep in one.keeps(KEEPS):
        alone, counts = round(keep * 256), one.counts(keep, SHAPE, 256)
        assert list(counts) == sorted(counts, reverse=True)
        assert counts[0] == (256 if one.front is None else 2 * alone)

        def cost(some, one=one):
            if one.front is None:
                return sum(n * layers for n, layers in stretches(some, one.drops)) / 4
            return sum(SHAPE.flops(n + TEXT, layers) for n, layers in stretches(some, one.drops))

        target = alone if one.front is None else SHAPE.flops(alone + TEXT)
        more = (counts[0], *(n + 1 for n in counts[1:]))
        assert cost(counts) <= target < cost(more)


def test_rows_that_drop_equally_often_differ_in_nothing_but_scores_and_positions():
    for front in ("", *FRONTS):
        for (drops, positions), (control, _) in CONTROLS.items():
            some = {
                name: one
                for name, (one, *_) in ROWS.items()
                if (one.drops, one.policy.positions, name.rpartition(" + ")[0]) == (drops, positions, front)
            }
            assert len(some) >= 2
            assert len({one.counts(one.keeps(KEEPS)[0], SHAPE, 256) for one in some.values()}) == 1
            expected = f"{front} + {control}" if front else control
            assert {name: one.against.get("over_random") for name, one in some.items()} == {
                name: None if name == expected else expected for name in some
            }


def test_what_rows_are_compared_with_is_in_the_table():
    rows = configurations(None, 2)
    for several in ROWS.values():
        for other in several[0].against.values():
            assert other in rows
    for name, one in FRONTS.items():
        assert rows[name] == [one]
    assert [len(several) for name, several in ROWS.items() if "random-layers" in name] == [2] * 12


@pytest.mark.parametrize("row", [name for name in ROWS if " + " not in name])
def test_a_schedule_holds_for_every_policy(row):
    one = ROWS[row][0]
    counts = tuple(range(40, 40 - len(one.drops), -1))
    policy = with_schedule(one.policy, one.drops, counts)
    happened = policy.events(4)
    assert tuple(event.drop for event in happened) == one.drops
    assert tuple(policy.count(event, 256) for event in happened) == counts


@torch.inference_mode()
@pytest.mark.parametrize("row", ["pyramiddrop", "uniform + himap", "zooprune, norm + debiased(fastv)"])
def test_a_row_does_what_it_says(loaded, batch, row):
    ways = way(*loaded, ROWS[row][0])
    assert type(ways) is Stacked
    keep = ways.inside.keeps(KEEPS)[0]
    with ways.at(keep, batch):
        ways.words(ways.encoded(batch, keep))
        tokens, report = ways.kept(batch), ways.report()
    counts, drops = ways.facts(keep)["counts"], ways.inside.drops
    assert [event.layer for event in report.events] == list(drops)
    assert [event.kept for event in report.events] == [6 * n for n in counts[1:]]
    assert {dense - pruned for dense, pruned in report.lengths} == {256 - counts[0]}
    assert tokens == sum(n * layers for n, layers in stretches(counts, drops)) / 4
    texts = [int(mask.sum()) - 256 for mask in batch.inputs["attention_mask"]]
    dense, alone = (sum(ways.shape.flops(n + text) for text in texts) for n in (256, round(keep * 256)))
    pruned = sum(ways.shape.flops(n + text, m) for text in texts for n, m in stretches(counts, drops))
    assert ways.facts(keep)["flops"] == pytest.approx(pruned / dense, abs=1e-5)
    assert ways.facts(keep)["flops_in_front"] == pytest.approx(alone / dense, abs=1e-5)


@torch.inference_mode()
def test_rows_inside_are_asked_the_first_of_easy_vqa_only_and_compared_on_these(loaded):
    scenes = list(shapes.held_out(3))
    sets = {"scenes": scenes, accuracy.EASY: [scenes[i % 3] for i in range(120)]}
    questions = accuracy.Questions(*loaded, sets, lambda n: None)
    assert [len(batch.samples) for batch in questions.batches] == [3, 50, 50, 20]
    assert [len(batch.samples) for batch in questions.first(100)] == [3, 50, 50]
    rng = np.random.default_rng(0)
    mine, front, control = (rng.random((1, n)) < 0.5 for n in (103, 123, 103))
    cells = [
        {"row": "uniform", "keep": 0.5, "right": accuracy.packed(front)},
        {"row": "fastv", "keep": 0.5, "right": accuracy.packed(mine), "asked": 103},
        {"row": "control", "keep": 0.5, "right": accuracy.packed(control), "asked": 103},
    ]
    cells[1]["against"] = {"over_front": "uniform", "over_random": "control"}
    cells[2]["against"] = {"over_front": "uniform"}
    accuracy.compare({"rows": cells}, questions)
    figure = cells[1]["sets"][accuracy.EASY]
    assert figure["asked"] == 100
    assert figure["over_front"]["mean"] == pytest.approx(mine[:, 3:].mean() - front[:, 3:103].mean(), abs=1e-5)
    assert figure["over_random"]["mean"] == pytest.approx(mine[:, 3:].mean() - control[:, 3:].mean(), abs=1e-5)
    assert cells[0]["sets"][accuracy.EASY]["asked"] == 120
    assert cells[0]["few"][accuracy.EASY]["correct"] == front[:, 3:103].sum()


def test_the_command_writes_rows_inside(folder, tmp_path, monkeypatch):
    load = shapes.load
    monkeypatch.setattr(accuracy.shapes, "load", lambda: load(folder=folder), raising=False)
    monkeypatch.setattr(accuracy.shapes, "CHECKPOINT", folder, raising=False)
    monkeypatch.setattr(accuracy, "KEEPS", (0.5, 0.05))
    names = ("uniform", "zooprune", "random", "fastv", "himap", "random-layers")
    options = ["--scenes", "4", "--easy", "0", "--seeds", "2", "--repeats", "1", "--no-clip", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["accuracy", *options, *(word for name in names for word in ("--policy", name))])
    accuracy.main()
    first = json.loads((tmp_path / "accuracy.json").read_text())
    inside = {(cell["row"], cell["keep"]): cell for cell in first["rows"] if "against" in cell}
    assert {keep for row, keep in inside if " + " not in row} == {0.5}
    assert {keep for row, keep in inside if " + " in row} == {0.05}
    cell = inside["uniform + fastv", 0.05]
    assert (cell["counts"][0], cell["asked"], cell["policy"]) == (26, 4, "fastv")
    assert set(cell["sets"]["scenes"]) >= {"over_random", "over_front"}
    markdown = (tmp_path / "accuracy.md").read_text()
    assert "| fastv | 256, 85 | 128 | " in markdown
    assert "| uniform alone | " in markdown
    assert (tmp_path / "accuracy-inside.png").stat().st_size > 10_000

    monkeypatch.setattr(accuracy, "answers", None)
    accuracy.main()
    assert json.loads((tmp_path / "accuracy.json").read_text()) == first


def test_verdicts_are_told_apart():
    def over(low, high):
        return {"mean": 0, "low": low, "high": high}

    figure = {"accuracy": 0.5, "low": 0.4, "high": 0.6}
    assert pareto_inside._text(figure) == "50.0 ± 10.0"
    assert pareto_inside._text({**figure, "over_random": over(0.1, 0.2), "over_front": over(-0.2, -0.1)}).endswith(
        " + ↓"
    )
    assert pareto_inside._text({**figure, "over_random": over(-0.2, -0.1), "over_front": over(0.1, 0.2)}).endswith(
        " − ↑"
    )


@torch.inference_mode()
@pytest.mark.parametrize("row", ["fastv", "uniform + adaptinfer", "uniform + pyramiddrop"])
def test_tokens_that_leave_by_hand_give_the_logits_of_the_hooks(row):
    model, processor = shapes.load()
    batch = next(encoded(model, processor, list(shapes.held_out(5))))
    one = ROWS[row][0]
    keep = one.keeps(KEEPS)[0]
    policies, ways = one.policies(keep, SHAPE, 256), way(model, processor, one)
    with ways.at(keep, batch):
        expected = model(**ways.encoded(batch, keep), logits_to_keep=1).logits[:, -1]
    left = dict(weights_inside.kept_places(model, processor, policies, batch))
    assert list(left) == [0, *one.drops]
    assert tuple(places.shape[1] for places in left.values()) == one.counts(keep, SHAPE, 256)
    options = {"weighted": False, "compact": policies[-1].positions == "compact"}
    assert options["compact"] is (row != "fastv")
    by_hand = torch.stack([weights_inside.last_logits(model, batch, i, left, **options) for i in range(5)])
    torch.testing.assert_close(by_hand, expected, atol=2e-4, rtol=1e-4)


@torch.inference_mode()
def test_tokens_weigh_their_sizes_from_the_layer_that_others_leave(monkeypatch):
    model, processor = shapes.load()
    batch = next(encoded(model, processor, list(shapes.held_out(1))))
    left, seen = {0: torch.arange(256)[None], 2: torch.arange(0, 256, 4)[None]}, []

    def logits(sizes, *, weighted):
        answer = lambda x, kept: seen.append(len(kept)) or torch.full((len(kept),), sizes)  # noqa: E731
        monkeypatch.setattr(weights_inside, "cluster_sizes", answer)
        return weights_inside.last_logits(model, batch, 0, left, weighted=weighted, compact=False)

    plain = logits(1.0, weighted=False)
    assert seen == []
    torch.testing.assert_close(logits(1.0, weighted=True), plain)
    assert seen == [256, 64]
    assert (logits(3.0, weighted=True) - plain).abs().max() > 1e-2


def test_every_scorer_is_looked_at_in_the_layer_it_is_named_by():
    for name, policy in trends.scorers().items():
        assert policy.events(4)[0].score == int(name[-1]), name


def test_trends_measured_are_those_of_training_scenes(loaded, monkeypatch):
    asked, held_out = [], shapes.held_out
    monkeypatch.setattr(trends.shapes, "load", lambda: loaded, raising=False)
    monkeypatch.setattr(trends.shapes, "held_out", lambda *a, **k: asked.append(k) or held_out(*a, **k), raising=False)
    with pytest.warns(UserWarning, match="a trend fitted to 4 units"):
        found = trends.measure(4)
    assert asked == [{"split": "train"}]
    assert set(found) == set(trends.scorers())
    assert found["fastv, layer 0"]["facts"]["samples"] == 4


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_events_are_timed_beside_dense(tmp_path):
    result = events.measure(1, {"tiny": (32, 8, 64, 2)})
    assert {row["policy"] for row in result["rows"]} == set(events.policies())
    for row in result["rows"]:
        assert 0 < row["flops"] < 1
        assert row["events"] > 0
        assert [event["layer"] for event in row["by_event"]] == [
            e.drop for e in events.policies()[row["policy"]].events(8)
        ]
    text = events.table(result)
    assert text.startswith("| events · prefill · FLOPs, % of dense | tiny |")
    row = result["rows"][0]
    row["by_event"] = [{**row["by_event"][0], "at_a_loss": 1.0}]
    assert "(1 of 1 at a loss)" in events.table(result).splitlines()[2]
