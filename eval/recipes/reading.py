"""Recipes from their YAML files, and the commands that they stand for."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import InputError, nearest

HERE = Path(__file__).parent
SUITES = "suites"
KINDS: dict[str, Any] = {
    **dict.fromkeys(("method", "model", "source", "note"), str),
    **dict.fromkeys(("base_args", "differs", "dense"), dict),
    **dict.fromkeys(("benchmarks", "budgets"), list),
    "tolerance": (int, float),
}  # key of a recipe -> type of its value


@dataclass(frozen=True)
class Benchmark:
    """A name of the papers in lmms-eval: `scale` times the sum of a task's metrics is what they print."""

    name: str
    task: str
    metric: tuple[str, ...]
    scale: float
    model: str
    most: float = 100  # what can be reached

    @property
    def keys(self) -> tuple[str, ...]:
        """Metrics as the results name them: with the filter."""
        return tuple(one if "," in one else f"{one},none" for one in self.metric)

    def value(self, results: dict[str, dict[str, Any]]) -> float | None:
        """Of results.json's "results"; of a group's tasks the mean; None if it is not there."""
        rows = [results[self.task]] if self.keys[0] in results.get(self.task, {}) else []
        rows = rows or [row for name, row in results.items() if name.startswith(f"{self.task}_")]
        found = [[row[key] for key in self.keys] for row in rows if all(key in row for key in self.keys)]
        return self.scale * sum(map(sum, found)) / len(found) if found else None


