"""Times of `tokenprune bench` beside each other, and beside the accuracy of runs with the same policy and budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...errors import InputError, InvalidArgumentError, TokenPruneError, nearest
from .. import specs
from ..pareto import frontier
from .measures import Comparison, Task
from .runs import DENSE, Run, loaded
from .tables import grid, heading, value, visual

TIMES = {"ttft": "TTFT", "end_to_end": "end to end"}
BENCH_DENSE = "dense"
NEEDED = {"policy": str, "batch": int, "kept": (int, float), "total": (int, float)}
FACTS = ("shape", "scale", "dtype", "attention", "new", "device")


@dataclass(frozen=True)
class Bench:
    """What one `tokenprune bench` wrote."""

    file: Path
    facts: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def said(self) -> str:
        """Shape, dtype, device and versions."""
        own = [f"{name} {self.facts[name]}" for name in FACTS if self.facts.get(name) is not None]
        versions = ", ".join(f"{name} {one}" for name, one in (self.facts.get("versions") or {}).items())
        return f"{self.file}: " + ", ".join(own) + (f" ({versions})" if versions else "")


@dataclass(frozen=True)
class Point:
    """A run and the line of a bench with its policy and budget; values of the tasks, and those on their fronts.

    Attributes:
        speed: dense time / its time.
        overhead: its time to the first token / the oracle's.
    """

    index: int
    run: Run
    row: dict[str, Any]
    speed: float
    overhead: float | None
    values: list[float]
    front: list[bool]


def read(file: Path) -> Bench:
    """A JSON of `tokenprune bench`.

    Raises:
        InputError: it is something else.
    """
    facts = loaded(file)
    rows = facts.get("rows")
    if not isinstance(rows, list) or not rows or "device" not in facts:
        raise InputError(f"{str(file)!r} is no JSON of `tokenprune bench`: it has no device or no rows.")
    for number, row in enumerate(rows, start=1):
        wrong = [
            name for name, kind in NEEDED.items() if not isinstance(row, dict) or not isinstance(row.get(name), kind)
        ]
        wrong += [f"{name}_speedup" for name in TIMES if not wrong and not _number(row, f"{name}_speedup")]
        if wrong:
            raise InputError(
                f"{str(file)!r} is no JSON of `tokenprune bench`: row {number} has no usable {' and '.join(wrong)}."
            )
    names = [(_row_key(row), row["batch"]) for row in rows]
    for row, name in zip(rows, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"{str(file)!r} holds {_label(row, batch=True)} twice: write it again.")
    return Bench(file, {name: one for name, one in facts.items() if name != "rows"}, rows)


def key(policy: str) -> str:
    """Of a run's policy text: the Python line that a bench keeps, or the text of what is not registered here."""
    made = _made(policy)
    return policy if made is None else specs.line(made) if made else BENCH_DENSE


def bare(policy: str) -> str:
    """The text without budgets: what belongs on one line of a plot."""
    made = _made(policy)
    if not made:
        return policy
    return specs.text([replace(one, keep=None) if "keep" in {f.name for f in fields(one)} else one for one in made])


def _made(policy: str) -> list[Any] | None:
    try:
        return specs.policies(policy)
    except TokenPruneError:
        return None


def _row_key(row: dict[str, Any]) -> str:
    return BENCH_DENSE if row["policy"] in (BENCH_DENSE, DENSE) else row.get("configuration") or key(row["policy"])


def _number(row: dict[str, Any], name: str) -> float | None:
    """Of [median, lowest, highest], or a number alone; None without."""
    one = row.get(name)
    one = one[0] if isinstance(one, list) and one else one
    usable = isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one) and one > 0
    return float(one) if usable else None


