"""What runs differ in, document by document: metric, agreement of answers, and the worst type of question."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...errors import InputError, InvalidArgumentError, nearest
from .runs import DENSE, Document, Run, named, tasks_of
from .statistics import bootstrap, holm, mcnemar

FIELDS = ("kind", "question_type", "category", "type", "task")
MOST = 50  # values of a field that is a type of question
CLOSE = 1e-6  # relative difference of two figures that are the same
ALIKE = ("base", "base_args", "options", "batch_size", "seed", "versions")  # settings a difference may come from


@dataclass(frozen=True)
class Group:
    """Documents of one type: how many, and the mean difference; p alone, and corrected for the number of types."""

    name: str
    n: int
    difference: float
    p: float
    holm: float


@dataclass(frozen=True)
class Against:
    """A run less the first one, on the same documents.

    Attributes:
        difference, low, high: of the means, with the 95 % interval of the paired bootstrap.
        p: two-sided, McNemar's exact one where every value is 0 or 1, else the bootstrap's.
        holm: p corrected for all comparisons with the first run, on all tasks.
        agreement, raw: share of documents with the same answer, without and with blanks around and case.
        groups: by type of question, the worst first.

    Without a metric only agreement and raw are numbers, the others NaN.
    """

    difference: float
    low: float
    high: float
    p: float
    holm: float
    agreement: float
    raw: float
    groups: list[Group]


@dataclass(frozen=True)
class Row:
    """A run on a task: means of the metric (NaN without) and of (kept, total) tokens. The first: `against` is None."""

    run: Run
    name: str
    value: float
    visual: tuple[float, float] | None
    against: Against | None


@dataclass(frozen=True)
class Task:
    """Runs on the documents that all of them answered.

    Attributes:
        metric: "" where none has a number per document.
        n, scored: documents, and those of them that have the metric.
        test: "McNemar" or "bootstrap".
        percent: every value is a share, 0 to 1.
        falling: less is better.
        by: field of the types of question, "" without.
    """

    name: str
    metric: str
    n: int
    scored: int
    test: str
    percent: bool
    falling: bool
    by: str
    rows: list[Row]


@dataclass(frozen=True)
class Comparison:
    tasks: list[Task]
    notes: list[str]


def compared(runs: Sequence[Run], *, metric: str = "", by: str = "") -> Comparison:
    """All runs against the first, task by task, on the documents that all of them answered.

    Args:
        metric: instead of the first one of each task that has it.
        by: field of the documents to group by, instead of the first of FIELDS with 2 to MOST values.

    Raises:
        InputError: no task or no document is common; a document has other contents in another run.
        InvalidArgumentError: no task has this metric or field, or the metric has no number per document.
    """
    tasks = tasks_of(runs)
    common = [task for task in tasks if all(task in run.tasks for run in runs)]
    if not common:
        raise InputError(
            f"no task is in all {len(runs)} runs ({', '.join(tasks)}): give runs of the same `tokenprune eval --tasks`."
        )
    notes = _settings(runs)
    if left := [task for task in tasks if task not in common]:
        notes.append(f"Not compared, since not every run has it: {', '.join(left)}.")
    _known("metric", metric, {name for task in common for name in _metrics(runs, task)})
    documents = {task: _shared(runs, task, notes) for task in common}
    _known("by", by, {name for own in documents.values() for one in own[0] for name in one.asked[0]})
    found = [_task(runs, task, documents[task], metric, by, notes) for task in common]
    return Comparison(_corrected(found), [*notes, *_failures(runs), *_idle(found)])


def _failures(runs: Sequence[Run]) -> list[str]:
    """Sentences about answers that are none."""
    return [
        f"{len(run.failures)} answers of {name} are empty because of errors, and count as such; the first: "
        f"{run.failures[0].splitlines()[0].rstrip('.')}."
        for run, name in zip(runs, named(runs), strict=True)
        if run.failures
    ]


def _idle(tasks: Sequence[Task]) -> list[str]:
    """Sentences about policies that removed nothing there, as one for videos does of pictures."""
    return [
        f"{row.name} left the language model all visual tokens of {task.name}."
        for task in tasks
        for row in task.rows
        if row.run.policy != DENSE and row.visual and row.visual[0] == row.visual[1]
    ]


def _known(argument: str, name: str, known: set[str]) -> None:
    if name and name not in known:
        hint = nearest(name, known) or f": there are {', '.join(sorted(known)) or 'none'}"
        raise InvalidArgumentError(f"{argument}={name!r} is in no document of these runs{hint}.")


def _settings(runs: Sequence[Run]) -> list[str]:
    """Sentences about settings, other than the policy, that are not the same in all runs."""
    said = []
    for name in ALIKE:
        texts = list(dict.fromkeys(json.dumps(run.settings.get(name), sort_keys=True) for run in runs))
        if len(texts) > 1:
            said.append(f"Not the policy alone differs: {name} is {' or '.join(texts)}.")
    return said


def _shared(runs: Sequence[Run], task: str, notes: list[str]) -> list[list[Document]]:
    """Per run, the documents that all have, by doc_id."""
    own = [run.tasks[task] for run in runs]
    common = sorted(set(own[0]).intersection(*own[1:]))
    counts = [len(one) for one in own]
    if not common:
        raise InputError(
            f"task {task!r} has no document that all {len(runs)} runs answered: give --limit, --offset alike."
        )
    if max(counts) > len(common):
        notes.append(
            f"{task}: compared on the {len(common):,} documents that all runs answered, of "
            f"{', '.join(f'{count:,}' for count in counts)}."
        )
    for name in common:
        for run, documents in zip(runs[1:], own[1:], strict=True):
            if not _same(own[0][name].asked, documents[name].asked):
                raise InputError(
                    f"document {name} of task {task!r} is not the same in {str(runs[0].folder)!r} and "
                    f"{str(run.folder)!r}: compare runs over the same data."
                )
    return [[documents[name] for name in common] for documents in own]


def _same(one: Any, other: Any) -> bool:
    return one == other or json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # NaN is not NaN


def _metrics(runs: Sequence[Run], task: str) -> list[str]:
    """That documents of all runs have, in lmms-eval's order."""
    own = [{name for one in run.tasks[task].values() for name in one.values} for run in runs]
    return [name for name in runs[0].metrics.get(task, {}) if all(name in names for names in own)]


