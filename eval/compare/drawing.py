"""Metric against visual tokens kept, or against speed-up: a panel per task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import InputError
from ..pareto import COLORS, DARK, GRAY
from .benches import TIMES, Point, bare
from .measures import Comparison, Row, Task, compared
from .runs import DENSE, Run
from .tables import heading

COLUMNS = 3
APART = 1.015
WIDTH, HEIGHT = 4.6, 3.7  # inches of a panel
TICKS = 12  # most of an axis that names each number of tokens


def plot(runs: Sequence[Run], file: Path, *, metric: str = "") -> None:
    """A PNG of metric over visual tokens kept; bars are 95 % intervals of the difference to the first run.

    Raises:
        InputError, InvalidArgumentError: as `measures.compared`; or matplotlib is missing.
        OSError: the file cannot be written; an earlier one is left as it is.
    """
    draw(compared(runs, metric=metric), file)


def draw(comparison: Comparison, file: Path, points: Sequence[Point] = (), time: str = "ttft") -> None:
    """As `plot`; of points, over speed-up with the front."""
    tasks = [(i, task) for i, task in enumerate(comparison.tasks) if task.metric]
    if not tasks:
        raise InputError("plot: no task has a metric that is a number per document, so there is nothing to draw.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("plot needs matplotlib, which is not installed: pip install 'tokenprune-vlm[eval]'.") from None
    columns = 2 if len(tasks) == 4 else min(COLUMNS, len(tasks))
    lines = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(WIDTH * columns + 1.2, HEIGHT * lines + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    colors = _colors(comparison)
    for axis, (i, task) in zip(axes, tasks, strict=False):
        _panel(axis, task, colors, _places(task, colors, points))
        if points:
            _speeds(axis, task, i, points, time)
        else:
            _tokens(axis, task)
    for axis in axes[len(tasks) :]:
        axis.remove()
    handles: dict[str, Any] = {}
    for axis in axes[: len(tasks)]:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns + 1, frameon=False, fontsize=8
    )
    _saved(figure, file)


def _saved(figure: Any, file: Path) -> None:
    part = file.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(part, dpi=130, format="png")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _colors(comparison: Comparison) -> dict[str, str]:
    """Policy without its budget -> color; random is gray."""
    names = [bare(row.run.policy) for row in comparison.tasks[0].rows if row.run.policy != DENSE]
    others = [name for name in dict.fromkeys(names) if not name.startswith("random")]
    return dict.fromkeys(names, GRAY) | {name: COLORS[i % len(COLORS)] for i, name in enumerate(others)}


def _places(task: Task, colors: dict[str, str], points: Sequence[Point]) -> list[float | None]:
    """Of each row on the horizontal axis, None where it has none. Bars of policies with as many tokens would overlap:
    they stand a little apart."""
    if points:
        speeds = {one.index: one.speed for one in points}
        return [speeds.get(i) for i in range(len(task.rows))]
    middle, names = (len(colors) - 1) / 2, list(colors)
    apart = [
        APART ** (names.index(name) - middle) if (name := bare(row.run.policy)) in colors else 1 for row in task.rows
    ]
    return [row.visual and row.visual[0] * factor for row, factor in zip(task.rows, apart, strict=True)]


def _panel(axis: Any, task: Task, colors: dict[str, str], places: Sequence[float | None]) -> None:
    scale = 100 if task.percent else 1
    first = task.rows[0]
    label = "dense" if first.run.policy == DENSE else first.name
    axis.axhline(scale * first.value, color=DARK, linestyle="--", linewidth=0.9, label=label)
    lines: dict[str, list[tuple[float, Row]]] = {}
    for row, x in zip(task.rows, places, strict=True):
        if x is not None and row.run.policy != DENSE:
            lines.setdefault(bare(row.run.policy), []).append((x, row))
        elif x is not None:
            axis.plot(x, scale * row.value, "s", color=DARK, markersize=5)
    for name, rows in lines.items():
        rows.sort(key=lambda one: one[0])
        x, y = [one for one, _ in rows], [scale * row.value for _, row in rows]
        bars = [[scale * part for part in one] for one in zip(*(_bar(row) for _, row in rows), strict=True)]
        axis.errorbar(
            x, y, yerr=bars, color=colors[name], marker="o", markersize=4, linewidth=1.4, elinewidth=0.9, capsize=2,
            label=name,
        )  # fmt: skip
    axis.set_title(f"{task.name} ({task.n:,} documents)", fontsize=10, loc="left")
    axis.set_ylabel(heading(task) + (" (less is better)" if task.falling else ""))
    axis.grid(color="#d0d7de", linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)


def _bar(row: Row) -> tuple[float, float]:
    """Down and up to the ends of the interval."""
    if row.against is None:
        return 0.0, 0.0
    found = row.against
    return max(found.difference - found.low, 0.0), max(found.high - found.difference, 0.0)


def _tokens(axis: Any, task: Task) -> None:
    counts = sorted({round(row.visual[0]) for row in task.rows if row.visual})
    total = {round(row.visual[1]) for row in task.rows if row.visual}
    axis.set_xscale("log")
    if counts and len(counts) <= TICKS:
        axis.set_xticks(counts, [str(one) for one in counts])
        axis.minorticks_off()
    axis.set_xlabel("visual tokens kept" + (f", of {total.pop()}" if len(total) == 1 else ""))


def _speeds(axis: Any, task: Task, i: int, points: Sequence[Point], time: str) -> None:
    scale = 100 if task.percent else 1
    front = sorted((one.speed, scale * one.values[i]) for one in points if one.front[i])
    axis.step(
        [x for x, _ in front], [y for _, y in front], where="pre", color=GRAY, linewidth=5, alpha=0.3, label="front"
    )
    axis.axvline(1, color=DARK, linestyle=":", linewidth=0.9)
    axis.set_xlabel(f"{TIMES[time]} speed-up over the dense model")
