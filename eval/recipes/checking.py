"""Whether a recipe would run: every name it uses looked up in the installed lmms-eval, and nothing downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from ...errors import InputError, nearest
from .. import specs
from ..lmms.opening import installed
from .reading import Benchmark, Recipe, benchmarks

if TYPE_CHECKING:
    from lmms_eval.tasks import TaskManager


def check(recipe: Recipe) -> None:
    """A dry run.

    Raises:
        InputError: lmms-eval is missing, or has not that base, task or metric; a policy without a budget.
        TokenPruneError: a policy that cannot be made.
    """
    for row in recipe.rows:
        made = specs.policies(row.policy)
        if specs.text(specs.expanded([row.policy], [0.5])[0]) != specs.text(made):
            raise InputError(f"{recipe.name}: policy={row.policy!r} leaves a budget open: write name(keep=...).")
    if recipe.base not in (known := _bases()):
        raise InputError(f"{recipe.name}: base={recipe.base!r} is no model of lmms-eval{nearest(recipe.base, known)}.")
    for name in recipe.benchmarks:
        resolve(benchmarks()[name])


def resolve(benchmark: Benchmark) -> None:
    """Looks a benchmark's task, filters and metrics up.

    Raises:
        InputError: lmms-eval is missing or does not have them.
    """
    known = _manager().all_tasks
    if benchmark.task not in known:
        raise InputError(
            f"{benchmark.name}: task {benchmark.task!r} is none of lmms-eval{nearest(benchmark.task, known)}."
        )
    for leaf in _leaves(benchmark.task):
        config = _config(leaf)
        filters = [one["name"] for one in config.get("filter_list", [])] or ["none"]
        found = [f"{one['metric']},{kind}" for one in config.get("metric_list", []) for kind in filters]
        for key in benchmark.keys:
            if key not in found:
                raise InputError(f"{benchmark.name}: task {leaf!r} has no metric {key!r}{nearest(key, found)}.")


@cache
def _manager() -> TaskManager:
    """Of all tasks; made once, as it reads some 2,000 files."""
    with installed():
        from lmms_eval.tasks import TaskManager
        from loguru import logger
    logger.disable("lmms_eval")  # it names each file that is no task
    try:
        return TaskManager("ERROR")
    finally:
        logger.enable("lmms_eval")


@cache
def _bases() -> list[str]:
    with installed():
        from lmms_eval import models
    return sorted({*models.AVAILABLE_SIMPLE_MODELS, *models.AVAILABLE_CHAT_TEMPLATE_MODELS})


def _leaves(name: str) -> Iterator[str]:
    entry = _manager().task_index[name]
    if entry["type"] == "task":
        yield name
        return
    listed = entry["task"] if entry["type"] == "tag" else _config(name)["task"]
    for one in listed if isinstance(listed, list) else [listed]:
        yield from _leaves(one if isinstance(one, str) else one.get("task", one.get("group")))


@cache
def _config(name: str) -> dict:
    """A task's YAML, functions left out."""
    from lmms_eval.utils import load_yaml_config

    return load_yaml_config(_manager().task_index[name]["yaml_path"], mode="simple")