def _task(
    runs: Sequence[Run], task: str, documents: list[list[Document]], metric: str, by: str, notes: list[str]
) -> Task:
    chosen, values = _values(runs, task, documents, metric, notes)
    here = ~np.isnan(values).any(0)
    scored, kinds = values[:, here], _field(documents[0], task, by, notes)
    binary, falling = bool(np.isin(scored, (0, 1)).all()), (task, chosen) in runs[0].falling
    types = [str(one.asked[0].get(kinds)) for one, used in zip(documents[0], here, strict=True) if used]
    rows = []
    for i, (run, name) in enumerate(zip(runs, named(runs), strict=True)):
        against = _against(documents[i], documents[0], scored[i], scored[0], binary, falling, types if kinds else [])
        mean = float(scored[i].mean()) if chosen else math.nan
        rows.append(Row(run, name, mean, _visual(documents[i]), against if i else None))
        reported = run.metrics[task].get(chosen) if len(documents[i]) == len(run.tasks[task]) else None
        if reported is not None and not math.isclose(reported, mean, rel_tol=CLOSE, abs_tol=CLOSE):
            notes.append(
                f"{task}: lmms-eval's own {chosen} of {name} is {reported:.5g}, which is no mean over documents; here "
                f"it is the mean, {mean:.5g}."
            )
    percent = bool(((scored >= 0) & (scored <= 1)).all())
    test = "McNemar" if binary else "bootstrap"
    return Task(task, chosen, len(here), int(here.sum()) if chosen else 0, test, percent, falling, kinds, rows)


