import json

import pytest
import torch

from tokenprune.report import DecoderShape, Report, UnitReport

LLAVA_7B = DecoderShape(layers=32, hidden=4096, intermediate=11008, query=4096, key_value=4096, dtype_bytes=2)


def unit_report(sample=0, unit=0, kind="image", total=4, kept=2, grid=(1, 2, 2)):
    source = torch.full((total,), -1)
    source[:kept] = torch.arange(kept)
    return UnitReport(
        sample=sample,
        unit=unit,
        kind=kind,
        total=total,
        kept=kept,
        grid=grid,
        indices=torch.arange(kept),
        source=source,
        slots=torch.arange(total),
    )


@pytest.fixture
def report():
    second = [unit_report(sample=1, total=9, kept=3, grid=None), unit_report(sample=1, unit=1, kind="video")]
    return Report(
        policy="divprune",
        stage="projector",
        positions="original",
        units=[unit_report(), *second],
        lengths=[(10, 8), (20, 12)],
        selection_ms=1.234,
        shape=DecoderShape(layers=2, hidden=8, intermediate=16, query=8, key_value=4, dtype_bytes=4),
    )


@pytest.mark.parametrize(
    ("tokens", "tera"),
    # section 1.5 of the specification, and what the CDPruner paper prints
    [
        (2880, 41.65),
        (640, 8.50),
        (320, 4.20),
        (160, 2.09),
        (576, 7.63),
        (192, 2.51),
        (128, 1.67),
        (64, 0.83),
        (32, 0.42),
    ],
)
def test_flops_are_those_of_the_papers(tokens, tera):
    assert LLAVA_7B.flops(tokens) / 1e12 == pytest.approx(tera, abs=0.005)


@pytest.mark.parametrize(("tokens", "mebibytes"), [(2880, 1440), (320, 160)])
def test_kv_bytes_are_those_of_the_papers(tokens, mebibytes):
    assert LLAVA_7B.kv_bytes(tokens) == mebibytes * 2**20


def test_grouped_query_attention_costs_less():
    grouped = DecoderShape(layers=32, hidden=4096, intermediate=11008, query=4096, key_value=1024, dtype_bytes=2)
    assert grouped.kv_bytes(100) * 4 == LLAVA_7B.kv_bytes(100)
    saved = 2 * 32 * 2 * 100 * 4096 * 3072  # key and value projections are a quarter as wide
    assert LLAVA_7B.flops(100) - grouped.flops(100) == saved


def test_totals_and_cost_are_sums_over_samples(report):
    assert (report.kept, report.total) == (7, 17)
    cost = report.cost()
    assert cost["kv_bytes_dense"] == 2 * 2 * 30 * 4 * 4
    assert cost["kv_bytes_pruned"] == 2 * 2 * 20 * 4 * 4
    assert cost["prefill_flops_dense"] == report.shape.flops(10) + report.shape.flops(20)
    assert cost["prefill_flops_pruned"] == report.shape.flops(8) + report.shape.flops(12)


def test_text_shows_every_unit_length_cost_and_time(report):
    lines = str(report).splitlines()
    assert lines[0] == "divprune at stage projector, positions original"
    assert lines[1] == "  sample 0  image 0  kept 2/4 (50.0 %)  grid 1x2x2"
    assert lines[2] == "  sample 1  image 0  kept 3/9 (33.3 %)"
    assert lines[3].startswith("  sample 1  video 1  kept 2/4")
    assert lines[4:6] == ["  sample 0  sequence 10 -> 8", "  sample 1  sequence 20 -> 12"]
    assert "KV cache 1.92 kB -> 1.28 kB" in lines[6]
    assert lines[7] == "  selection 1.23 ms"


def test_a_report_without_visual_tokens_says_so():
    report = Report(policy="none", stage="projector", positions="original")
    assert "no forward with visual tokens yet" in str(report)
    assert (report.kept, report.total, report.cost()) == (0, 0, None)


def test_dict_is_json_and_complete(report):
    data = json.loads(json.dumps(report.to_dict()))
    assert data["units"][1] == {
        "sample": 1,
        "unit": 0,
        "kind": "image",
        "total": 9,
        "kept": 3,
        "grid": None,
        "indices": [0, 1, 2],
    }
    assert data["cost"] == report.cost()
    assert (data["kept"], data["total"], data["selection_ms"]) == (7, 17, 1.234)
