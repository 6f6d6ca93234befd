"""What was measured as numbers for JSON, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import truediv
from typing import Any

from .. import specs
from .measure import DENSE, Row, middle

MB, GB, GIGA = 1e6, 1e9, 1e9


def cells(rows: Sequence[Row], new: int) -> list[dict[str, Any]]:
    """A line of JSON for each row of one batch size, the dense one first. Times are milliseconds, as [median, lowest,
    highest] over the rounds; ratios are taken within a round first. "peak_bytes" is the most that was allocated on the
    device in any round while the row answered (first token and others): the weights, the inputs of the batch and what
    the answer takes. What the oracles were noted to need is not on the device then."""
    return [_cell(row, rows[0], new) for row in rows]


def _cell(row: Row, dense: Row, new: int) -> dict[str, Any]:
    first, dense_first = ([turn.first for turn in one.turns] for one in (row, dense))
    whole, dense_whole = ([turn.first + turn.others for turn in one.turns] for one in (row, dense))
    others = [turn.others / (new - 1) for turn in row.turns] if new > 1 else None
    cost, peaks = row.report.cost() or {}, [turn.peak for turn in row.turns]
    parts = {
        f"{name}_ms": _ms([getattr(split, part) for split in row.splits])
        for name, part in (("vision", "vision"), ("selection", "selection"), ("prefill", "language"))
    }
    return {
        "policy": row.name,
        "configuration": specs.line(row.policies) if row.policies else "",
        "keep": specs.label(row.policies),
        "batch": row.batch,
        "kept": row.kept,
        "total": row.total,
        **parts,
        "ttft_ms": _ms(first),
        "oracle_ttft_ms": _ms(row.ideal) if row.ideal else None,
        "overhead": _ratios(first, row.ideal) if row.ideal else None,
        "oracle_difference": None if row.apart is None else float(f"{row.apart:.3g}"),
        "no_oracle": row.without or None,
        "ttft_speedup": _ratios(dense_first, first),
        "decode_ms_per_token": _ms(others) if others else None,
        "end_to_end_ms": _ms(whole),
        "end_to_end_speedup": _ratios(dense_whole, whole),
        "kv_bytes": row.kv_bytes,
        "peak_bytes": None if None in peaks else max(peaks),
        "flops": {name: value for name, value in cost.items() if "flops" in name} or None,
        "seconds": {
            "ttft": _short(first),
            "others": _short([turn.others for turn in row.turns]),
            "oracle": _short(row.ideal),
        },
    }


def _ms(seconds: Sequence[float]) -> list[float]:
    return [round(1000 * value, 3) for value in middle(seconds)]


def _ratios(some: Sequence[float], others: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in middle(list(map(truediv, some, others)))]


def _short(seconds: Sequence[float]) -> list[float]:
    return [round(value, 6) for value in seconds]


def markdown(result: dict[str, Any]) -> str:
    """Two tables for each batch size, and below them what is to be known about them."""
    lines = [f"# {result['shape']}{_scaled(result)}", ""]
    for batch in result["batches"]:
        rows = [row for row in result["rows"] if row["batch"] == batch]
        if not rows:
            lines += [f"## Batch {batch}", "", "Not measured: the run ended before.", ""]
            continue
        lines += [f"## Batch {batch}", "", *_first(rows), "", *_rest(rows), ""]
        for said in filter(None, (explained(row, rows[0]) for row in rows)):
            lines += [said, ""]
    return "\n".join([*lines, *_notes(result)]) + "\n"


def _scaled(result: dict[str, Any]) -> str:
    return "" if result["scale"] == 1 else f", scale {result['scale']:g}"


def _first(rows: list[dict]) -> Iterator[str]:
    yield "Time to the first token, from pixels:"
    yield ""
    yield (
        "| policy | keep | tokens | vision, ms | selection, ms | language model, ms | TTFT, ms | speed-up | oracle, ms "
        "| overhead |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        times = [f"{row[name][0]:.1f}" for name in ("vision_ms", "selection_ms", "prefill_ms")]
        if row["policy"] == DENSE:
            times[1], ideal = "", ["", ""]
        elif row["overhead"] is None:
            ideal = ["none", ""]
        else:
            ideal = [f"{row['oracle_ttft_ms'][0]:.1f}", _range(row["overhead"], ".2f", "x")]
        took, speed = _range(row["ttft_ms"], ".1f"), _speed(row, "ttft_speedup")
        yield _line(_named(row), row["keep"], f"{row['kept']}/{row['total']}", *times, took, speed, *ideal)


def _rest(rows: list[dict]) -> Iterator[str]:
    yield "The answer:"
    yield ""
    yield (
        "| policy | keep | a further token, ms | end to end, ms | speed-up | KV cache, MB | FLOPs of the prefill "
        "| peak memory, GB |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        step = "" if row["decode_ms_per_token"] is None else _range(row["decode_ms_per_token"], ".2f")
        peak = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / GB:.2f}"
        held = "" if row["kv_bytes"] is None else f"{row['kv_bytes'] / MB:.1f}"
        whole, speed = _range(row["end_to_end_ms"], ".1f"), _speed(row, "end_to_end_speedup")
        yield _line(_named(row), row["keep"], step, whole, speed, held, _flops(row), peak)


def _line(*texts: str) -> str:
    return "| " + " | ".join(texts) + " |"


def _named(row: dict) -> str:
    return row["policy"].replace("|", "\\|")


def _range(values: Sequence[float], form: str, unit: str = "") -> str:
    """Median (lowest to highest)."""
    median, low, high = (f"{value:{form}}" for value in values)
    return f"{median}{unit} ({low} to {high})"


def _speed(row: dict, name: str) -> str:
    return "1" if row["policy"] == DENSE else _range(row[name], ".2f", "x")


def _flops(row: dict) -> str:
    found = row["flops"] or {}
    if "prefill_flops_dense" not in found:
        return ""
    if row["policy"] == DENSE:
        return f"{found['prefill_flops_dense'] / GIGA:,.1f} G"
    share = f"{100 * found['prefill_flops_pruned'] / found['prefill_flops_dense']:.0f} %"
    if "tower_flops_dense" in found:
        share += f", tower {100 * found['tower_flops_pruned'] / found['tower_flops_dense']:.0f} %"
    return share


def explained(row: dict, dense: dict) -> str:
    """Where the time of a row goes that is slower than the dense model; "" of one that is not."""
    slow = [name for name in ("ttft", "end_to_end") if row[f"{name}_speedup"][0] < 1]
    if not slow or row["policy"] == DENSE:
        return ""
    what = {"ttft": "to the first token", "end_to_end": "end to end"}
    said = " and ".join(f"{row[f'{name}_speedup'][0]:.2f}x {what[name]}" for name in slow)
    tower, model = (row[name][0] - dense[name][0] for name in ("vision_ms", "prefill_ms"))
    text = (
        f"{row['policy']}, keep {row['keep']}, is at {said}: the tower takes {tower:+.1f} ms, the selection "
        f"{row['selection_ms'][0]:.1f} ms, the language model {model:+.1f} ms of {dense['prefill_ms'][0]:.1f} ms"
    )
    if row["decode_ms_per_token"]:
        step = row["decode_ms_per_token"][0] - dense["decode_ms_per_token"][0]
        text += f", a further token {step:+.2f} ms"
    if all(row[f"{name}_speedup"][2] >= 1 for name in slow):
        text += "; some rounds were above 1, so this is within the noise"
    if dense["prefill_ms"][0] < dense["vision_ms"][0]:
        text += "; the language model is the smaller part of the dense time, so there is little to win"
    return text + "."


def _notes(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{result['checkpoint']}: {result['weights']} weights, {result['parameters'] / 1e6:,.0f} M parameters in "
        f"{result['dtype']}, {result['layers']} layers of width {result['hidden']}; a picture of {result['picture']} "
        f"and about {result['text']} tokens of text, {result['new']} new tokens, attention {result['attention']}, on "
        f"{result['device']}. Medians (lowest to highest) of {result['rounds']} rounds in which all rows take turns; "
        "speed-up and overhead are ratios within a round."
    )
    yield ""
    yield (
        "Oracle: the same model fed only the tokens that this row keeps, chosen in advance, by calls of its own "
        "modules without hooks; the tower and projector run on all pixels. It gives the logits of the pruned model, "
        "which is checked in every run. Overhead: TTFT / oracle; below 1 it is noise."
    )
    yield ""
    missing = {
        (row["policy"], row["no_oracle"]) for row in result["rows"] if row["no_oracle"] and row["policy"] != DENSE
    }
    for policy, why in sorted(missing):
        yield f"No oracle of {policy}: {why}."
        yield ""
    yield (
        "Vision (with the projector, and what the policy reads there), selection and language model come from runs of "
        "their own, which wait for the device in between; so their sum is not quite the TTFT. FLOPs are estimated, of "
        "the language model's prefill."
    )
    if not any(row["peak_bytes"] is not None for row in result["rows"]):
        yield ""
        yield "Peak memory is measured on CUDA devices only."
    else:
        yield ""
        yield "Peak memory holds the weights, the inputs and what the answer takes; nothing of the oracles."
    yield ""
    yield f"`{result['command']}`"