def beside(benches: Sequence[Bench]) -> tuple[str, list[str]]:
    """Markdown of the rows that all benches have, a table per kind of time; and sentences about the others."""
    if len(benches) == 1:
        return "", []
    own = [{(_row_key(row), row["batch"]): row for row in bench.rows} for bench in benches]
    common = [name for name in own[0] if all(name in rows for rows in own)]
    notes = [
        f"Only in {bench.file}: {', '.join(_label(rows[name], batch=True) for name in rows if name not in common)}."
        for bench, rows in zip(benches, own, strict=True)
        if len(rows) > len(common)
    ]
    if not common:
        raise InputError(
            f"{' and '.join(str(one.file) for one in benches)} have no policy, budget and batch in common."
        )
    parts = [
        "\n".join([f"### {what}", "", *_beside([[rows[name] for rows in own] for name in common], time)])
        for time, what in TIMES.items()
    ]
    return "\n\n".join([_named(benches), *parts]), notes


def _named(benches: Sequence[Bench]) -> str:
    said = "\n".join(f"- {letter}: {bench.said}" for letter, bench in zip(_letters(benches), benches, strict=True))
    return (
        f"{said}\n\nMedians. Speed-up: over the dense model of the same file. Overhead: time to the first token, as a "
        "multiple of an oracle's that knows the tokens in advance. x / A: time as a multiple of A's."
    )


def _letters(benches: Sequence[Bench]) -> list[str]:
    return [f"{chr(ord('A') + i)}" if len(benches) <= 26 else str(i + 1) for i in range(len(benches))]


def _beside(lines: list[list[dict[str, Any]]], time: str) -> list[str]:
    letters = _letters(lines[0])
    columns = ["tokens", "ms", "speed-up", *(["overhead"] if time == "ttft" else [])]
    heads = ["policy", "keep", "batch", *(f"{letter}: {one}" for letter in letters for one in columns)]
    heads += [f"{letter} / A" for letter in letters[1:]]
    texts = []
    for rows in lines:
        took = [_number(row, f"{time}_ms") for row in rows]
        text = [rows[0]["policy"], str(rows[0].get("keep") or ""), str(rows[0]["batch"])]
        for row, ms in zip(rows, took, strict=True):
            speed = f"{_number(row, f'{time}_speedup'):.2f}x"
            text += [visual((row["kept"], row["total"])), _shown(ms, ".1f"), speed]
            text += [_shown(_number(row, "overhead"), ".2f", "x")] if time == "ttft" else []
        text += [_shown(ms / took[0] if ms and took[0] else None, ".2f", "x") for ms in took[1:]]
        texts.append(text)
    return grid(heads, texts)


def _shown(number: float | None, form: str, unit: str = "") -> str:
    return "" if number is None else f"{number:{form}}{unit}"


def _label(row: dict[str, Any], *, batch: bool = False) -> str:
    budget = f" keep {row['keep']}" if row.get("keep") else ""
    return f"{row['policy']}{budget}" + (f" at batch {row['batch']}" if batch else "")


def chosen(bench: Bench, batch: int | None) -> int:
    """The batch size asked for, or the least.

    Raises:
        InvalidArgumentError: the bench has none of this size.
    """
    known = sorted({row["batch"] for row in bench.rows})
    if batch is not None and batch not in known:
        raise InvalidArgumentError(f"batch={batch} is not in {str(bench.file)!r}, which has {known}: give one of them.")
    return known[0] if batch is None else batch


