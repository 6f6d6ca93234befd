"""Run folders as `tokenprune eval` writes them: results.json, and a samples_<task>.jsonl for every task."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError

RESULTS, DENSE = "results.json", "none"
# Fields of a line that are no metrics
FACTS = {"doc_id", "doc", "target", "filtered_resps", "visual", "seconds"}


@dataclass(frozen=True)
class Document:
    """One question and what a run made of it.

    Attributes:
        asked: (fields of the document, right answer): what has to be the same to compare two runs.
        answer: as the task's filter left it.
        values: metric -> value, of whatever type.
        visual: (kept, total) visual tokens; None where there are none.
    """

    asked: tuple[dict[str, Any], str]
    answer: str
    values: dict[str, Any]
    visual: tuple[float, float] | None

    @property
    def plain(self) -> str:
        """The answer without blanks around it, in one case."""
        return self.answer.strip().casefold()


@dataclass(frozen=True)
class Run:
    """One configuration.

    Attributes:
        settings: of results.json.
        tasks: task -> doc_id -> document.
        metrics: task -> metric -> lmms-eval's own figure (None where it is no number), in lmms-eval's order.
        falling: (task, metric) of which less is better.
        failures: errors that became empty answers.
    """

    folder: Path
    settings: dict[str, Any]
    tasks: dict[str, dict[int, Document]]
    metrics: dict[str, dict[str, float | None]]
    falling: frozenset[tuple[str, str]]
    failures: tuple[str, ...] = ()

    @property
    def policy(self) -> str:
        return str(self.settings.get("policy", DENSE))

    @property
    def keep(self) -> str:
        return str(self.settings.get("keep") or "")


def read(folder: Path) -> Run:
    """A run folder.

    Raises:
        InputError: it is none, or a file in it cannot be read; or a document is in there twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{str(folder)!r} is no folder: give one that `tokenprune eval` wrote.")
    if not (folder / RESULTS).is_file():
        raise InputError(f"{str(folder)!r} holds no {RESULTS}: give a folder that `tokenprune eval` has finished.")
    facts = loaded(folder / RESULTS)
    try:
        settings, results, names = facts["settings"], facts["results"], list(facts["samples"])
        metrics = {name: _metrics(results.get(name, {})) for name in names}
        falling = {
            (task, metric)
            for task, better in facts.get("higher_is_better", {}).items()
            for metric, up in (better or {}).items()
            if up is False
        }
        settings, failures = dict(settings), tuple(facts.get("failures", ()))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{str(folder / RESULTS)!r} is not what `tokenprune eval` writes ({type(error).__name__}: {error}): run it "
            "again."
        ) from None
    tasks = {name: _documents(folder / f"samples_{name}.jsonl") for name in names}
    return Run(folder, settings, tasks, metrics, frozenset(falling), failures)


def found(folder: Path) -> list[Run]:
    """The run in a folder, or all runs in folders of it, the dense one first and the others by name.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    if not folder.is_dir() or (folder / RESULTS).is_file():
        return [read(folder)]
    inner = [file.parent for file in folder.glob(f"*/{RESULTS}")]
    if not inner:
        raise InputError(
            f"{str(folder)!r} holds no {RESULTS}, nor do folders in it: give what `tokenprune eval` has finished."
        )
    return sorted(map(read, sorted(inner, key=_parts)), key=lambda run: run.policy != DENSE)


def _parts(folder: Path) -> list[str | float]:
    """Of the name, such that 16 is before 128."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+(?:\.\d+)?)", folder.name))]


def loaded(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{str(file)!r} cannot be read as JSON ({error}): write it again.") from None
    if not isinstance(facts, dict):
        raise InputError(f"{str(file)!r} holds a {type(facts).__name__} where a JSON object is needed: write it again.")
    return facts


def named(runs: Sequence[Run]) -> list[str]:
    """Each by its policy, with its folder where two have the same."""
    texts = [run.policy for run in runs]
    return [text if texts.count(text) == 1 else f"{text} ({run.folder})" for run, text in zip(runs, texts, strict=True)]


def _metrics(results: dict[str, Any]) -> dict[str, float | None]:
    """Metric -> figure, of keys such as "exact_match,none"."""
    figures: dict[str, float | None] = {}
    for key, value in results.items():
        name, comma, _ = key.partition(",")
        if comma and "_stderr" not in name:
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            figures.setdefault(name, float(value) if number else None)
    return figures


def _documents(file: Path) -> dict[int, Document]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{str(file)!r} cannot be read ({error}): run `tokenprune eval` again.") from None
    documents: dict[int, Document] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            name, document = _document(json.loads(line))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"{str(file)!r}, line {number}, is no document ({type(error).__name__}: {error}): run "
                "`tokenprune eval` again."
            ) from None
        if name in documents:
            raise InputError(
                f"{str(file)!r} holds doc_id {name} twice: a document counts once, run `tokenprune eval` into a fresh "
                "folder."
            )
        documents[name] = document
    if not documents:
        raise InputError(f"{str(file)!r} holds no document: run `tokenprune eval` again.")
    return documents


def _document(line: dict[str, Any]) -> tuple[int, Document]:
    visual = line.get("visual")
    counts = (float(visual["kept"]), float(visual["total"])) if visual else None
    values = {name: value for name, value in line.items() if name not in FACTS}
    asked = (dict(line["doc"]), str(line["target"]))
    return int(line["doc_id"]), Document(asked, _answer(line["filtered_resps"]), values, counts)


def _answer(responses: Any) -> str:
    """Text of the answer; of choices that were scored, the place of the likeliest."""
    while isinstance(responses, list) and len(responses) == 1:
        responses = responses[0]
    if isinstance(responses, str):
        return responses
    scored = isinstance(responses, list) and all(
        isinstance(one, list) and len(one) == 2 and isinstance(one[0], float) for one in responses
    )
    if scored and responses:
        return str(max(range(len(responses)), key=lambda i: responses[i][0]))
    return json.dumps(responses, ensure_ascii=False)


def tasks_of(runs: Iterable[Run]) -> list[str]:
    """All tasks, in the order they come."""
    return list(dict.fromkeys(task for run in runs for task in run.tasks))
