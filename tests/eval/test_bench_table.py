"""What the bench says of its measurements: ratios within a round, and rows below 1 explained."""

import pytest

from tokenprune.eval import specs
from tokenprune.eval.bench.measure import Row, Split, Turn
from tokenprune.eval.bench.table import cells, explained, markdown
from tokenprune.report import Report

DENSE_FIRST, FIRST, IDEAL = [1.0, 2.0, 4.0], [0.5, 1.0, 1.0], [0.25, 0.5, 1.0]
OTHERS = 0.3
FACTS = {
    "shape": "llava-1.5-7b", "scale": 0.1, "checkpoint": "llava-hf/llava-1.5-7b-hf", "weights": "random",
    "parameters": 7e6, "dtype": "float32", "layers": 4, "hidden": 256, "picture": "336 x 336 pixels", "text": 64,
    "new": 4, "attention": "sdpa", "device": "a machine", "rounds": 3, "batches": [1], "command": "tokenprune bench",
}  # fmt: skip


def row(text, first, ideal=(), split=(0.1, 0.2, 0.3), peak=None, **fields):
    made = Row(
        specs.policies(text), 1, report=Report(policy=text, stage="", positions=""), kept=64, total=576, **fields
    )
    made.turns = [Turn(one, OTHERS, peak) for one in first]
    made.splits, made.ideal = [Split(*split)] * 3, list(ideal)
    return made


def rows(**changes):
    dense = row("none", DENSE_FIRST, split=(0.1, 0.0, 0.8))
    return [dense, row("cdpruner(keep=64)", **{"first": FIRST, "ideal": IDEAL, **changes})]


class TestCells:
    def test_ratios_are_of_one_round(self):
        """Medians of rounds would give 2 / 1 and 1 / 0.5."""
        cell = cells(rows(first=[0.5, 2.0, 1.0], ideal=[0.5, 1.0, 0.25]), new=4)[1]
        assert cell["ttft_speedup"] == [2.0, 1.0, 4.0]
        assert cell["overhead"] == [2.0, 1.0, 4.0]
        assert cell["end_to_end_speedup"][0] == pytest.approx(1.3 / 0.8, abs=1e-4)

    def test_times_are_milliseconds(self):
        cell = cells(rows(), new=4)[1]
        assert cell["ttft_ms"] == [1000, 500, 1000]
        assert cell["oracle_ttft_ms"] == [500, 250, 1000]
        assert cell["decode_ms_per_token"] == [100, 100, 100]
        assert cell["end_to_end_ms"] == [1300, 800, 1300]
        assert [cell[name][0] for name in ("vision_ms", "selection_ms", "prefill_ms")] == [100, 200, 300]
        assert cell["seconds"] == {"ttft": FIRST, "others": [OTHERS] * 3, "oracle": IDEAL}

    def test_what_there_is_not_is_null(self):
        cell = cells(rows(ideal=[]), new=1)[1]
        assert (cell["overhead"], cell["oracle_ttft_ms"], cell["decode_ms_per_token"], cell["peak_bytes"]) == (
            None,
        ) * 4

    def test_the_highest_peak(self):
        made = rows()
        made[1].turns = [Turn(1.0, 1.0, peak) for peak in (7, 9, 8)]
        assert cells(made, new=4)[1]["peak_bytes"] == 9

    def test_policy_and_budget(self):
        dense, cell = cells(rows(), new=4)
        assert (dense["policy"], dense["keep"], dense["ttft_speedup"]) == ("dense", "", [1, 1, 1])
        assert (cell["policy"], cell["keep"], cell["kept"], cell["total"]) == ("cdpruner", "64", 64, 576)
        assert cell["configuration"] == "tokenprune.wrap(model, CDPruner(keep=64))"


class TestExplained:
    def test_faster_rows_are_not(self):
        dense, cell = cells(rows(), new=4)
        assert explained(cell, dense) == explained(dense, dense) == ""

    def test_slower_rows_say_where_the_time_goes(self):
        dense, cell = cells(rows(first=[2.0, 4.0, 8.0], split=(0.15, 0.9, 0.2)), new=4)
        said = explained(cell, dense)
        assert said.startswith("cdpruner, keep 64, is at 0.50x to the first token and 0.53x end to end: ")
        assert "the tower takes +50.0 ms, the selection 900.0 ms, the language model -600.0 ms of 800.0 ms" in said
        assert "noise" not in said
        assert "smaller part" not in said

    def test_rows_on_both_sides_are_noise(self):
        dense, cell = cells(rows(first=[0.9, 2.2, 4.2]), new=1)
        assert "within the noise" in explained(cell, dense)

    def test_little_to_win(self):
        made = rows(first=[2.0, 4.0, 8.0])
        made[0].splits = [Split(0.9, 0.0, 0.1)] * 3
        dense, cell = cells(made, new=4)
        assert "the language model is the smaller part" in explained(cell, dense)


class TestMarkdown:
    def test_a_line_for_every_row(self):
        text = markdown({**FACTS, "rows": cells(rows(first=[2.0, 4.0, 8.0]), new=4)})
        assert (
            "| cdpruner | 64 | 64/576 | 100.0 | 200.0 | 300.0 | 4000.0 (2000.0 to 8000.0) | 0.50x (0.50 to 0.50) |"
            in text
        )
        assert "500.0 | 8.00x (8.00 to 8.00) |" in text
        assert "| dense |  | 64/576 | 100.0 |  | 800.0 | 2000.0 (1000.0 to 4000.0) | 1 |  |  |" in text
        assert "is at 0.50x to the first token" in text
        assert "Peak memory is measured on CUDA devices only." in text

    def test_why_there_is_no_oracle(self):
        made = rows(ideal=[], without="tokens are merged between layers")
        text = markdown({**FACTS, "rows": cells(made, new=4)})
        assert "| none |  |" in text
        assert "No oracle of cdpruner: tokens are merged between layers." in text

    def test_peaks(self):
        made = rows(peak=2_500_000_000)
        text = markdown({**FACTS, "rows": cells(made, new=4)})
        assert "| 2.50 |" in text
        assert "CUDA devices only" not in text
        assert "nothing of the oracles" in text