def joined(comparison: Comparison, bench: Bench, batch: int, time: str) -> tuple[list[Point], list[str]]:
    """Runs with their lines of the bench, fastest first, and sentences about those without.

    Raises:
        InvalidArgumentError: no such kind of time.
        InputError: no run is in the bench.
    """
    if time not in TIMES:
        raise InvalidArgumentError(f"time={time!r} is not one of {', '.join(TIMES)}{nearest(time, TIMES)}.")
    rows = {_row_key(row): row for row in bench.rows if row["batch"] == batch}
    lines = list(zip(*(task.rows for task in comparison.tasks), strict=True))
    points, alone, used, notes = [], [], set(), []
    for i, line in enumerate(lines):
        name = key(line[0].run.policy)
        if name not in rows:
            alone.append(line[0].name)
            continue
        used.add(name)
        row, speed = rows[name], _number(rows[name], f"{time}_speedup")
        overhead = _number(row, "overhead")
        points.append(Point(i, line[0].run, row, speed, overhead, [one.value for one in line], []))
        notes += _other_share(line[0].name, line[0].visual, row)
    if not points:
        raise InputError(f"no run has the policy and budget of a line of {str(bench.file)!r} at batch {batch}.")
    fronts = [_front(task, [(one.speed, one.values[i]) for one in points]) for i, task in enumerate(comparison.tasks)]
    points = [replace(one, front=[front[i] for front in fronts]) for i, one in enumerate(points)]
    if alone:
        notes.append(f"Runs that {bench.file} has no line for: {', '.join(alone)}.")
    if unused := [_label(row) for name, row in rows.items() if name not in used]:
        notes.append(f"Lines of {bench.file} without a run: {', '.join(unused)}.")
    if others := sorted({row["batch"] for row in bench.rows} - {batch}):
        notes.append(f"{bench.file} has batch {', '.join(map(str, others))}, too: --batch.")
    return sorted(points, key=lambda one: (-one.speed, one.index)), notes


def _other_share(name: str, counts: tuple[float, float] | None, row: dict[str, Any]) -> Iterator[str]:
    """A budget in tokens is another share of a picture of another size."""
    if counts and abs(counts[0] / counts[1] - row["kept"] / row["total"]) > 0.02:
        own, other = counts[0] / counts[1], row["kept"] / row["total"]
        yield f"{name} keeps {own:.0%} of the visual tokens in its run, {other:.0%} in the bench: not the same point."


def _front(task: Task, points: list[tuple[float, float]]) -> list[bool]:
    """Which of (speed, value) none beats in both."""
    sign = -1 if task.falling else 1
    places = [(1 / speed, sign * one) for speed, one in points]
    best = set(frontier([one for one in places if not math.isnan(one[1])]))
    return [one in best for one in places]


def table(comparison: Comparison, points: Sequence[Point], bench: Bench, batch: int, time: str) -> str:
    """Markdown: a line per run, fastest first, its metric in bold where it is on the task's front."""
    tasks = [(i, task) for i, task in enumerate(comparison.tasks) if task.metric]
    heads = ["policy", "keep", "tokens, run", "tokens, bench", f"{TIMES[time]} speed-up", "TTFT overhead"]
    heads += [f"{task.name}: {heading(task)}" for _, task in tasks]
    lines = []
    for one in points:
        row = comparison.tasks[0].rows[one.index]
        texts = [row.name, row.run.keep, visual(row.visual), visual((one.row["kept"], one.row["total"]))]
        texts += [f"{one.speed:.2f}x", _shown(one.overhead, ".2f", "x")]
        for i, task in tasks:
            text = value(task, one.values[i])
            texts.append(f"**{text}**" if one.front[i] else text)
        lines.append(texts)
    note = (
        f"**Bold**: on the front, none here is both faster and better. Times at batch {batch}, {bench.said}. They and "
        "the metrics need not come from the same model."
    )
    return "\n".join([f"### Accuracy and {TIMES[time]}, batch {batch}", "", *grid(heads, lines), "", note])


def data(points: Sequence[Point], comparison: Comparison, bench: Bench, batch: int, time: str) -> dict[str, Any]:
    """For JSON."""
    names = [task.name for task in comparison.tasks]
    return {"bench": str(bench.file), **bench.facts, "batch": batch, "time": time, "points": [
        {
            "policy": one.run.policy, "keep": one.run.keep, "folder": str(one.run.folder), "speedup": one.speed,
            "overhead": one.overhead,
            "values": {name: None if math.isnan(v) else v for name, v in zip(names, one.values, strict=True)},
            "front": [name for name, best in zip(names, one.front, strict=True) if best],
        }
        for one in points
    ]}  # fmt: skip