@dataclass(frozen=True)
class Row:
    """A policy with its budget; what is expected of each benchmark, or only the mean retention in percent."""

    policy: str
    expected: dict[str, float] = field(default_factory=dict)
    expected_relative: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Rows of one table about one method and model.

    Attributes:
        dense: of the unpruned model in that table; empty where it is not known.
        tolerance: in points of retention, percent of the unpruned model.
        differs: benchmark -> how lmms-eval measures something else there, so that only retention can be compared.
    """

    name: str
    method: str
    model: str
    base: str
    base_args: dict[str, Any]
    source: str
    tolerance: float
    note: str
    benchmarks: tuple[str, ...]
    dense: dict[str, float]
    rows: tuple[Row, ...]
    differs: dict[str, str]

    @property
    def tasks(self) -> list[str]:
        return _tasks(self.benchmarks)


def names() -> list[str]:
    """Of the recipes that come with the package."""
    return sorted(file.stem for file in HERE.glob("*.yaml") if file.stem != SUITES)


def read(name: str | Path) -> Recipe:
    """A recipe by its name, or from a file of one's own.

    Raises:
        InputError: no such recipe, or a file that is none.
    """
    file = Path(name)
    if file.suffix not in (".yaml", ".yml"):
        if str(name) not in names():
            raise InputError(
                f"recipe {str(name)!r} is unknown{nearest(str(name), names())}: give one of those that "
                "`python -m tokenprune.eval.recipes` lists, or a .yaml file."
            )
        file = HERE / f"{name}.yaml"
    given = _loaded(file)
    needed = {"method", "model", "source", "tolerance", "note", "budgets"}
    _keys(file.name, given, needed, set(KINDS) - needed)
    for key, value in given.items():
        if not isinstance(value, KINDS[key]):
            raise InputError(f"{file.name}: {key}={value!r} is a {type(value).__name__}: see those that come along.")
    if ("dense" in given) == ("benchmarks" in given):
        raise InputError(f"{file.name}: give either dense, values of the unpruned model, or benchmarks, their names.")
    model = _models().get(given["model"])
    if model is None:
        raise _unknown(file, "model", given["model"], _models())
    dense = given.get("dense", {})
    asked = tuple(dense or given["benchmarks"])
    recipe = Recipe(
        name=file.stem,
        method=given["method"],
        model=given["model"],
        base=model["base"],
        base_args={**model["base_args"], **given.get("base_args", {})},
        source=given["source"],
        tolerance=float(given["tolerance"]),
        note=given["note"],
        benchmarks=asked,
        dense=dense,
        rows=tuple(_row(file, one, bool(dense)) for one in given["budgets"]),
        differs=given.get("differs", {}),
    )
    for values in (dict.fromkeys(asked), recipe.differs, *(row.expected for row in recipe.rows)):
        for one in values:
            if one not in benchmarks():
                raise _unknown(file, "benchmark", one, benchmarks())
            if one not in asked:
                raise InputError(f"{file.name}: benchmark {one!r} is not among {', '.join(asked)}: add it there.")
    _in_range(file, recipe)
    return recipe


@cache
def benchmarks() -> dict[str, Benchmark]:
    """Every benchmark of suites.yaml by its name."""
    given = _loaded(HERE / f"{SUITES}.yaml")["benchmarks"]
    return {name: Benchmark(name, **{**one, "metric": tuple(one["metric"])}) for name, one in given.items()}


@cache
def suites() -> dict[str, tuple[str, ...]]:
    """Suite -> its benchmarks."""
    return {name: tuple(one["benchmarks"]) for name, one in _loaded(HERE / f"{SUITES}.yaml")["suites"].items()}


def commands(recipe: Recipe) -> list[str]:
    """The line that measures all rows and the unpruned model, loading it once."""
    return [_line(recipe.base, recipe.base_args, [row.policy for row in recipe.rows], recipe.tasks, recipe.name)]


def command(name: str, policy: str = "cdpruner(keep=0.25)") -> str:
    """The line for a benchmark or a suite.

    Raises:
        InputError: an unknown name.
    """
    given = _loaded(HERE / f"{SUITES}.yaml")
    known = given["benchmarks"] | given["suites"]
    if name not in known:
        raise InputError(f"suite {name!r} is unknown{nearest(name, known)}: give one of {', '.join(known)}.")
    model = _models()[known[name]["model"]]
    return _line(model["base"], model["base_args"], [policy], _tasks(suites().get(name, (name,))), name)


def _line(base: str, base_args: dict[str, Any], policies: list[str], tasks: list[str], name: str) -> str:
    arguments = ",".join(f"{key}={value}" for key, value in base_args.items())
    asked = " ".join(f"--policy {_quoted(one)}" for one in policies)
    given = f"--base {base} --base-args {shlex.quote(arguments)} {asked} --tasks {','.join(tasks)}"
    return f"tokenprune eval {given} --out {shlex.quote(f'runs/{name}')}"


def _quoted(policy: str) -> str:
    """For a shell; in double quotes where that is safe, since single ones stand in it."""
    return shlex.quote(policy) if set(policy) & set('"$`\\!') else f'"{policy}"'


def _tasks(asked: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(benchmarks()[one].task for one in asked))


@cache
def _models() -> dict[str, dict[str, Any]]:
    return _loaded(HERE / f"{SUITES}.yaml")["models"]


def _row(file: Path, given: dict[str, Any], has_dense: bool) -> Row:
    _keys(f"{file.name}: a budget", given, {"policy"}, {"expected", "expected_relative"})
    if ("expected" in given) == ("expected_relative" in given):
        raise InputError(f"{file.name}: {given['policy']} needs either expected or expected_relative.")
    if not isinstance(given.get("expected", {}), dict):
        raise InputError(f"{file.name}: expected={given['expected']!r} has to be benchmarks and values.")
    if "expected" in given and not has_dense:
        raise InputError(f"{file.name}: {given['policy']} has expected values, which need those of dense, too.")
    return Row(**given)


def _in_range(file: Path, recipe: Recipe) -> None:
    if not recipe.source.strip():
        raise InputError(f"{file.name}: source is empty: say which table the values are from.")
    if recipe.tolerance <= 0:
        raise InputError(f"{file.name}: tolerance={recipe.tolerance} is not above 0: give points of retention.")
    tables = [recipe.dense, *(row.expected for row in recipe.rows)]
    told = [(name, value, benchmarks()[name].most) for values in tables for name, value in values.items()]
    told += [("expected_relative", r.expected_relative, 150) for r in recipe.rows if r.expected_relative is not None]
    for name, value, most in told:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
            raise InputError(f"{file.name}: {name}={value!r} is no number in (0, {most:g}].")


def _keys(where: str, given: Any, needed: set[str], optional: set[str]) -> None:
    if not isinstance(given, dict):
        raise InputError(f"{where} is a {type(given).__name__}: it has to be names and values.")
    for name in given:
        if name not in needed | optional:
            raise InputError(f"{where} has an unknown key {name!r}{nearest(name, needed | optional)}.")
    if missing := needed - set(given):
        raise InputError(f"{where} lacks {', '.join(sorted(missing))}: see {HERE / 'cdpruner-llava-1.5-7b.yaml'}.")


def _unknown(file: Path, kind: str, name: str, known: Iterable[str]) -> InputError:
    known = list(known)
    return InputError(f"{file.name}: {kind} {name!r} is unknown{nearest(name, known)}: there are {', '.join(known)}.")


def _loaded(file: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"recipe {str(file)!r} cannot be read ({reason}): give a YAML file.") from error
