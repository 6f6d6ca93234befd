"""The model that is tuned: its answers through lmms-eval, and the time of its first token."""

from __future__ import annotations

import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ... import wrap
from ...errors import (
    InputError,
    InvalidFeaturesError,
    NotEngagedError,
    PolicyError,
    TokenPruneError,
    UnsupportedModelError,
    UnsupportedPolicyError,
    nearest,
)
from ...policies import Policy
from .. import specs
from ..clock import in_turns, ratio
from ..instead import instead
from .search import DENSE, Evaluate, Refused

if TYPE_CHECKING:
    from ..lmms.run import Session

TOGETHER = 6  # candidates that take turns with one dense call
# of a candidate on some document, which says nothing about others
OF_ONE = (UnsupportedModelError, UnsupportedPolicyError, NotEngagedError, PolicyError, InvalidFeaturesError)
NO_DOCUMENTS = "did not find any docs"  # what lmms-eval says of an offset behind the last one
ONE_TOKEN = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1, "temperature": None, "top_p": None}

Call = tuple[tuple, dict[str, Any]]


def evaluated(
    session: Session,
    tasks: Sequence[str],
    metric: str | None,
    folder: Path,
    told: Callable[[str, int], None] = lambda *_: None,
) -> Evaluate:
    """What `search` asks: values of `session.evaluate`, which keeps every answer in a folder of the configuration.

    Args:
        metric: of every task; None for the first whose values are numbers.
        folder: of all configurations.
        told: called with a candidate and its last document before it is asked.
    """

    def evaluate(text: str, offset: int, count: int) -> np.ndarray:
        told(text, count)
        made = specs.policies(text)
        where = folder / (specs.slug(text) + ("_heldout" if offset else ""))
        try:
            with redirect_stderr(io.StringIO()):  # its progress bars; warnings come by its logger
                result = session.evaluate(made, tasks, where, limit=count, offset=offset)
        except OF_ONE as error:
            if text == DENSE:
                raise
            raise Refused(str(error)) from None
        except InputError as error:
            if NO_DOCUMENTS not in str(error):
                raise
            return np.empty((len(tasks), 0))
        if failures := result.get("failures"):
            if text == DENSE:
                raise InputError(f"the dense model answers nothing to some documents, because of {failures[0]}.")
            raise Refused(f"some answers are empty because of {failures[0]}")
        names = list(result["samples"])
        values = [_values(session.samples(where, name), name, metric, result) for name in names]
        for task, one in zip(names, values, strict=True) if text == DENSE else ():
            if one and not any(one) and math.copysign(1, one[0]) > 0:  # -0.0 where a metric falls, which is perfect
                raise InputError(
                    f"the dense model scores 0 on each of {len(one)} documents of {task!r}: there is no loss to "
                    f"measure, see its answers in {str(where)!r}."
                )
        return np.array([one[: min(map(len, values))] for one in values], dtype=float)

    return evaluate


def _values(lines: list[dict[str, Any]], task: str, metric: str | None, result: dict[str, Any]) -> list[float]:
    """Of every document in turn; higher is better."""
    known = result["higher_is_better"].get(task) or {}
    named = [name for name in known if all(_number(line.get(name)) for line in lines)]
    if not named:
        raise InputError(
            f"tasks={task!r} has no metric with a number for every document, only {', '.join(known) or 'none'}: give "
            "another task."
        )
    if metric is not None and metric not in named:
        raise InputError(
            f"metric={metric!r} is no number for every document of {task!r}{nearest(metric, named)}: give one of "
            f"{', '.join(named)}."
        )
    name = metric or named[0]
    sign = -1 if known[name] is False else 1
    return [sign * float(line[name]) for line in lines]


def _number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value)


def seen(session: Session, tasks: Sequence[str], count: int) -> list[Call]:
    """Arguments of the `generate` calls with pictures for the first `count` documents of each task.

    Raises:
        InputError: there are none.
    """
    with tempfile.TemporaryDirectory() as folder, _noted(session.model) as calls, redirect_stderr(io.StringIO()):
        session.evaluate([], tasks, Path(folder), limit=count)
    if not calls:
        raise InputError(
            f"tasks={', '.join(tasks)!r} make no call of generate with pictures in their first {count} documents: give "
            "tasks that ask about images or videos."
        )
    return calls


@contextmanager
def _noted(model: Any) -> Iterator[list[Call]]:
    generate, calls = model.generate, []

    def noting(*args: Any, **kwargs: Any) -> Any:
        if any("pixel" in name and value is not None for name, value in kwargs.items()):
            calls.append((args, dict(kwargs)))
        return generate(*args, **kwargs)

    with instead(model, "generate", noting):
        yield calls


def served(session: Session, texts: Sequence[str], call: Call) -> dict[str, str]:
    """Candidate -> sentence, of those that the model cannot serve, tried on one call."""
    refused = {}
    for text in texts:
        try:
            _seconds(session, specs.policies(text), [call])
        except TokenPruneError as error:
            refused[text] = str(error)
    return refused


def times(
    session: Session,
    texts: Sequence[str],
    calls: Sequence[Call],
    rounds: int,
    told: Callable[[list[str]], None] = lambda _: None,
) -> dict[str, float]:
    """Candidate -> time of the first token as a multiple of the dense model's, over all calls.

    What is timed is `generate` with one new token: vision tower, projector, selection and prefill; not the reading of
    pictures, which is alike for all, and not the tokens after the first, which shorter caches only make faster. The
    dense model and a few candidates take turns, so that all meet the same machine: the median over rounds of the ratio
    within a round.
    """
    found = {}
    for start in range(0, len(texts), TOGETHER):
        some = list(texts[start : start + TOGETHER])
        took = in_turns(
            {text: partial(_seconds, session, specs.policies(text), calls) for text in (DENSE, *some)}, rounds
        )
        found |= {text: ratio(took[text], took[DENSE]) for text in some}
        told(some)
    return found


@torch.inference_mode()
def _seconds(session: Session, made: list[Policy], calls: Sequence[Call]) -> float:
    """Wrapping is done before."""
    model, tokenizer = session.model, getattr(session.processor, "tokenizer", None)
    wait: Callable[[], None] = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    with wrap(model, made, tokenizer=tokenizer) if made else nullcontext():
        wait()
        begun = time.perf_counter()
        for args, kwargs in calls:
            model.generate(*args, **{**kwargs, **ONE_TOKEN})
        wait()
        return time.perf_counter() - begun
