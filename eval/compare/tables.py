"""A comparison as Markdown, and as data for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from .measures import Against, Comparison, Group, Task, compared
from .runs import Run

LEVEL = 0.05  # of Holm's p, from which on a difference is marked


def table(runs: Sequence[Run], *, metric: str = "", by: str = "") -> str:
    """Markdown: all runs beside the first, a table per task.

    Raises:
        InputError, InvalidArgumentError: as `measures.compared`.
    """
    return markdown(compared(runs, metric=metric, by=by))


def markdown(comparison: Comparison) -> str:
    """A table per task, and one over all of them if there are several."""
    tasks = comparison.tasks
    parts = [_task(task) for task in tasks] + ([_summary(tasks)] if len(tasks) > 1 else [])
    return "\n\n".join(["\n".join(lines) for lines in parts] + list(_notes(comparison))) + "\n"


def data(comparison: Comparison) -> dict[str, Any]:
    """For JSON. Differences are in the metric's own unit, agreement is a share."""
    return {
        "tasks": {task.name: _facts(task) for task in comparison.tasks},
        "notes": comparison.notes,
    }


def grid(heads: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a Markdown table, the first `left` columns to the left, the others to the right."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    escaped = [[text.replace("|", "\\|") for text in line] for line in [heads, *lines]]
    return ["| " + " | ".join(line) + " |" for line in [escaped[0], rule, *escaped[1:]]]


def visual(counts: tuple[float, float] | None) -> str:
    """ "64/256" """
    return "" if counts is None else "/".join(f"{one:.1f}".removesuffix(".0") for one in counts)


def value(task: Task, number: float, form: str = "") -> str:
    """Of the task's metric, in % if it is a share."""
    if math.isnan(number):
        return ""
    digits = ".1f" if task.percent else ".4g"
    return f"{100 * number if task.percent else number:{form}{digits}}".replace("-", "−")


def heading(task: Task) -> str:
    return f"{task.metric}, %" if task.percent and task.metric else task.metric


def _task(task: Task) -> list[str]:
    what = heading(task) or "no metric"
    heads = ["policy", "keep", "visual tokens", what, "difference [95 %]", "p", "p (Holm)", "same answers, %"]
    heads += [f"worst {task.by}"] if task.by else []
    lines = []
    for row in task.rows:
        own = [row.name, row.run.keep, visual(row.visual), value(task, row.value)]
        lines.append(own + (_against(task, row.against) if row.against else [""] * (len(heads) - len(own))))
    scored = "" if task.scored in (0, task.n) else f", {task.scored:,} of them with {task.metric}"
    less = ", less is better" if task.falling else ""
    return [f"### {task.name}: {task.n:,} documents{scored}{less}", "", *grid(heads, lines)]


def _against(task: Task, found: Against) -> list[str]:
    share, raw = (f"{100 * one:.1f}" for one in (found.agreement, found.raw))
    same = share if share == raw else f"{share} (raw {raw})"
    if not task.metric:
        return ["", "", "", same, *([""] if task.by else [])]
    low, high = (value(task, one, "+") for one in (found.low, found.high))
    difference = f"{value(task, found.difference, '+')} [{low}, {high}]{_star(found.holm)}"
    worst = [_worst(task, found.groups[0])] if task.by else []
    return [difference, _p(found.p), _p(found.holm), same, *worst]


def _worst(task: Task, group: Group) -> str:
    return f"{group.name} {value(task, group.difference, '+')}{_star(group.holm)} (n {group.n:,})"


def _star(p: float) -> str:
    return " *" if p < LEVEL else ""


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _summary(tasks: Sequence[Task]) -> list[str]:
    heads = ["policy", "keep", *(f"{task.name}: {heading(task)}" for task in tasks), "of the first, %"]
    lines = []
    for rows in zip(*(task.rows for task in tasks), strict=True):
        share = relative(tasks, [row.value for row in rows])
        values = [value(task, row.value) for task, row in zip(tasks, rows, strict=True)]
        lines.append([rows[0].name, rows[0].run.keep, *values, "" if math.isnan(share) else f"{100 * share:.1f}"])
    return ["### All tasks", "", *grid(heads, lines)]


def relative(tasks: Sequence[Task], values: Sequence[float]) -> float:
    """Mean over tasks of the metric as a share of the first run's, where more is better and the first has any."""
    pairs = [(one, task.rows[0].value) for task, one in zip(tasks, values, strict=True) if not task.falling]
    shares = [one / first for one, first in pairs if first > 0 and not math.isnan(one)]
    return math.fsum(shares) / len(shares) if shares else math.nan


def _notes(comparison: Comparison) -> Iterator[str]:
    tasks = [task for task in comparison.tasks if task.metric]
    tests = sum(len(task.rows) - 1 for task in tasks)
    if tests:
        kinds = " and ".join(dict.fromkeys(_test(task) for task in tasks))
        correction = f" Holm: corrected for the {tests} comparisons here." if tests > 1 else ""
        yield (
            f"Difference to the first line on the same documents, with the 95 % interval of a paired bootstrap; p by "
            f"{kinds}.{correction} * Holm's p is below {LEVEL:g}. Same answers: without blanks around and case. "
            "Documents count as independent: where several are about one picture, intervals are too narrow."
        )
    if tests and any(task.by for task in tasks):
        yield (
            "Worst: the type of question that lost most (or won least); being picked, it looks worse than it is, and "
            "its * is corrected for the number of types."
        )
    yield from comparison.notes


def _test(task: Task) -> str:
    return "McNemar's exact test" if task.test == "McNemar" else "the bootstrap"


def _facts(task: Task) -> dict[str, Any]:
    facts = {name: one for name, one in vars(task).items() if name not in ("rows", "name")}
    return facts | {"rows": [
        {
            "name": row.name,
            "folder": str(row.run.folder),
            "policy": row.run.policy,
            "keep": row.run.keep,
            "value": _plain(row.value),
            "visual": row.visual and dict(zip(("kept", "total"), row.visual, strict=True)),
            "against": row.against and {name: _plain(one) for name, one in asdict(row.against).items()},
        }
        for row in task.rows
    ]}  # fmt: skip


def _plain(one: Any) -> Any:
    return None if isinstance(one, float) and math.isnan(one) else one
