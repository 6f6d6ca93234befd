"""What results of `tokenprune bench` say to the goals about time to first token and decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..bench.measure import DENSE
from .goals import Goal

OVERHEAD = {"gpu": Goal("value", "<=", 1.05, "x the oracle"), "cpu": Goal("value", "<=", 1.10, "x the oracle")}
NEXT, KEPT = "llava-next-7b", 320
GAIN, MERGED = Goal("value", ">=", 4, "x dense"), Goal("value", ">=", 5, "x dense")
DECODE = Goal("value", ">=", 1, "x dense")


def figures(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """For every batch size: the worst overhead over the oracle, how many policies miss the goal, the best gain of a
    LLaVA-NeXT with at most 320 tokens, with and without a merge in the tower, and the slowest decoding. All are medians
    over rounds of the row they are of."""
    goal = OVERHEAD["gpu" if "cuda" in result["versions"] else "cpu"]
    for batch in dict.fromkeys(row["batch"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["batch"] == batch]
        pruned, dense = [row for row in rows if row["policy"] != DENSE], rows[0]
        about = {"shape": result["shape"], "batch": batch}
        overheads = [(row["overhead"][0], row) for row in pruned if row["overhead"]]
        if overheads:
            value, row = max(overheads, key=_first)
            missed = sum(value > goal.limit for value, _ in overheads)
            yield _figure(
                {**about, "figure": "largest overhead", "missed": missed, "of": len(overheads)}, value, row, goal
            )
        if result["shape"] == NEXT and result["scale"] == 1:
            few = [(row["ttft_speedup"][0], row) for row in pruned if _budget(row) <= KEPT]
            for name, limit, some in (
                ("best TTFT gain", GAIN, [one for one in few if "tome" not in one[1]["policy"]]),
                (
                    "best TTFT gain with a merge in the tower",
                    MERGED,
                    [one for one in few if "tome" in one[1]["policy"]],
                ),
            ):
                if some:
                    yield _figure({**about, "figure": name}, *max(some, key=_first), limit)
        if dense["decode_ms_per_token"]:
            rate = dense["decode_ms_per_token"][0]
            steps = [(rate / row["decode_ms_per_token"][0], row) for row in pruned]
            if steps:
                yield _figure({**about, "figure": "slowest decoding"}, *min(steps, key=_first), DECODE)


def _budget(row: dict[str, Any]) -> float:
    """Tokens that the last policy was to keep, separators not counted; infinite for a share."""
    last = row["keep"].split(" + ")[-1]
    return int(last) if last.isdigit() else float("inf")


def _first(pair: tuple[float, dict]) -> float:
    return pair[0]


def _figure(about: dict[str, Any], value: float, row: dict[str, Any], goal: Goal) -> dict[str, Any]:
    found = {**about, "policy": row["policy"], "value": round(value, 3)}
    return found | goal.of(found)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| shape | batch | figure | measured | policy | goal |", "|---|---:|---|---:|---|---|"]
    for one in found:
        some = f" ({one['missed']} of {one['of']} policies miss)" if one.get("missed") else ""
        lines.append(
            f"| {one['shape']} | {one['batch']} | {one['figure']} | {one['value']:.2f} | {one['policy']} | "
            f"{one['goal']}: {'met' if one['met'] else 'missed'}{some} |"
        )
    return "\n".join(lines) + "\n"