def _values(
    runs: Sequence[Run], task: str, documents: list[list[Document]], metric: str, notes: list[str]
) -> tuple[str, np.ndarray]:
    """The metric, "" if none is a number; and [runs, documents] values, NaN where a document has none."""
    names = _metrics(runs, task)
    for name in [metric] if metric in names else names:
        try:
            values = np.array([[number(one.values.get(name)) for one in own] for own in documents], dtype=np.float64)
        except ValueError as error:
            if metric == name:
                raise InvalidArgumentError(
                    f"metric={name!r} of task {task!r} has no number per document ({error}): give another --metric."
                ) from None
            notes.append(f"{task}: metric {name} is left out, since it has no number per document ({error}).")
            continue
        if not np.isnan(values).any(0).all():
            return name, values
    notes.append(f"{task}: answers are compared, and no metric, since none has a number per document.")
    return "", np.full((len(runs), len(documents[0])), math.nan)


def number(value: Any) -> float:
    """Of a metric on a document: a number, the "score" of a dict, NaN of None.

    Raises:
        ValueError: it is something else.
    """
    score = value["score"] if isinstance(value, dict) and "score" in value else value
    if score is None:
        return math.nan
    if not isinstance(score, (bool, int, float)) or not math.isfinite(score):
        text = repr(value)
        raise ValueError(text if len(text) < 60 else f"{text[:57]}...")
    return float(score)


def _field(documents: list[Document], task: str, by: str, notes: list[str]) -> str:
    """Whose values are the types of question, "" if there is none."""
    for name in [by] if by else FIELDS:
        found = [one.asked[0].get(name) for one in documents]
        plain = all(isinstance(one, (str, int, float, bool)) for one in found)
        if plain and (by or 2 <= len(set(found)) <= MOST):
            return name
    if by:
        notes.append(f"{task}: not every document has a plain value of {by}, so there are no types of question.")
    return ""


def _visual(documents: list[Document]) -> tuple[float, float] | None:
    counts = [one.visual for one in documents if one.visual]
    return (
        (math.fsum(k for k, _ in counts) / len(counts), math.fsum(t for _, t in counts) / len(counts))
        if counts
        else None
    )


def _against(
    own: list[Document], first: list[Document], values: np.ndarray, base: np.ndarray, binary: bool, falling: bool,
    types: list[str],
) -> Against:  # fmt: skip
    pairs = list(zip(own, first, strict=True))
    agreement = sum(a.plain == b.plain for a, b in pairs) / len(pairs)
    raw = sum(a.answer == b.answer for a, b in pairs) / len(pairs)
    difference = values - base
    if not len(difference):
        return Against(*[math.nan] * 5, agreement, raw, [])
    low, high, _ = bootstrap(difference)
    p, kinds = _p(difference, binary), np.array(types)
    parts = {kind: difference[kinds == kind] for kind in sorted(set(types))}
    alone = [_p(part, binary) for part in parts.values()]
    groups = [
        Group(kind, len(part), float(part.mean()), *both)
        for (kind, part), both in zip(parts.items(), zip(alone, holm(alone), strict=True), strict=True)
    ]
    groups.sort(key=lambda one: (-one.difference if falling else one.difference, -one.n))
    return Against(float(difference.mean()), low, high, p, p, agreement, raw, groups)


def _p(difference: np.ndarray, binary: bool) -> float:
    if binary:
        return mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
    return bootstrap(difference)[2]


def _corrected(tasks: list[Task]) -> list[Task]:
    """With Holm's p-values over all comparisons."""
    tested = [row.against for task in tasks for row in task.rows if row.against and task.metric]
    values = iter(holm([one.p for one in tested]))
    return [
        replace(task, rows=[
            replace(row, against=replace(row.against, holm=next(values))) if row.against and task.metric else row
            for row in task.rows
        ])
        for task in tasks
    ]  # fmt: skip
