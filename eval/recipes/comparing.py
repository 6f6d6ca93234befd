"""What was measured beside what was published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import InputError
from .. import specs
from ..files import read
from .reading import Recipe, benchmarks

DENSE = "none"
MEAN = "mean"


def measured(folder: Path) -> dict[str, dict[str, Any]]:
    """Policy -> results.json of the configurations in a folder of `tokenprune eval`.

    Raises:
        InputError: there is none, or one that cannot be read or is of something else.
    """
    files = sorted(folder.glob("*/results.json"))
    found = [read(file) for file in files]
    if None in found:
        raise InputError(f"file={str(files[found.index(None)])!r} cannot be read: run that configuration again.")
    if not found:
        raise InputError(f"folder={str(folder)!r} holds no */results.json: give the --out of tokenprune eval.")
    for file, one in zip(files, found, strict=True):
        if not _of_eval(one):
            raise InputError(f"file={str(file)!r} is no result of tokenprune eval: move it out of that folder.")
    return {one["settings"]["policy"]: one for one in found}


def _of_eval(result: Any) -> bool:
    if not isinstance(result, dict) or not isinstance(result.get("results"), dict):
        return False
    return isinstance(result.get("settings"), dict) and isinstance(result["settings"].get("policy"), str)


def _whole(result: dict[str, Any] | None) -> bool:
    """Of all documents; nothing measured counts as such."""
    return result is None or (result["settings"].get("limit") is None and not result["settings"].get("offset"))


def compared(recipe: Recipe, results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for every policy and benchmark, and for the mean over them.

    Retention is percent of the unpruned model: of the table's for what is expected, of the measured one, "none" among
    the results, for what is measured; of the table's if that is missing.

    Returns:
        Rows of policy, benchmark, expected, measured, expected_retention, retention, difference (points of retention)
        and within (the tolerance; None where that cannot be said: nothing measured, only a part of the documents, or
        lmms-eval measures something else and the unpruned model was not run).
    """
    dense = _values(recipe, results.get(DENSE))
    rows = []
    for row in recipe.rows:
        result = results.get(specs.text(specs.policies(row.policy)))
        values, cells = _values(recipe, result), []
        whole = _whole(result) and _whole(results.get(DENSE))
        for name in recipe.benchmarks:
            own = dense.get(name)
            base = own or (None if name in recipe.differs else recipe.dense.get(name))
            expected = row.expected.get(name)
            cells.append(
                {
                    "policy": row.policy,
                    "benchmark": name,
                    "expected": expected,
                    "measured": values.get(name),
                    "expected_retention": None if expected is None else 100 * expected / recipe.dense[name],
                    "retention": None if None in (values.get(name), base) else 100 * values[name] / base,
                }
            )
        rows += [_judged(cell, recipe.tolerance, whole) for cell in [*cells, _mean(cells, row.expected_relative)]]
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| policy | benchmark | published | measured | published, % of dense | measured | within |"]
    lines.append("|---|---|---:|---:|---:|---:|---|")
    words = {True: "yes", False: "**no**", None: ""}
    for row in rows:
        numbers = (row[key] for key in ("expected", "measured", "expected_retention", "retention"))
        cells = " | ".join("" if value is None else f"{value:.1f}" for value in numbers)
        lines.append(f"| {row['policy']} | {row['benchmark']} | {cells} | {words[row['within']]} |")
    return "\n".join(lines) + "\n"


def _values(recipe: Recipe, result: dict[str, Any] | None) -> dict[str, float | None]:
    return {name: benchmarks()[name].value(result["results"]) for name in recipe.benchmarks} if result else {}


def _mean(cells: list[dict[str, Any]], published: float | None) -> dict[str, Any]:
    """Over all benchmarks, or over none."""
    row: dict[str, Any] = {"policy": cells[0]["policy"], "benchmark": MEAN, "expected": None, "measured": None}
    for key in ("expected_retention", "retention"):
        values = [cell[key] for cell in cells]
        row[key] = None if None in values else sum(values) / len(values)
    return row if published is None else row | {"expected_retention": published}


def _judged(row: dict[str, Any], tolerance: float, whole: bool) -> dict[str, Any]:
    told = None not in (row["expected_retention"], row["retention"])
    difference = row["retention"] - row["expected_retention"] if told else None
    return row | {"difference": difference, "within": abs(difference) <= tolerance if told and whole else None}
